# SPDX-License-Identifier: Apache-2.0
"""YAML for people, read so that it means one thing only.

Rules:
  1. One document.  No alias, anchor, tag, merge key, directive or complex key; no key twice; at most `MAX_DEPTH` levels.
  2. A plain `true` or `false` is a boolean, a plain decimal integer is an integer, a plain `null`, `~` or nothing is null;
     all else is text.  YAML 1.1's `yes`, `on`, `0o17`, `1:30` and dates stay text, and the schema then refuses them.
  3. A null value in a mapping is the same as leaving the key out.
  4. Errors carry file, line and column; an unknown key carries the nearest known one.
  5. A text is Unicode: no lone surrogate, which YAML's escapes could make and UTF-8 cannot hold.
  6. The paths of all values have at most `MAX_PATH_CHARS` characters together: long keys above many values would need gigabytes.

PyYAML scans and parses; its constructors are not used.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import yaml

from scaleoutd.core.records import decode
from scaleoutd.core.strictjson import MAX_DEPTH, MAX_SAFE_INTEGER, Json
from scaleoutd.errors import ConfigError, FormatError

T = TypeVar("T")

MAX_BYTES = 1024 * 1024
MAX_PATH_CHARS = 16 * 1024 * 1024
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,15})")


@dataclass(frozen=True)
class Position:
    """Counted from 1."""

    line: int
    column: int

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}"


@dataclass(frozen=True)
class YamlDocument:
    """The value, and where each part of it stands: `positions` by path, as in "policy.limits.cpu_s" or "policy.tasks[1]"."""

    value: Json
    positions: Mapping[str, Position]
    name: str  # of the file
    root: str  # head of every path

    def refuse(self, message: str, path: str = "", hint: str = "") -> ConfigError:
        """A ConfigError `yaml-invalid` that points to `path`, or to the part of it that is there."""
        position = self.positions.get(path) or self._nearest(path)
        return ConfigError(f"cannot read {self.name}: {position}: {message}", code="yaml-invalid", hint=hint)

    def _nearest(self, path: str) -> Position:
        within = [known for known in self.positions if path.startswith((known + ".", known + "["))]
        return self.positions[max(within, key=len)] if within else Position(1, 1)


def load_yaml(data: bytes, *, name: str, root: str) -> YamlDocument:
    """Reads one mapping; ConfigError `yaml-invalid` with line and column for everything the rules forbid."""
    if len(data) > MAX_BYTES:
        raise _refuse(name, None, f"it has {len(data)} bytes, at most {MAX_BYTES} are read")
    try:
        text = data.decode("utf-8")
        loader = yaml.SafeLoader(text)
    except UnicodeDecodeError as exc:
        raise _refuse(name, None, f"byte {exc.start} is not UTF-8") from exc
    except yaml.reader.ReaderError as exc:
        raise _refuse(name, _position(text, exc.position), f"the character U+{int(exc.character):04X} is not allowed") from exc
    try:
        reader = _Reader(_events(loader), name)
        value = reader.document(root)
    except yaml.MarkedYAMLError as exc:
        raise _refuse(name, exc.problem_mark or exc.context_mark, exc.problem or "syntax error") from exc
    except (ValueError, OverflowError) as exc:
        # PyYAML converts two kinds of numbers itself and lets the failure through: "\\U00110000" and a long %YAML version.
        raise _refuse(name, loader.get_mark(), f"a number in an escape or directive is out of range: {exc}") from exc
    return YamlDocument(value, reader.positions, name, root)


def decode_yaml(cls: type[T], document: YamlDocument, value: Json | None = None) -> T:
    """The record of a document (or of `value`, what its owner made of it), with errors that point into the file."""
    try:
        return decode(cls, document.value if value is None else value, document.root)
    except FormatError as exc:
        path, _, cause = exc.message.removeprefix("cannot read ").partition(": it ")
        raise document.refuse(f"{path} {cause}", path, _suggestion(path, cause)) from exc


def map_scalars(value: Json, path: str, change: Callable[[str, str, Json], Json]) -> Json:
    """`value` with each scalar replaced by `change(path, key, scalar)`; `key` is the nearest mapping key above it."""
    return _map_scalars(value, path, "", change)


def _map_scalars(value: Json, path: str, key: str, change: Callable[[str, str, Json], Json]) -> Json:
    if isinstance(value, dict):
        return {name: _map_scalars(item, f"{path}.{name}", name, change) for name, item in value.items()}
    if isinstance(value, list):
        return [_map_scalars(item, f"{path}[{index}]", key, change) for index, item in enumerate(value)]
    return change(path, key, value)


def _suggestion(path: str, cause: str) -> str:
    known = cause.partition("known are ")[2]
    if not known:
        return ""
    near = difflib.get_close_matches(path.rpartition(".")[2], known.split(", "), n=1, cutoff=0.5)
    return f"Did you mean {near[0]}?" if near else "Remove the key."


def _events(loader: yaml.SafeLoader) -> Iterator[yaml.Event]:
    while loader.check_event():
        yield loader.get_event()  # type: ignore[no-untyped-call]


class _Reader:
    """Turns PyYAML's events into values; each kind of event that the rules forbid is refused where it stands."""

    def __init__(self, events: Iterator[yaml.Event], name: str) -> None:
        self.positions: dict[str, Position] = {}
        self._events = events
        self._name = name
        self._path_chars = 0

    def document(self, root: str) -> Json:
        next(self._events)  # stream start
        start = next(self._events)
        if isinstance(start, yaml.StreamEndEvent):
            raise _refuse(self._name, start.start_mark, "the file is empty")
        if isinstance(start, yaml.DocumentStartEvent) and (start.version or start.tags):
            raise _refuse(self._name, start.start_mark, "directives are not allowed")
        first = next(self._events)
        if not isinstance(first, yaml.MappingStartEvent):
            raise _refuse(self._name, first.start_mark, "a mapping (key: value) is expected")
        value = self._value(first, root, 1)
        next(self._events)  # document end
        rest = next(self._events)
        if not isinstance(rest, yaml.StreamEndEvent):
            raise _refuse(self._name, rest.start_mark, "a second document is not allowed")
        return value

    def _value(self, event: yaml.Event, path: str, depth: int) -> Json:
        mark = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            raise _refuse(self._name, mark, "an alias (*) is not allowed; write the value out")
        if getattr(event, "anchor", None) is not None:
            raise _refuse(self._name, mark, "an anchor (&) is not allowed; write the value out")
        if getattr(event, "tag", None) is not None:
            raise _refuse(self._name, mark, "a tag (!) is not allowed")
        if depth > MAX_DEPTH:
            raise _refuse(self._name, mark, f"more than {MAX_DEPTH} levels")
        self._path_chars += len(path)
        if self._path_chars > MAX_PATH_CHARS:
            raise _refuse(self._name, mark, "its keys are too long for so many values")
        self.positions.setdefault(path, _at(mark))
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(path, depth)
        return self._mapping(path, depth)

    def _sequence(self, path: str, depth: int) -> list[Json]:
        items: list[Json] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._value(event, f"{path}[{len(items)}]", depth + 1))
        return items

    def _mapping(self, path: str, depth: int) -> dict[str, Json]:
        result: dict[str, Json] = {}
        seen: set[str] = set()
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._key(event)
            if key in seen:
                raise _refuse(self._name, event.start_mark, f"the key {key[:64]!r} appears twice")
            seen.add(key)
            self.positions[f"{path}.{key}"] = _at(event.start_mark)
            value = self._value(next(self._events), f"{path}.{key}", depth + 1)
            if value is not None:
                result[key] = value
        return result

    def _key(self, event: yaml.Event) -> str:
        if not isinstance(event, yaml.ScalarEvent) or event.anchor is not None or event.tag is not None:
            raise _refuse(self._name, event.start_mark, "a key is plain text, without anchor, alias or tag")
        if event.value == "<<" and event.style is None:
            raise _refuse(self._name, event.start_mark, "a merge key (<<) is not allowed")
        return self._text(event)

    def _text(self, event: yaml.ScalarEvent) -> str:
        text = str(event.value)
        if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
            raise _refuse(self._name, event.start_mark, "a text holds a lone surrogate")
        return text

    def _scalar(self, event: yaml.ScalarEvent) -> Json:
        text = self._text(event)
        if event.style is not None:
            return text
        if text in ("", "~", "null"):
            return None
        if text in ("true", "false"):
            return text == "true"
        if _INTEGER.fullmatch(text) and abs(int(text)) <= MAX_SAFE_INTEGER:
            return int(text)
        return text


def _position(text: str, index: int) -> Position:
    before = text[:index]
    return Position(before.count("\n") + 1, index - before.rfind("\n"))


def _at(mark: Any) -> Position:
    """Of PyYAML's mark, which counts from 0; its stubs have two kinds of it and allow None."""
    if isinstance(mark, Position):
        return mark
    return Position(mark.line + 1, mark.column + 1) if mark is not None else Position(1, 1)


def _refuse(name: str, mark: Any, cause: str) -> ConfigError:
    where = f"{_at(mark)}: " if mark is not None else ""
    message = f"cannot read {name}: {where}{cause[:400]}"
    return ConfigError(message, code="yaml-invalid", hint="Keep to plain YAML: keys, values, lists.")
