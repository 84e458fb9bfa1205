# SPDX-License-Identifier: Apache-2.0
"""`scaleoutctl why CODE`: what an error code means, where it usually comes from, what to do, and the event that carries it.

The pages are why/*.md, one file a group, one `## code` a page:

    ## code
    event: the event of the trail that carries it
    causes:
    - …
    do:
    - …

The meaning itself is errors.CODES; it is not written twice.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import resources

import click

from scaleoutd.errors import CODES, ConfigError, FormatError, from_code


@dataclass(frozen=True)
class Page:
    """One code.  `group` is the title of its file."""

    code: str
    group: str
    event: str
    causes: tuple[str, ...]
    do: tuple[str, ...]


@click.command("why")
@click.argument("code", required=False)
@click.option("--json", "as_json", is_flag=True, help="one JSON object on standard output")
def why(code: str | None, as_json: bool) -> int:
    """Explain an error CODE; without one, list them all.

    \b
    Example:
      scaleoutctl why manifest-expired
    """
    pages = read_pages()
    if code is None:
        _list(pages, as_json)
        return 0
    page = pages.get(code.strip("[]").lower())
    if page is None:
        raise unknown(code)
    if as_json:
        click.echo(json.dumps(told(page), indent=2))
    else:
        for line in lines_of(page):
            click.echo(line)
    return 0


def unknown(code: str) -> ConfigError:
    """With the nearest codes, by letters and by words."""
    near = difflib.get_close_matches(code.lower(), CODES, n=3, cutoff=0.5)
    near += [name for name in CODES if code.lower() in name and name not in near][:3]
    return ConfigError(
        f"cannot explain {code[:64]!r}: there is no such error code" + (f"; near: {', '.join(near)}" if near else ""),
        hint="`scaleoutctl why` lists every code.",
    )


def told(page: Page) -> dict[str, object]:
    error = from_code(page.code, "")
    return {**asdict(page), "meaning": CODES[page.code], "exit_status": error.exit_status}


def lines_of(page: Page) -> Iterator[str]:
    yield f"{page.code}: {CODES[page.code]}"
    yield ""
    yield "Usual causes"
    yield from (f"  - {text}" for text in page.causes)
    yield "What to do"
    yield from (f"  - {text}" for text in page.do)
    yield f"In the trail: {page.event}."
    yield f"Exit status of a command that ends with it: {from_code(page.code, '').exit_status}."


def _list(pages: dict[str, Page], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"codes": [{"code": page.code, "meaning": CODES[page.code]} for page in pages.values()]}, indent=2))
        return
    group = ""
    for page in pages.values():
        if page.group != group:
            group = page.group
            click.echo(f"{group}")
        click.echo(f"  {page.code:<27} {CODES[page.code]}")


def read_pages() -> dict[str, Page]:
    """Every page, in the order of errors.CODES."""
    found: dict[str, Page] = {}
    for file in sorted(resources.files("scaleoutd.cli").joinpath("why").iterdir(), key=lambda item: item.name):
        if not file.name.endswith(".md"):
            continue
        for page in parse_pages(file.read_text(encoding="utf-8"), file.name):
            if page.code in found or page.code not in CODES:
                raise FormatError(f"cannot read {file.name}: {page.code} is no code, or has two pages")
            found[page.code] = page
    return {code: found[code] for code in CODES if code in found}


def parse_pages(text: str, name: str) -> Iterator[Page]:
    """The pages of one file; FormatError for a line that has no place."""
    head, *sections = text.split("\n## ")
    group = head.removeprefix("# ").strip()
    for section in sections:
        code, *lines = section.splitlines()
        event = ""
        parts: dict[str, list[str]] = {"causes:": [], "do:": []}
        current: list[str] | None = None
        for line in lines:
            if line in parts:
                current = parts[line]
            elif line.startswith("event: "):
                event = line.removeprefix("event: ")
            elif line.startswith("- ") and current is not None:
                current.append(line.removeprefix("- "))
            elif line:
                raise FormatError(f"cannot read {name}, page {code}: {line[:60]!r} has no place")
        yield Page(code, group, event, tuple(parts["causes:"]), tuple(parts["do:"]))
