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


@dataclass(frozen=True)
class _Rule:
    regex: re.Pattern[str]
    folders_only: bool
    ignores: bool


class IgnoreRules:
    """Decides for relative paths with `/` between components."""

    def __init__(self, patterns: Sequence[str]) -> None:
        if len(patterns) > MAX_PATTERNS:
            raise _refuse(f"{len(patterns)} patterns, at most {MAX_PATTERNS} are read")
        self._rules = [rule for rule in map(_rule, patterns) if rule is not None]

    def ignores(self, path: str, *, is_folder: bool) -> bool:
        """Whether `path` itself is ignored; its parents are the caller's walk."""
        decision = False
        for rule in self._rules:
            if rule.ignores != decision and (is_folder or not rule.folders_only) and rule.regex.fullmatch(path):
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
    text = _translate(body)
    return _Rule(re.compile(text if anchored else f"(?:.*/)?{text}", re.DOTALL), folders_only, ignores)


def _translate(body: str) -> str:
    parts: list[str] = []
    index = 0
    while index < len(body):
        char = body[index]
        if body.startswith("**/", index) and (index == 0 or body[index - 1] == "/"):
            parts.append("(?:.*/)?")
            index += 3
            continue
        if body[index:] == "**" and (index == 0 or body[index - 1] == "/"):
            parts.append(".+")
            break
        if char == "*":
            # Runs of stars would make the regular expression slow: one means the same.
            while index + 1 < len(body) and body[index + 1] == "*":
                index += 1
            parts.append("[^/]*")
        elif char == "?":
            parts.append("[^/]")
        elif char == "[":
            text, index = _char_class(body, index)
            parts.append(text)
        elif char == "\\" and index + 1 < len(body):
            index += 1
            parts.append(re.escape(body[index]))
        else:
            parts.append(re.escape(char))
        index += 1
    return "".join(parts)


def _char_class(body: str, start: int) -> tuple[str, int]:
    end = body.find("]", start + 2)
    if end < 0:
        return re.escape("["), start
    inner = body[start + 1 : end]
    negated = inner[0] in "!^"
    members = (inner[1:] if negated else inner).replace("\\", "\\\\").replace("[", "\\[").replace("^", "\\^").replace("&", "\\&")
    text = f"(?!/)[{'^' if negated else ''}{members}]"
    try:
        re.compile(text)
    except re.error as exc:
        raise _refuse(f"{body!r} has a bad character class: {exc}") from exc
    return text, end


def _refuse(cause: str) -> FormatError:
    message = f"cannot use the ignore patterns: {cause}"
    return FormatError(message, code="manifest-invalid", hint="See gitignore(5) for the syntax.")
