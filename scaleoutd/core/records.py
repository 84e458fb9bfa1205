# SPDX-License-Identifier: Apache-2.0
"""Frozen dataclasses to and from JSON values, strictly.

A document or message of this project is a frozen dataclass whose annotations are its schema:

    str, int, bool, Json      `bool` is never an integer, an integer never a bool
    Literal["a", "b"]         one of these strings
    X | None                  may be left out; None is never written
    tuple[X, ...]             a JSON array
    Mapping[str, X]           a JSON object with free keys
    another such dataclass    a JSON object with exactly its fields
    Annotated[str, Text(...)] / Annotated[int, Range(...)] / Annotated[tuple[...] or Mapping[...], Count(...)]

Unknown keys, missing keys and wrong types are refused with the path to them: "manifest.files[3].size_bytes: …".
`metadata={"json": "name"}` on a field gives it another name on the wire (in-toto's `_type`).
"""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, cast

from scaleoutd.core.strictjson import MAX_SAFE_INTEGER, Json
from scaleoutd.errors import FormatError

T = TypeVar("T")

DEFAULT_MAX_TEXT = 4096


@dataclasses.dataclass(frozen=True)
class Text:
    """Bounds of a string: characters, and a regular expression that the whole of it must match, with what that means in words."""

    max_chars: int = DEFAULT_MAX_TEXT
    pattern: str = ""
    min_chars: int = 0
    words: str = ""


@dataclasses.dataclass(frozen=True)
class Range:
    """Inclusive bounds of an integer."""

    low: int = 0
    high: int = MAX_SAFE_INTEGER


@dataclasses.dataclass(frozen=True)
class Count:
    """Inclusive bounds of the number of items."""

    low: int = 0
    high: int = 100_000


Natural = Annotated[int, Range(0, MAX_SAFE_INTEGER)]
Positive = Annotated[int, Range(1, MAX_SAFE_INTEGER)]
Sha256Hex = Annotated[str, Text(64, r"[0-9a-f]{64}")]
Name = Annotated[str, Text(128, r"[A-Za-z0-9][A-Za-z0-9._:@+-]*")]


def encode(record: Any) -> dict[str, Json]:
    """The JSON object of a dataclass instance; fields that are None are left out."""
    result: dict[str, Json] = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if value is not None:
            result[field.metadata.get("json", field.name)] = _encode_value(value)
    return result


def decode(cls: type[T], value: Json, where: str = "") -> T:
    """An instance of `cls` from a JSON value; FormatError `record-invalid` names the path to what is wrong."""
    where = where or cls.__name__
    if not isinstance(value, dict):
        raise _refuse(where, f"must be an object, found {_kind(value)}")
    fields = _fields(cast("Any", cls))
    known = {key for _, key, _, _ in fields}
    # Before what is missing: a misspelt key is both, and its own name says more.
    unknown = sorted(set(value) - known)
    if unknown:
        raise _refuse(f"{where}.{unknown[0][:64]}", f"is unknown; known are {', '.join(sorted(known))}")
    values: dict[str, Any] = {}
    for name, key, annotation, required in fields:
        if key in value:
            values[name] = _decode_value(annotation, value[key], f"{where}.{key}")
        elif required:
            raise _refuse(f"{where}.{key}", "is missing")
    return cls(**values)


def learn(*classes: type[Any]) -> None:
    """Reads the annotations of `classes` and of the records in them now: the first decoding costs milliseconds otherwise."""
    for cls in classes:
        for _, _, annotation, _ in _fields(cast("Any", cls)):
            learn(*_records_in(annotation))
            for pattern in _patterns_in(annotation):
                re.compile(pattern)  # kept by re; each takes a quarter of a millisecond


def _records_in(annotation: Any) -> list[type[Any]]:
    if dataclasses.is_dataclass(annotation):
        return [cast("type[Any]", annotation)]
    return [record for part in typing.get_args(annotation) for record in _records_in(part)]


def _patterns_in(annotation: Any) -> list[str]:
    if isinstance(annotation, Text):
        return [annotation.pattern] if annotation.pattern else []
    return [pattern for part in typing.get_args(annotation) for pattern in _patterns_in(part)]


@functools.cache
def _fields(cls: type[Any]) -> tuple[tuple[str, str, Any, bool], ...]:
    hints = typing.get_type_hints(cls, include_extras=True)
    result = []
    for field in dataclasses.fields(cls):
        optional = (
            field.default is not dataclasses.MISSING
            or field.default_factory is not dataclasses.MISSING
            or type(None) in typing.get_args(hints[field.name])
        )
        result.append((field.name, field.metadata.get("json", field.name), hints[field.name], not optional))
    return tuple(result)


def _encode_value(value: Any) -> Json:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return encode(value)
    if isinstance(value, tuple | list):
        return [_encode_value(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _encode_value(item) for key, item in value.items()}
    return value


def _decode_value(annotation: Any, value: Json, where: str) -> Any:
    bounds: tuple[Any, ...] = ()
    if typing.get_origin(annotation) is Annotated:
        annotation, *rest = typing.get_args(annotation)
        bounds = tuple(rest)
        if typing.get_origin(annotation) is Annotated:
            annotation, *inner = typing.get_args(annotation)
            bounds = tuple(inner) + bounds
    origin = typing.get_origin(annotation)
    if origin in (types.UnionType, typing.Union):
        return _decode_optional(annotation, value, where)
    if origin is Literal:
        if value not in typing.get_args(annotation) or isinstance(value, bool):
            wanted = ", ".join(repr(choice) for choice in typing.get_args(annotation))
            raise _refuse(where, f"must be one of {wanted}, found {_show(value)}")
        return value
    if origin is tuple:
        return _decode_array(annotation, value, where, bounds)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return _decode_map(annotation, value, where, bounds)
    if dataclasses.is_dataclass(annotation):
        return decode(cast("type[Any]", annotation), value, where)
    return _decode_scalar(annotation, value, where, bounds)


def _decode_optional(annotation: Any, value: Json, where: str) -> Any:
    choices = [choice for choice in typing.get_args(annotation) if choice is not type(None)]
    if len(choices) != 1:
        raise TypeError(f"{where}: only X | None is a schema")
    return _decode_value(choices[0], value, where)


def _decode_array(annotation: Any, value: Json, where: str, bounds: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _refuse(where, f"must be an array, found {_kind(value)}")
    _check_count(len(value), where, bounds)
    item_type = typing.get_args(annotation)[0]
    return tuple(_decode_value(item_type, item, f"{where}[{index}]") for index, item in enumerate(value))


def _decode_map(annotation: Any, value: Json, where: str, bounds: tuple[Any, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _refuse(where, f"must be an object, found {_kind(value)}")
    _check_count(len(value), where, bounds)
    item_type = typing.get_args(annotation)[1]
    return {key: _decode_value(item_type, item, f"{where}.{key[:64]}") for key, item in value.items()}


def _check_count(count: int, where: str, bounds: tuple[Any, ...]) -> None:
    limit = next((bound for bound in bounds if isinstance(bound, Count)), Count())
    if not limit.low <= count <= limit.high:
        raise _refuse(where, f"must have {limit.low} to {limit.high} items, found {count}")


def _decode_scalar(annotation: Any, value: Json, where: str, bounds: tuple[Any, ...]) -> Any:
    if annotation is Any:
        return value
    if annotation is bool:
        if not isinstance(value, bool):
            raise _refuse(where, f"must be true or false, found {_kind(value)}")
        return value
    if annotation is int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise _refuse(where, f"must be an integer, found {_kind(value)}")
        limit = next((bound for bound in bounds if isinstance(bound, Range)), Range(-MAX_SAFE_INTEGER))
        if not limit.low <= value <= limit.high:
            raise _refuse(where, f"must lie within {limit.low} and {limit.high}, found {value}")
        return value
    if annotation is str:
        return _decode_text(value, where, bounds)
    raise TypeError(f"{where}: {annotation!r} is no schema")


def _decode_text(value: Json, where: str, bounds: tuple[Any, ...]) -> str:
    if not isinstance(value, str):
        raise _refuse(where, f"must be a string, found {_kind(value)}")
    limit = next((bound for bound in bounds if isinstance(bound, Text)), Text())
    if not limit.min_chars <= len(value) <= limit.max_chars:
        raise _refuse(where, f"must have {limit.min_chars} to {limit.max_chars} characters, found {len(value)}")
    if limit.pattern and not re.fullmatch(limit.pattern, value):
        raise _refuse(where, f"must {limit.words or f'match {limit.pattern}'}, found {_show(value)}")
    return value


def _refuse(where: str, cause: str) -> FormatError:
    return FormatError(f"cannot read {where}: it {cause}", code="record-invalid", hint="")


def _kind(value: Json) -> str:
    names = {bool: "a boolean", int: "an integer", float: "a float", str: "a string", list: "an array", dict: "an object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _show(value: Json) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
