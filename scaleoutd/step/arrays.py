# SPDX-License-Identifier: Apache-2.0
"""Arrays in files, and whether their numbers are finite, without a numeric library.

A float has all exponent bits set exactly when it is an infinity or a NaN (IEEE 754).  The byte that holds most of the
exponent is cut out of a chunk with one stride slice and searched for the few values that could mean that; ordinary weights
never have them.  Only in a chunk that has one is the byte below looked at too: both are translated to 0 and 1, and the two
chunks ANDed as one long integer, so that numbers chosen to be slow cost five times as much and not a hundred times.
"""

from __future__ import annotations

from dataclasses import dataclass

from scaleoutd.core import strictjson
from scaleoutd.step.digest import sha256_hex
from scaleoutd.step.source import Source, chunks

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class FloatKind:
    """`width` bytes, little-endian; `top`: the top byte's bits that belong to the exponent, `next`: those of the byte below."""

    width: int
    top: int
    below: int


FLOATS: dict[str, FloatKind] = {
    "f2": FloatKind(2, 0x7C, 0),
    "f4": FloatKind(4, 0x7F, 0x80),
    "f8": FloatKind(8, 0x7F, 0xF0),
    "bf2": FloatKind(2, 0x7F, 0x80),
}


@dataclass(frozen=True)
class Array:
    """One array: where its numbers lie.  `float_kind` None: there is nothing that could be infinite."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: Source
    offset: int
    length: int
    float_kind: FloatKind | None = None
    big_endian: bool = False
    fortran: bool = False  # the first index runs fastest

    @property
    def elements(self) -> int:
        count = 1
        for extent in self.shape:
            count *= extent
        return count

    def is_finite(self) -> bool:
        if self.float_kind is None:
            return True
        return all(
            chunk_is_finite(data, self.float_kind, self.big_endian)
            for data in chunks(self.source, self.offset, self.length, _CHUNK_BYTES)
        )


def form_sha256(arrays: list[Array]) -> str:
    """See ModelFacts.arrays_sha256."""
    form = [[array.name, array.dtype, list(array.shape)] for array in sorted(arrays, key=lambda item: item.name)]
    return sha256_hex(strictjson.canonical(form))


def chunk_is_finite(data: bytes, kind: FloatKind, big_endian: bool = False) -> bool:
    """Whether no number in `data` is an infinity or a NaN."""
    width = kind.width
    top = data[0::width] if big_endian else data[width - 1 :: width]
    if not _may_hold(top, kind.top):
        return True
    below = data[1::width] if big_endian else data[width - 2 :: width]
    whole = min(len(top), len(below))
    highs = int.from_bytes(top[:whole].translate(_MARKS[kind.top]), "little")
    lows = int.from_bytes(below[:whole].translate(_MARKS[kind.below]), "little")
    return not highs & lows


def _may_hold(top: bytes, mask: int) -> bool:
    """Whether a byte of `top` has all bits of `mask`."""
    return any(bytes((value,)) in top for value in _SUSPECTS[mask])


_MASKS = {mask for kind in FLOATS.values() for mask in (kind.top, kind.below)}
_MARKS = {mask: bytes(value & mask == mask for value in range(256)) for mask in _MASKS}
_SUSPECTS = {mask: tuple(v for v in range(256) if v & mask == mask) for mask in {kind.top for kind in FLOATS.values()}}
