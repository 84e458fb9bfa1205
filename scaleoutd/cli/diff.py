# SPDX-License-Identifier: Apache-2.0
"""`scaleoutctl diff OLD NEW`: what another manifest changes, for whoever must approve it.

OLD and NEW are each a manifest file or a project folder.  A folder stands for its signed manifest; with the same folder
twice, or with `--folder`, NEW is the folder as it lies there now.  Signatures are listed by key id and not verified:
`scaleoutctl verify` does that.

The fingerprint is the first 120 bits of the manifest's SHA-256 in base32 (RFC 4648), in six groups of four letters: short enough
to read out, long enough that nobody finds another manifest for it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from scaleoutd.cli.signing import Terms, locate_project, make_manifest, now, read_folder
from scaleoutd.cli.terminal import escape
from scaleoutd.core.clock import utc_text
from scaleoutd.core.envelope import MAX_ENVELOPE_BYTES, STATEMENT_TYPE, parse_envelope
from scaleoutd.core.manifest import Expected, FileEntry, Manifest, manifest_payload, parse_manifest
from scaleoutd.durable import storage_errors
from scaleoutd.errors import ConfigError
from scaleoutd.runner.tree import Tree
from scaleoutd.runner.verify import read_envelope
from scaleoutd.step.digest import sha256_hex

DIFFERENT = 1


@dataclass(frozen=True)
class Side:
    """One of the two.  `sha256` is None for a folder that is not signed as it is."""

    name: str
    manifest: Manifest
    sha256: str | None
    signers: tuple[str, ...]


@dataclass(frozen=True)
class Change:
    """`old` and `new` in words; None where there is none.  `what` is stable: file, command, environment, …"""

    what: str
    name: str
    old: str | None
    new: str | None


@click.command("diff")
@click.argument("old", type=click.Path(exists=True, path_type=Path))
@click.argument("new", type=click.Path(exists=True, path_type=Path), required=False)
@click.option("--folder", is_flag=True, help="compare with the folder NEW as it lies there, not with its manifest")
@click.option("--json", "as_json", is_flag=True, help="one JSON object on standard output")
def diff(old: Path, new: Path | None, folder: bool, as_json: bool) -> int:
    """Say what NEW changes against OLD: files, commands, environments, data sets, signers, dates.

    Each is a manifest or a project folder.  Without NEW: the folder OLD as it lies there, against its own manifest.
    Exit status 0: no difference; 1: there are some.

    \b
    Examples:
      scaleoutctl diff my-project
      scaleoutctl diff approved.manifest.json my-project
    """
    first = read_signed(old)
    as_it_is = folder or new is None or new.resolve() == old.resolve()
    second = read_as_it_is(new or old, first.manifest) if as_it_is else read_signed(new or old)
    changes = list(compare(first, second))
    if as_json:
        sides = {"old": _told(first), "new": _told(second)}
        click.echo(json.dumps({"same": not changes, **sides, "changes": [asdict(change) for change in changes]}, indent=2))
    else:
        for line in lines_of(first, second, changes):
            click.echo(escape(line))
    return DIFFERENT if changes else 0


def fingerprint(sha256: str) -> str:
    """`ABCD EFGH IJKL MNOP QRST UVWX` of a hex digest."""
    letters = base64.b32encode(bytes.fromhex(sha256)).decode()[:24]
    return " ".join(letters[start : start + 4] for start in range(0, 24, 4))


def read_signed(path: Path) -> Side:
    """A manifest file, or the one of a project folder."""
    if path.is_dir():
        data = read_envelope(locate_project(path))
    else:
        with storage_errors(f"read {path}"), path.open("rb") as file:
            data = file.read(MAX_ENVELOPE_BYTES + 1)
    envelope = parse_envelope(data, STATEMENT_TYPE, unsigned=True)
    signers = tuple(sorted(signature.keyid for signature in envelope.signatures))
    return Side(str(path), parse_manifest(envelope.payload), sha256_hex(envelope.payload), signers)


def read_as_it_is(path: Path, before: Manifest) -> Side:
    """What `sign` would write now for the folder, all but version, dates and signatures."""
    if not path.is_dir():
        raise ConfigError(f"cannot compare with {path} as it is: it is no folder", hint="Name the project's folder.")
    project = locate_project(path)
    with Tree(project) as tree:
        content = read_folder(tree)
    terms = Terms(version=before.version, policy_sha256=before.policy_sha256, development=before.development)
    made = make_manifest(content, terms, before, now(), project.name)
    manifest = _with_dates_of(made, before)
    sha256 = sha256_hex(manifest_payload(manifest))
    return Side(f"{path} as it is", manifest, sha256 if sha256 == sha256_hex(manifest_payload(before)) else None, ())


def _with_dates_of(made: Manifest, before: Manifest) -> Manifest:
    return Manifest(**{**vars(made), "not_before_ms": before.not_before_ms, "expires_ms": before.expires_ms})


def compare(old: Side, new: Side) -> Iterator[Change]:
    """Every difference; signers only when both are signed."""
    before, after = old.manifest, new.manifest
    yield from _texts("project", {"name": before.project}, {"name": after.project})
    yield from _texts("version", {"number": str(before.version)}, {"number": str(after.version)})
    yield from _files(before, after)
    yield from _texts("command", _commands(before), _commands(after))
    yield from _texts("environment", _expected(before.environments), _expected(after.environments))
    yield from _texts("data set", _expected(before.data_sets), _expected(after.data_sets))
    yield from _texts("ignored", dict.fromkeys(before.ignored, "left out"), dict.fromkeys(after.ignored, "left out"))
    yield from _texts("policy", _optional(before.policy_sha256), _optional(after.policy_sha256))
    yield from _texts(
        "development", _optional("yes" if before.development else None), _optional("yes" if after.development else None)
    )
    dates = [{"not before": utc_text(one.not_before_ms), "expires": utc_text(one.expires_ms)} for one in (before, after)]
    yield from _texts("date", *dates)
    if old.sha256 and new.signers:
        yield from _texts("signer", dict.fromkeys(old.signers, "signed"), dict.fromkeys(new.signers, "signed"))


def _texts(what: str, old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[Change]:
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            yield Change(what, name, old.get(name), new.get(name))


def _files(before: Manifest, after: Manifest) -> Iterator[Change]:
    old = {entry.path: _entry(entry) for entry in before.files}
    new = {entry.path: _entry(entry) for entry in after.files}
    yield from _texts("file", old, new)


def _entry(entry: FileEntry) -> str:
    return f"{entry.size_bytes} bytes, sha256 {entry.sha256[:16]}…{', executable' if entry.executable else ''}"


def _commands(manifest: Manifest) -> dict[str, str]:
    found = {step: " ".join(words) for step, words in manifest.steps.items()}
    return found | ({"startup file": manifest.startup_file} if manifest.startup_file else {})


def _expected(items: Mapping[str, Expected]) -> dict[str, str]:
    return {name: item.sha256 or "any content" for name, item in items.items()}


def _optional(value: str | None) -> dict[str, str]:
    return {} if value is None else {"": value}


def _told(side: Side) -> dict[str, Any]:
    return {
        "name": side.name,
        "project": side.manifest.project,
        "version": side.manifest.version,
        "sha256": side.sha256,
        "fingerprint": fingerprint(side.sha256) if side.sha256 else None,
        "signers": list(side.signers),
    }


def lines_of(old: Side, new: Side, changes: list[Change]) -> Iterator[str]:
    for mark, side in (("old", old), ("new", new)):
        shown = fingerprint(side.sha256) if side.sha256 else "not signed as it is"
        yield f"{mark}  {side.manifest.project} version {side.manifest.version}  {shown}  {side.name}"
    if not changes:
        yield "no difference"
    for change in changes:
        name = f"{change.what} {change.name}".rstrip()
        if change.old is None:
            yield f"  + {name}: {change.new}"
        elif change.new is None:
            yield f"  - {name}: was {change.old}"
        else:
            yield f"  ~ {name}: {change.old} → {change.new}"
    if new.sha256 and changes:
        yield "Read the fingerprint of the new one out to who signed it; theirs is printed by the same command."
