# SPDX-License-Identifier: Apache-2.0
"""`client_settings` of a combiner against the policy's schema: the settings are a channel into the node (design-review F2).

A small part of JSON Schema (2020-12): type, properties, required, additionalProperties, items, minItems, maxItems, enum,
minimum, maximum, minLength, maxLength.  Any other keyword is refused when the policy is read, so that none is silently
without effect.  Unlike JSON Schema, an object with `properties` takes no others unless `additionalProperties: true`.
Bounds may be written as text ("0.001"): the policy is canonical JSON, which has no floats.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation

from scaleoutd.core import strictjson
from scaleoutd.core.strictjson import Json
from scaleoutd.errors import FormatError, PolicyDeniedError

MAX_SETTINGS_BYTES = 32 * 1024

_COUNTS = ("minItems", "maxItems", "minLength", "maxLength")
_NUMBERS = ("minimum", "maximum")
_KEYWORDS = ("type", "properties", "required", "additionalProperties", "items", "enum", "description", *_COUNTS, *_NUMBERS)
_TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")


def check_schema(schema: Json, where: str = "settings_schema") -> None:
    """FormatError `record-invalid` when the schema uses what is not in the part above."""
    if not isinstance(schema, Mapping):
        raise _bad_schema(where, "must be an object")
    for key, value in schema.items():
        if key not in _KEYWORDS:
            raise _bad_schema(f"{where}.{key}", f"is unknown; known are {', '.join(sorted(_KEYWORDS))}")
        if key == "type" and value not in _TYPES:
            raise _bad_schema(f"{where}.type", f"must be one of {', '.join(_TYPES)}")
        if key in _COUNTS and (type(value) is not int or value < 0):
            raise _bad_schema(f"{where}.{key}", "must be a natural number")
        if key in _NUMBERS:
            _bound(value, f"{where}.{key}")
        if key in ("required", "enum") and not isinstance(value, list | tuple):
            raise _bad_schema(f"{where}.{key}", "must be an array")
        if key == "required" and not all(isinstance(name, str) for name in value):
            raise _bad_schema(f"{where}.{key}", "must be an array of names")
        if key == "additionalProperties" and not isinstance(value, bool):
            raise _bad_schema(f"{where}.{key}", "must be true or false")
        if key == "items":
            check_schema(value, f"{where}.items")
    properties = schema.get("properties", {})
    if not isinstance(properties, Mapping):
        raise _bad_schema(f"{where}.properties", "must be an object")
    for name, item in properties.items():
        check_schema(item, f"{where}.properties.{name}")


def check_settings(text: str, schema: Mapping[str, Json] | None) -> str:
    """The settings as they may go to the step, as JSON text; PolicyDeniedError `settings-denied` otherwise.

    Without a schema only empty settings pass; the schema `{}` lets every object pass.
    """
    if not text.strip():
        return ""
    try:
        value = strictjson.parse(text.encode("utf-8"), max_bytes=MAX_SETTINGS_BYTES, allow_floats=True, what="client_settings")
    except (FormatError, UnicodeEncodeError) as exc:
        raise _denied("they are not strict JSON" if isinstance(exc, UnicodeEncodeError) else exc.message) from exc
    if value is None or value == {}:
        return text
    if not isinstance(value, dict):
        raise _denied(f"they must be a JSON object, found {_shown(value)}")
    if schema is None:
        raise _denied("the policy has no settings_schema, so only empty settings pass")
    _check(value, schema, "settings")
    return text


def _check(value: Json, schema: Mapping[str, Json], where: str) -> None:
    kind = schema.get("type")
    if kind is not None and not _is(value, kind):
        raise _denied(f"{where} must be of type {kind}, found {_shown(value)}")
    if "enum" in schema and not any(type(value) is type(item) and value == item for item in schema["enum"]):
        raise _denied(f"{where} must be one of {_shown(list(schema['enum']))}, found {_shown(value)}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        _check_range(Decimal(str(value)), schema.get("minimum"), schema.get("maximum"), where)
    elif isinstance(value, str):
        _check_range(Decimal(len(value)), schema.get("minLength"), schema.get("maxLength"), f"the length of {where}")
    elif isinstance(value, list):
        _check_range(Decimal(len(value)), schema.get("minItems"), schema.get("maxItems"), f"the length of {where}")
        for index, item in enumerate(value):
            _check(item, schema.get("items", {}), f"{where}[{index}]")
    elif isinstance(value, dict):
        _check_object(value, schema, where)


def _check_object(value: dict[str, Json], schema: Mapping[str, Json], where: str) -> None:
    properties = schema.get("properties", {})
    closed = not schema.get("additionalProperties", "properties" not in schema)
    for name in schema.get("required", ()):
        if name not in value:
            raise _denied(f"{where}.{name} is missing")
    for name, item in value.items():
        if name in properties:
            _check(item, properties[name], f"{where}.{name[:64]}")
        elif closed:
            raise _denied(f"{where}.{name[:64]} is unknown")


def _check_range(found: Decimal, low: Json, high: Json, where: str) -> None:
    if low is not None and found < _bound(low, where):
        raise _denied(f"{where} must be at least {low}, found {found}")
    if high is not None and found > _bound(high, where):
        raise _denied(f"{where} must be at most {high}, found {found}")


def _bound(value: Json, where: str) -> Decimal:
    if type(value) is int or isinstance(value, str):
        try:
            number = Decimal(value)
        except InvalidOperation:
            number = Decimal("NaN")
        if number.is_finite():
            return number
    raise _bad_schema(where, "must be a number")


def _is(value: Json, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "number":
        return isinstance(value, int | float)
    types: dict[str, type] = {"object": dict, "array": list, "string": str, "integer": int, "null": type(None)}
    return kind in types and isinstance(value, types[kind])


def _shown(value: Json) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _denied(cause: str) -> PolicyDeniedError:
    return PolicyDeniedError(
        f"cannot accept client_settings: {cause[:1000]}",
        code="settings-denied",
        hint="Allow them in the policy's settings_schema, or change them at the server.",
    )


def _bad_schema(where: str, cause: str) -> FormatError:
    return FormatError(f"cannot read {where[:400]}: it {cause}", code="record-invalid")
