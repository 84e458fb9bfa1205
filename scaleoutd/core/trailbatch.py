# SPDX-License-Identifier: Apache-2.0
"""A stretch of a trail, read on its own: what a second processor can do of a verification (trail.Walk).

All that a line can prove by itself or beside its neighbours is proven here: canonical form, fingerprint, chain, numbers, time.
What is left is how the stretch begins and ends, and the leaves of the tree.  A stretch with anything else in it, an epoch key, a
clock set back, a fault, has no batch: the walk reads it line by line, so that a fault is named in one place only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from scaleoutd.core import strictjson
from scaleoutd.core.chain import Tip
from scaleoutd.core.clock import MAX_SET_BACK_MS
from scaleoutd.core.merkle import leaf_hash
from scaleoutd.core.trail import ALONE, LEAF_BYTES, Batch, Line, read_line
from scaleoutd.errors import FormatError

_HEAD = struct.Struct(">II")  # bytes of the facts, number of leaves
HEAD_BYTES = _HEAD.size


def batch_of(lines: Iterable[bytes]) -> Batch | None:
    """The batch of `lines`; None when they have to be read one by one, or there are none."""
    first = last = None
    earliest_ms = latest_ms = 0
    leaves = bytearray()
    for line in lines:
        found = read_line(line)
        if found is None or found.type in ALONE:
            return None
        if first is None or last is None:
            first, earliest_ms, latest_ms = found, found.time_ms, found.time_ms
        elif not _follows(found, last) or found.time_ms < latest_ms - MAX_SET_BACK_MS:
            return None
        earliest_ms, latest_ms = min(earliest_ms, found.time_ms), max(latest_ms, found.time_ms)
        last = found
        leaves += leaf_hash(line)
    if first is None or last is None:
        return None
    return Batch(first.chain_uid, first.sequence, first.previous, last.tip, earliest_ms, latest_ms, bytes(leaves))


def _follows(line: Line, before: Line) -> bool:
    return (line.chain_uid, line.sequence, line.previous) == (before.chain_uid, before.sequence + 1, before.tip)


def encode(batch: Batch | None) -> bytes:
    """For a pipe: a head of HEAD_BYTES, facts, leaves.  Read back with `sizes` and `decode`."""
    if batch is None:
        return _HEAD.pack(0, 0)
    ends = [[tip.uid, tip.fingerprint] for tip in (batch.previous, batch.tip) if tip is not None]
    facts = strictjson.canonical([batch.chain_uid, batch.sequence, batch.earliest_ms, batch.latest_ms, ends])
    return _HEAD.pack(len(facts), len(batch)) + facts + batch.leaves


def sizes(head: bytes) -> tuple[int, int]:
    """Bytes of facts and of leaves that follow a head; (0, 0) for no batch."""
    facts, leaves = _HEAD.unpack(head)
    return facts, leaves * LEAF_BYTES


def decode(facts: bytes, leaves: bytes) -> Batch:
    """FormatError for facts that `encode` did not write."""
    try:
        value = strictjson.parse(facts, max_bytes=len(facts), what="a batch")
        chain_uid, sequence, earliest_ms, latest_ms, ends = value
        tips = [Tip(uid, fingerprint) for uid, fingerprint in ends]
        return Batch(chain_uid, sequence, tips[0] if len(tips) > 1 else None, tips[-1], earliest_ms, latest_ms, leaves)
    except (ValueError, TypeError, IndexError) as exc:
        raise FormatError(f"cannot read a batch: {exc}") from exc
