# SPDX-License-Identifier: Apache-2.0
"""Mutations without coverage: bytes cut, doubled, moved and replaced by a target's own words, and JSON changed as a tree.

Deterministic: the same seeds, words and number give the same inputs on every machine.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

from tests.fuzz.target import Target

_NUMBERS = (0, 1, -1, 2**31, 2**32, 2**53 - 1, 2**53, -(2**53), 2**63, 2**64, 10**30, 1.5, 1e308)
_TEXTS = (
    "",
    "a",
    "\x00",
    "\n",
    "é",
    "\u2028",
    "\ud800",
    "../..",
    "/",
    "x" * 300,
    "0",
    "-1",
    "null",
    "A" * 5000,
    ": it ",
    "%s",
    "{}",
)
_BYTES = (
    b"\x00",
    b"\xff",
    b"\n",
    b'"',
    b"\\",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"9" * 400,
    b"\\ud800",
    b"1e999",
    b"[" * 40,
    b"NaN",
)


def mutations(target: Target, seeds: Sequence[bytes], count: int) -> Iterator[bytes]:
    """`count` inputs grown from `seeds`."""
    chance = random.Random(f"{target.name}/{count}")
    for _ in range(count):
        yield mutate(target, chance.choice(seeds), chance, seeds)


def mutate(target: Target, data: bytes, chance: random.Random, seeds: Sequence[bytes] = ()) -> bytes:
    """One to four changes of `data`, at most `max_bytes` long."""
    for _ in range(chance.choice((1, 1, 1, 2, 3, 4))):
        changed = change_json(data, chance) if target.json and chance.random() < 0.6 else None
        data = changed if changed is not None else _change_bytes(data, target.words, chance, seeds)
    return data[: target.max_bytes]


def change_json(data: bytes, chance: random.Random) -> bytes | None:
    """One node of the JSON text removed, doubled, moved or replaced; None when it is no JSON."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    nodes = list(_nodes(value))
    if not nodes:
        return json.dumps(_replacement(chance)).encode()
    holder, key = chance.choice(nodes)
    kind = chance.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[chance.choice((key + "x", key.upper(), "", "_type", "t"))] = holder[key]
    elif kind == 1:
        holder.insert(key, holder[key])
    elif kind == 2:
        other, place = chance.choice(nodes)
        if place in other if isinstance(other, dict) else place < len(other):
            holder[key] = json.loads(json.dumps(other[place]))
    elif kind == 3:
        holder[key] = [holder[key]]
    elif kind == 4 and isinstance(holder[key], int):
        holder[key] += chance.choice((-1, 1, 2**32))
    else:
        holder[key] = _replacement(chance)
    # Mostly in canonical form, so that what asks for it is passed; escapes keep a lone surrogate what it is.
    text = json.dumps(value, sort_keys=chance.random() < 0.9, separators=(",", ":"), ensure_ascii=chance.random() < 0.3)
    return text.encode("utf-8", "surrogatepass")


def _nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    """(holder, key) of every value below the top."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from _nodes(item)


def _replacement(chance: random.Random) -> Any:
    return chance.choice((None, True, False, [], {}, [[]], {"a": 1}, chance.choice(_NUMBERS), chance.choice(_TEXTS)))


def _change_bytes(data: bytes, words: Sequence[bytes], chance: random.Random, seeds: Sequence[bytes]) -> bytes:
    at = chance.randint(0, len(data))
    end = min(len(data), at + chance.choice((1, 1, 2, 4, 8, 64)))
    kind = chance.randrange(8)
    if kind == 0:
        return data[:at] + data[end:]
    if kind == 1:
        return data[:at] + data[at:end] * 2 + data[end:]
    if kind == 2:
        return data[:at] + bytes((chance.randrange(256),)) + data[at + 1 :]
    if kind == 3 and at < len(data):
        return data[:at] + bytes((data[at] ^ 1 << chance.randrange(8),)) + data[at + 1 :]
    if kind == 4 and seeds:
        other = chance.choice(seeds)
        return data[:at] + other[chance.randint(0, len(other)) :]
    if kind == 5:
        return data[:at]
    word = chance.choice((*words, *_BYTES))
    return data[:at] + word + (data[at:] if kind == 6 else data[at + len(word) :])
