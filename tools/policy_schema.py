#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The policy's schema, from its one source scaleoutd/core/policy.py.

    tools/policy_schema.py --write     writes policy/schema/policy.schema.json (JSON Schema 2020-12), for editors
    tools/policy_schema.py --keys      prints every key with type and default, as scaleoutd-policy(5) heads its entries;
                                       --node those of scaleoutd.yaml(5)

A test compares both with what is committed (tests/packaging/test_manual.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scaleoutd.core.nodeconfig import NodeConfig  # noqa: E402
from scaleoutd.core.plan import HostPath  # noqa: E402
from scaleoutd.core.policy import Policy  # noqa: E402
from scaleoutd.core.records import Count, Range, Text  # noqa: E402
from scaleoutd.core.strictjson import MAX_SAFE_INTEGER  # noqa: E402

SCHEMA = ROOT / "policy/schema/policy.schema.json"
NOT_WRITTEN = {"development"}  # refused in a file
SIZE = {"type": ["integer", "string"], "minimum": 1, "pattern": "^[0-9]{1,12} ?(B|kB|MB|GB|TB|KiB|MiB|GiB|TiB)?$"}
DURATION = {"type": ["integer", "string"], "minimum": 1, "pattern": "^[0-9]{1,12} ?[smhd]?$"}
ID = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_STEPS = ((1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB"))
_TIMES = ((3600, "h"), (60, "m"), (1, "s"))
_INTERVALS = ((60_000, "m"), (1000, "s"), (1, "ms"))


def schema(cls: type[Any] = Policy) -> dict[str, Any]:
    """The schema of a record: an object with exactly its fields."""
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = [field for field in dataclasses.fields(cls) if field.name not in NOT_WRITTEN]
    found: dict[str, Any] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {field.name: _with_default(field, value_schema(field.name, hints[field.name])) for field in fields},
    }
    if needed := [field.name for field in fields if default_of(field) is dataclasses.MISSING]:
        found["required"] = needed
    return found


def value_schema(name: str, annotation: Any) -> dict[str, Any]:
    annotation, bounds = bare(annotation)
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        (inner,) = (part for part in typing.get_args(annotation) if part is not type(None))
        return {"anyOf": [value_schema(name, inner), {"type": "null"}]}
    if dataclasses.is_dataclass(annotation):
        return schema(typing.cast("type[Any]", annotation))
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return {"enum": list(typing.get_args(annotation))}
    if origin is tuple:
        found: dict[str, Any] = {"type": "array", "items": value_schema("", typing.get_args(annotation)[0])}
        return found | ({"minItems": bounds.low, "maxItems": bounds.high} if isinstance(bounds, Count) else {})
    if origin in (Mapping, typing.get_origin(Mapping[str, str])):
        item = typing.get_args(annotation)[1]
        if not dataclasses.is_dataclass(item):
            return {"type": "object"}
        return {"type": "object", "propertyNames": {"pattern": ID}, "additionalProperties": value_schema("", item)}
    if annotation is bool:
        return {"type": "boolean"}
    if annotation is int:
        if name.endswith("_bytes"):
            return dict(SIZE)
        if name.endswith("_s"):
            return dict(DURATION)
        low, high = (bounds.low, bounds.high) if isinstance(bounds, Range) else (-MAX_SAFE_INTEGER, MAX_SAFE_INTEGER)
        return {"type": "integer", "minimum": low, **({} if high == MAX_SAFE_INTEGER else {"maximum": high})}
    text = bounds if isinstance(bounds, Text) else Text()
    limits: dict[str, Any] = {"type": "string", "maxLength": text.max_chars}
    if text.min_chars:
        limits["minLength"] = text.min_chars
    if text.pattern:
        limits["pattern"] = f"^(?:{text.pattern})$"
    return limits


def bare(annotation: Any) -> tuple[Any, Any]:
    """The annotation without its bounds, and the bounds that stand last."""
    bounds = None
    while typing.get_origin(annotation) is Annotated:
        annotation, *rest = typing.get_args(annotation)
        bounds = rest[-1] if rest else bounds
    return annotation, bounds


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default, or MISSING; `version` has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _with_default(field: dataclasses.Field[Any], found: dict[str, Any]) -> dict[str, Any]:
    default = default_of(field)
    if default is dataclasses.MISSING or dataclasses.is_dataclass(default):
        return found
    return {**found, "default": list(default) if isinstance(default, tuple) else default}


def keys(cls: type[Any] = Policy, before: str = "") -> Iterator[tuple[str, str]]:
    """(path, "type, default …") of every key; ID stands for the ids of environments and data sets."""
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        if field.name in NOT_WRITTEN:
            continue
        path, default = before + field.name, default_of(field)
        inner, _ = bare(hints[field.name])
        if dataclasses.is_dataclass(inner):
            yield from keys(typing.cast("type[Any]", inner), f"{path}.")
            continue
        arguments = typing.get_args(inner)
        if arguments and dataclasses.is_dataclass(arguments[-1]):
            yield from keys(typing.cast("type[Any]", arguments[-1]), f"{path}.ID.")
            continue
        needed = "required" if default is dataclasses.MISSING else f"default {in_words(field.name, default)}"
        yield path, f"{type_in_words(field.name, hints[field.name])}, {needed}"


def type_in_words(name: str, annotation: Any) -> str:
    if annotation == HostPath:
        return "absolute path"
    inner, bounds = bare(annotation)
    origin = typing.get_origin(inner)
    if origin in (types.UnionType, typing.Union):
        (one,) = (part for part in typing.get_args(inner) if part is not type(None))
        return type_in_words(name, one)
    if origin is Literal:
        return " | ".join(str(word) for word in typing.get_args(inner))
    if origin is tuple:
        return f"list of {type_in_words('', typing.get_args(inner)[0])}"
    if inner is bool:
        return "true | false"
    if inner is int:
        if name.endswith("_bytes"):
            return "size"
        if name.endswith("_s"):
            return "duration"
        if name.endswith("_ms"):
            return "interval"
        high = bounds.high if isinstance(bounds, Range) else MAX_SAFE_INTEGER
        low = bounds.low if isinstance(bounds, Range) else 0
        return f"integer from {low}" if high == MAX_SAFE_INTEGER else f"integer {low} to {high}"
    if inner is str:
        text = bounds if isinstance(bounds, Text) else Text()
        return "SHA-256 in hex" if text.pattern == r"[0-9a-f]{64}" else "text"
    return "JSON schema"


def in_words(name: str, default: Any) -> str:
    if default is None:
        return "null"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return f"[{', '.join(default)}]"
    for ending, steps in (("_bytes", _STEPS), ("_s", _TIMES), ("_ms", _INTERVALS)):
        if name.endswith(ending):
            return next(f"{default // size}{unit}" for size, unit in steps if default % size == 0)
    return str(default) or '""'


def text() -> str:
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:scaleoutd:policy:v1",
        "title": "scaleoutd policy",
        "description": "What may run on a node, with how much, on what data, and what may leave: scaleoutd-policy(5).",
    }
    return json.dumps(head | schema(), indent=2) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--keys", action="store_true")
    parser.add_argument("--node", action="store_true")
    given = parser.parse_args()
    if given.keys:
        for path, words in keys(NodeConfig if given.node else Policy):
            print(f"{path} ({words})")
    elif given.write:
        SCHEMA.write_text(text())
    else:
        print(text(), end="")


if __name__ == "__main__":
    main()
