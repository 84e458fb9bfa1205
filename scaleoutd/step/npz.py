# SPDX-License-Identifier: Apache-2.0
"""NumPy's npz and npy (numpy.lib.format, versions 1.0 to 3.0): headers only, no object arrays, nothing evaluated.

The header is a Python literal; it is matched against the one form that numpy writes and never evaluated.
"""

from __future__ import annotations

import re
import struct

from scaleoutd.step.archive import Archive
from scaleoutd.step.arrays import FLOATS, Array, FloatKind
from scaleoutd.step.source import Source, refuse

_MAGIC = b"\x93NUMPY"
_MAX_HEADER_BYTES = 16 * 1024
_MAX_DIMENSIONS = 64
_HEADER = re.compile(
    r"\{'descr': '(?P<descr>[^']{2,16})', 'fortran_order': (?P<fortran>True|False), 'shape': \((?P<shape>[0-9, ]*)\),? ?\} *\n"
)
_DESCR = re.compile(r"(?P<order>[<>|=])(?P<kind>[biufcSU?])(?P<width>[0-9]{1,6})")
_WIDTHS = {"b": (1,), "?": (1,), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "f": (2, 4, 8), "c": (8, 16)}


def read_arrays(archive: Archive) -> list[Array]:
    """The arrays of an npz archive."""
    result = []
    for name in archive.entries:
        # numpy takes `a` and `a.npy` for the same name when it is asked for one of them.
        if not name.endswith(".npy") or name.endswith(".npy.npy"):
            raise refuse(f"entry {name!r} of the npz archive is no array")
        result.append(read_array(name[: -len(".npy")], archive.open(name)))
    return result


def read_array(name: str, source: Source) -> Array:
    """One npy file; its size must be exactly header and numbers."""
    text, start = _header(name, source)
    match = _HEADER.fullmatch(text)
    if not match:
        raise refuse(f"array {name!r} has a header that numpy does not write for a plain array: {text[:80]!r}")
    shape = _shape(name, match["shape"])
    dtype = _DESCR.fullmatch(match["descr"])
    if not dtype:
        raise refuse(f"array {name!r} has dtype {match['descr']!r}; objects, records and times are not read")
    kind, width, order = dtype["kind"], int(dtype["width"]), dtype["order"]
    if kind in _WIDTHS and width not in _WIDTHS[kind]:
        raise refuse(f"array {name!r} has the unusual dtype {match['descr']!r}")
    length = width * (4 if kind == "U" else 1)
    for extent in shape:
        length *= extent
    if start + length != source.size:
        raise refuse(f"array {name!r} has {source.size - start} bytes of numbers, its shape needs {length}")
    descr = match["descr"].replace("=", "<")
    return Array(name, descr, shape, source, start, length, _float_kind(kind, width), order == ">", match["fortran"] == "True")


def _float_kind(kind: str, width: int) -> FloatKind | None:
    if kind == "f":
        return FLOATS[f"f{width}"]
    if kind == "c":  # a pair of floats
        return FLOATS[f"f{width // 2}"]
    return None


def _header(name: str, source: Source) -> tuple[str, int]:
    """The header's text and where the numbers start."""
    if source.size < 10:
        raise refuse(f"array {name!r} is cut off")
    head = source.read_at(0, min(12, source.size))
    if head[:6] != _MAGIC or head[6] not in (1, 2, 3) or head[7] != 0:
        raise refuse(f"array {name!r} is no npy file of version 1 to 3")
    if head[6] == 1:
        (length,), start = struct.unpack_from("<H", head, 8), 10
    elif len(head) == 12:
        (length,), start = struct.unpack_from("<I", head, 8), 12
    else:
        raise refuse(f"array {name!r} is cut off")
    if length > _MAX_HEADER_BYTES:
        raise refuse(f"array {name!r} has a header of {length} bytes, at most {_MAX_HEADER_BYTES} are read")
    raw = source.read_at(start, length)
    try:
        return raw.decode("utf-8" if head[6] == 3 else "latin-1"), start + length
    except UnicodeDecodeError as exc:
        raise refuse(f"array {name!r} has a header that is no text") from exc


def _shape(name: str, text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if parts[-1] == "":
        parts.pop()
    if len(parts) > _MAX_DIMENSIONS or not all(part.isascii() and part.isdigit() and len(part) <= 15 for part in parts):
        raise refuse(f"array {name!r} has the shape ({text[:80]})")
    return tuple(int(part) for part in parts)
