# SPDX-License-Identifier: Apache-2.0
"""Strict JSON in, canonical JSON out.

Rules of `parse` (RFC 8259, RFC 7493 I-JSON):
  1. UTF-8 without a byte-order mark, at most `max_bytes` bytes and `MAX_DEPTH` levels.
  2. No duplicate key, no NaN or infinity, no lone surrogate.
  3. Integers lie within ±(2^53 - 1); floats are refused unless the caller allows them.
  4. At most `max_values` values: three bytes, "[],", become seventy in memory.

`canonical` writes RFC 8785 (JCS) bytes for values without floats.  Floats are left out on purpose: no signed or chained
document of this project has one, and ECMAScript's number form is the only hard part of that RFC.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from scaleoutd.errors import FormatError

Json = Any  # None | bool | int | float | str | list[Json] | dict[str, Json]

MAX_SAFE_INTEGER = 2**53 - 1
MAX_DEPTH = 32
_MAX_CAUSE_CHARS = 400
MAX_VALUES = 2_000_000

# Possessive and with an optional end, so that it is linear on any bytes: a string that is never closed reaches to the end.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_NOT_SIGNS = bytes(set(range(256)) - set(b"[{,"))
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
# It escapes exactly what RFC 8785 section 3.2.2.2 asks for when ensure_ascii is off.  One for all: json.dumps makes one a call.
_literal = json.JSONEncoder(ensure_ascii=False).encode


def parse(data: bytes, *, max_bytes: int, allow_floats: bool = False, what: str = "JSON", max_values: int = MAX_VALUES) -> Json:
    """The value of `data`; FormatError `json-invalid` for everything that is not strict."""
    if len(data) > max_bytes:
        raise _refuse(what, f"it has {len(data)} bytes, at most {max_bytes} are read")
    if _depth_of(data) > MAX_DEPTH:
        raise _refuse(what, f"it is nested deeper than {MAX_DEPTH} levels")
    if _values_of(data, max_values) > max_values:
        raise _refuse(what, f"it holds more than {max_values} values")
    try:
        text = data.decode("utf-8")
        value = json.loads(
            text,
            object_pairs_hook=_no_duplicates,
            parse_constant=_no_constant,
            parse_int=_safe_int,
            parse_float=_finite_float if allow_floats else _no_float,
        )
    except UnicodeDecodeError as exc:
        raise _refuse(what, f"byte {exc.start} is not UTF-8") from exc
    except (ValueError, RecursionError) as exc:
        raise _refuse(what, str(exc) or "nested too deep") from exc
    _check_strings(value, what)
    return value


def canonical(value: Json) -> bytes:
    """RFC 8785 bytes of `value`; FormatError when it holds a float, a big integer, or a lone surrogate."""
    parts: list[str] = []
    _write(value, parts, 0)
    try:
        return "".join(parts).encode("utf-8")
    except UnicodeEncodeError as exc:
        raise _refuse("value", "a string holds a lone surrogate") from exc


def parse_canonical(data: bytes, *, max_bytes: int, what: str = "JSON") -> Json:
    """As `parse`, and the bytes must be the canonical form of their value: two readers cannot see two documents."""
    value = parse(data, max_bytes=max_bytes, what=what)
    if canonical(value) != data:
        raise _refuse(what, "it is not in canonical form (RFC 8785)")
    return value


def _write(value: Json, parts: list[str], depth: int) -> None:
    if depth > MAX_DEPTH:
        raise _refuse("value", f"it is nested deeper than {MAX_DEPTH} levels")
    if value is None or isinstance(value, bool | str):
        parts.append(_literal(value))
    elif isinstance(value, int):
        if abs(value) > MAX_SAFE_INTEGER:
            raise _refuse("value", f"integer {value} is outside ±(2^53 - 1)")
        parts.append(str(value))
    elif isinstance(value, Mapping):
        _write_object(value, parts, depth)
    elif isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        parts.append("[")
        for index, item in enumerate(value):
            if index:
                parts.append(",")
            _write(item, parts, depth + 1)
        parts.append("]")
    else:
        raise _refuse("value", f"a {type(value).__name__} has no canonical form here")


def _write_object(value: Mapping[Any, Json], parts: list[str], depth: int) -> None:
    for key in value:
        if not isinstance(key, str):
            raise _refuse("value", f"a key is a {type(key).__name__}, not a string")
    parts.append("{")
    # RFC 8785 section 3.2.3: keys are sorted by UTF-16 code units, not by code points.
    for index, key in enumerate(sorted(value, key=lambda k: k.encode("utf-16-be", "surrogatepass"))):
        if index:
            parts.append(",")
        parts.append(_literal(key))
        parts.append(":")
        _write(value[key], parts, depth + 1)
    parts.append("}")


def _refuse(what: str, cause: str) -> FormatError:
    message = f"cannot read {what}: {cause[:_MAX_CAUSE_CHARS]}"  # a key or number that it names can be as large as the text
    return FormatError(message, code="json-invalid", hint="Write it again with a strict JSON writer.")


def _no_duplicates(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice!r} appears twice")
    return result


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _no_float(text: str) -> NoReturn:
    raise ValueError(f"{text} is not an integer")


def _safe_int(text: str) -> int:
    if len(text) > 17 or abs(int(text)) > MAX_SAFE_INTEGER:
        raise ValueError(f"integer {text[:24]} is outside ±(2^53 - 1)")
    return int(text)


def _finite_float(text: str) -> float:
    value = float(text) if len(text) <= 400 else float("inf")
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"number {text[:24]} is too large")
    return value


def _depth_of(data: bytes) -> int:
    """Deepest nesting, counted on the bytes so that the recursive parser never sees a bomb; 0 for a scalar."""
    depth = deepest = 0
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return 0
    # What stands in a string that is never closed is not counted: the parser stops where that string begins.
    for byte in _STRING.sub(b"", data).translate(None, _NOT_BRACKETS):
        if byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        else:
            depth -= 1
    return deepest


def _values_of(data: bytes, bound: int) -> int:
    """At least as many as the values in `data`, exact only above `bound`; what stands in strings does not count."""
    count = data.count(b",") + data.count(b"[") + data.count(b"{")
    return count if count <= bound else len(_STRING.sub(b"", data).translate(None, _NOT_SIGNS))


def _check_strings(value: Json, what: str) -> None:
    # json.loads turns "\ud800" into a lone surrogate, which is no Unicode text (RFC 7493 section 2.1).
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode("utf-8")
            except UnicodeEncodeError as exc:
                raise _refuse(what, "a string holds a lone surrogate") from exc
    elif isinstance(value, list):
        for item in value:
            _check_strings(item, what)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_strings(key, what)
            _check_strings(item, what)
