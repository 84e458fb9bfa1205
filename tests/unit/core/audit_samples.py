# SPDX-License-Identifier: Apache-2.0
"""Sample bodies for every event type of the catalogue, and a stamp for them."""

from __future__ import annotations

from typing import Any

from scaleoutd.core import catalogue
from scaleoutd.core.catalogue import EventType, Kind
from scaleoutd.core.chain import Tip
from scaleoutd.core.event import Stamp

DIGEST = "ab" * 32
SAMPLES: dict[Kind, Any] = {
    "text": "a text",
    "sha256": DIGEST,
    "natural": 7,
    "flag": True,
    "texts": ["one", "two"],
    "counts": {"ptrace": 2, "wall_clock_s": 60},
}
SPECIAL = {"combiner": "combiner.example:12080", "destination": "combiner.example:12080", "not_after": "2027-01-01"}


def body_of(event: EventType, *, full: bool = False) -> dict[str, Any]:
    """A body with the required keys, or with all."""
    keys = {**event.required, **(event.optional if full else {}), **(catalogue.CONTEXT if full else {})}
    return {key: SPECIAL.get(key, SAMPLES[kind]) for key, kind in keys.items()}


def stamp(sequence: int = 5, room: str = "runner", **changes: Any) -> Stamp:
    values: dict[str, Any] = {
        "sequence": sequence,
        "time_ms": 1_790_000_000_123,
        "room": room,
        "uid": 998,
        "event_id": f"{sequence:032x}",
        "chain_uid": "scaleoutd/00112233aabbccdd",
        "previous": Tip(f"{sequence - 1:032x}", "cd" * 32) if sequence else None,
        "host": "node-1.example",
        "version": "0.1.0",
    }
    return Stamp(**{**values, **changes})
