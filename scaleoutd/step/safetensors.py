# SPDX-License-Identifier: Apache-2.0
"""The safetensors format: 8 bytes of length, a JSON header, then numbers without holes or overlaps."""

from __future__ import annotations

import struct
from typing import Any

from scaleoutd.core import strictjson
from scaleoutd.errors import FormatError
from scaleoutd.step.arrays import FLOATS, Array, FloatKind
from scaleoutd.step.source import Source, refuse

_MAX_HEADER_BYTES = 8 << 20
_DTYPES: dict[str, tuple[int, FloatKind | None]] = {
    "BOOL": (1, None), "U8": (1, None), "I8": (1, None), "U16": (2, None), "I16": (2, None),
    "U32": (4, None), "I32": (4, None), "U64": (8, None), "I64": (8, None),
    "F16": (2, FLOATS["f2"]), "BF16": (2, FLOATS["bf2"]), "F32": (4, FLOATS["f4"]), "F64": (8, FLOATS["f8"]),
}  # fmt: skip


def looks_like(source: Source) -> bool:
    """A length that fits, followed by an opening brace."""
    if source.size < 10:
        return False
    (length,) = struct.unpack("<Q", source.read_at(0, 8))
    return bool(2 <= length <= source.size - 8 and source.read_at(8, 1) == b"{")


def read_arrays(source: Source, max_arrays: int) -> list[Array]:
    (length,) = struct.unpack("<Q", source.read_at(0, 8))
    if length > _MAX_HEADER_BYTES:
        raise refuse(f"its header has {length} bytes, at most {_MAX_HEADER_BYTES} are read", "limit-model")
    try:
        header = strictjson.parse(source.read_at(8, length).rstrip(b" "), max_bytes=_MAX_HEADER_BYTES, what="its header")
    except FormatError as exc:
        raise refuse(exc.message) from exc
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise refuse("its __metadata__ is no map of strings")
    if len(header) > max_arrays:
        raise refuse(f"it has {len(header)} arrays, at most {max_arrays} are read", "limit-model")
    arrays = [_array(name, value, source, 8 + length) for name, value in header.items()]
    expected = 8 + length
    for array in sorted(arrays, key=lambda item: (item.offset, item.length)):
        if array.offset != expected:
            raise refuse(f"array {array.name!r} overlaps another or leaves a hole")
        expected += array.length
    if expected != source.size:
        raise refuse(f"it has {source.size - expected} bytes that belong to no array")
    return arrays


def _array(name: str, value: Any, source: Source, base: int) -> Array:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise refuse(f"array {name!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise refuse(f"array {name!r} has the unknown dtype {str(dtype)[:32]!r}")
    if not _naturals(shape) or len(shape) > 64 or not _naturals(offsets) or len(offsets) != 2:
        raise refuse(f"array {name!r} has a shape or offsets that are no natural numbers")
    width, kind = _DTYPES[dtype]
    length = width
    for extent in shape:
        length *= extent
    if offsets[1] - offsets[0] != length:
        raise refuse(f"array {name!r} has {offsets[1] - offsets[0]} bytes, its shape needs {length}")
    return Array(name, dtype, tuple(shape), source, base + offsets[0], length, kind)


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in value)
