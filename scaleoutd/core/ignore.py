# SPDX-License-Identifier: Apache-2.0
"""Ignore patterns in the syntax of gitignore(5), as one compiled decision.

Taken over: comments, trailing blanks, `!` (take back), a leading or inner `/` (anchored to the project), a trailing `/`
(folders only), `*`, `?`, `[...]`, and `**`.  The last pattern that fits decides.  As in git, nothing below an ignored
folder is looked at, so it cannot be taken back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scaleoutd.errors import FormatError

MAX_PATTERNS = 512
MAX_PATTERN_CHARS = 256
MAX_DOUBLE_STARS = 2


@dataclass(frozen=True)
class _Rule:
    regex: re.Pattern[str]
    folders_only: bool
    ignores: bool
    whole_path: bool  # else the name alone


class IgnoreRules:
    """Decides for relative paths with `/` between components."""

    def __init__(self, patterns: Sequence[str]) -> None:
        if len(patterns) > MAX_PATTERNS:
            raise _refuse(f"{len(patterns)} patterns, at most {MAX_PATTERNS} are read")
        self._rules = [rule for rule in map(_rule, patterns) if rule is not None]

    def ignores(self, path: str, *, is_folder: bool) -> bool:
        """Whether `path` itself is ignored; its parents are the caller's walk."""
        decision = False
        name = path.rpartition("/")[2]
        for rule in self._rules:
            if rule.ignores == decision or (rule.folders_only and not is_folder):
                continue
            if rule.regex.fullmatch(path if rule.whole_path else name):
                decision = rule.ignores
        return decision


def parse_ignore_file(text: str) -> tuple[str, ...]:
    """The patterns of a .scaleoutignore file, without comments and blank lines."""
    return tuple(line for line in map(_strip, text.splitlines()) if line and not line.startswith("#"))


def unique(patterns: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(patterns))


def _strip(line: str) -> str:
    stripped = line.rstrip()
    return stripped + " " if stripped.endswith("\\") and line != stripped else stripped


def _rule(pattern: str) -> _Rule | None:
    if len(pattern) > MAX_PATTERN_CHARS or any(ord(char) < 32 for char in pattern):
        raise _refuse(f"{pattern[:40]!r} is too long or has control characters")
    ignores = not pattern.startswith("!")
    body = pattern if ignores else pattern[1:]
    folders_only = body.endswith("/")
    body = body.rstrip("/") if folders_only else body
    anchored = "/" in body
    body = body.lstrip("/")
    if not body:
        return None
    return _Rule(re.compile(_translate(body), re.DOTALL), folders_only, ignores, anchored)


def _translate(body: str) -> str:
    """The regular expression of a pattern.  `**` counts as a component of its own only."""
    components = body.split("/")
    if components.count("**") > MAX_DOUBLE_STARS:
        raise _refuse(f"{body!r} has more than {MAX_DOUBLE_STARS} times **")
    parts: list[str] = []
    for index, component in enumerate(components):
        is_last = index == len(components) - 1
        if component == "**":
            parts.append(".+" if is_last else "(?:.*/)?")
        else:
            parts.append(_translate_component(component) + ("" if is_last else "/"))
    return "".join(parts)


def _translate_component(component: str) -> str:
    """Stars but the last are atomic: taking the first place where what follows fits is always right within a component, and
    without it a pattern of many stars would be tried in exponentially many ways.
    """
    fixed: list[str] = [""]
    index = 0
    while index < len(component):
        char = component[index]
        if char == "*":
            if index == 0 or component[index - 1] != "*" or component[index - 2 : index] == "\\*":
                fixed.append("")
        elif char == "?":
            fixed[-1] += "[^/]"
        elif char == "[":
            text, index = _char_class(component, index)
            fixed[-1] += text
        elif char == "\\" and index + 1 < len(component):
            index += 1
            fixed[-1] += re.escape(component[index])
        else:
            fixed[-1] += re.escape(char)
        index += 1
    if len(fixed) == 1:
        return fixed[0]
    return fixed[0] + "".join(f"(?>[^/]*?{text})" for text in fixed[1:-1]) + "[^/]*" + fixed[-1]


def _char_class(body: str, start: int) -> tuple[str, int]:
    end = body.find("]", start + 2)
    if end < 0:
        return re.escape("["), start
    inner = body[start + 1 : end]
    negated = inner[0] in "!^"
    members = _members(inner[1:] if negated else inner)
    text = f"(?!/)[{'^' if negated else ''}{members}]"
    try:
        re.compile(text)
    except re.error as exc:
        raise _refuse(f"{body!r} has a bad character class: {exc}") from exc
    return text, end


def _members(inner: str) -> str:
    """Each character escaped: Python's own set operators (`--`, `&&`, `||`, `~~`) are plain characters here."""
    parts: list[str] = []
    index = 0
    while index < len(inner):
        if inner[index + 1 : index + 2] == "-" and index + 2 < len(inner):
            parts.append(f"{re.escape(inner[index])}-{re.escape(inner[index + 2])}")
            index += 3
        else:
            parts.append(re.escape(inner[index]))
            index += 1
    return "".join(parts)


def _refuse(cause: str) -> FormatError:
    message = f"cannot use the ignore patterns: {cause}"
    return FormatError(message, code="manifest-invalid", hint="See gitignore(5) for the syntax.")
