# SPDX-License-Identifier: Apache-2.0
"""How far an update lies from the model received: the Euclidean (L2) norm of their difference, without a numeric library.

A limit on it bounds what one node can do to an average, and what one record can do to an update (clipping, as in differentially
private averaging, is the step's; here it is checked by code that is not the project's).  Numbers are compared as they lie in the
files: so both must lie in the same order, and a torch archive, whose tensors may be views of any order, cannot be measured.

math.dist over chunks costs about 0.1 s for a million numbers.
"""

from __future__ import annotations

import array
import math
import struct
import sys
from collections.abc import Mapping, Sequence

from scaleoutd.errors import OutputError
from scaleoutd.step.arrays import FLOATS, Array, FloatKind
from scaleoutd.step.source import chunks

_CHUNK_BYTES = 256 * 1024


def update_norm(written: Sequence[Array], received: Mapping[str, Array], most: float) -> float:
    """The norm over all floating-point arrays, complex ones as pairs; stops as soon as it is above `most`.

    Both have the same names, shapes and types.  OutputError `output-norm` for arrays whose numbers lie in another order.
    """
    total = 0.0
    for one in written:
        if one.float_kind is None:
            continue
        other = received[one.name]
        if (one.big_endian, one.fortran, one.length) != (other.big_endian, other.fortran, other.length):
            raise OutputError(
                f"cannot let the output leave: the numbers of array {one.name[:120]!r} lie in another order than in the model"
                " received, so its distance cannot be measured",
                code="output-norm",
                hint="In the step, save arrays in C order with the byte order that <in> has.",
            )
        pairs = zip(
            chunks(one.source, one.offset, one.length, _CHUNK_BYTES),
            chunks(other.source, other.offset, other.length, _CHUNK_BYTES),
            strict=True,
        )
        for mine, theirs in pairs:
            distance = math.dist(_numbers(mine, one.float_kind, one.big_endian), _numbers(theirs, one.float_kind, one.big_endian))
            total = math.hypot(total, distance)
            if not total <= most:  # a NaN too
                return total
    return total


def _numbers(data: bytes, kind: FloatKind, big_endian: bool) -> Sequence[float]:
    if kind == FLOATS["f2"]:
        return struct.unpack(f"{'>' if big_endian else '<'}{len(data) // 2}e", data)
    if kind == FLOATS["bf2"]:  # the upper half of a float32
        wide = bytearray(2 * len(data))
        wide[2::4], wide[3::4] = data[0::2], data[1::2]
        data, kind = bytes(wide), FLOATS["f4"]
    values = array.array("f" if kind.width == 4 else "d")
    values.frombytes(data)
    if big_endian != (sys.byteorder == "big"):
        values.byteswap()
    return values
