# SPDX-License-Identifier: Apache-2.0
"""Flat arrays in and out of NumPy's npz, without NumPy.

Rules (the npy format, NEP 1; npz is a ZIP of npy files):
  1. Read: npy 1.0 and 2.0, floats of 4 and 8 bytes, integers, either byte order, C order.  Object arrays are refused:
     they are pickles, and a pickle is a program.
  2. Written: npy 1.0, little endian, header padded to 64 bytes as NumPy's own reader expects.
  3. An archive that inflates to more than `max_bytes` is refused before its bytes are read.
"""

from __future__ import annotations

import ast
import io
import math
import struct
import sys
import zipfile
from array import array
from collections.abc import Mapping
from dataclasses import dataclass

from scaleoutd.devcombiner.container import ZIP_ERRORS, read_member
from scaleoutd.errors import FormatError

MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 16 * 1024
MAX_DIMENSIONS, MAX_SIDE = 32, 1 << 48
DEFAULT_MAX_BYTES = 2 * 1024**3

# NumPy's kind and width, and the letter of the same thing in the array module.
TYPECODES = {
    "f4": "f",
    "f8": "d",
    "i1": "b",
    "u1": "B",
    "i2": "h",
    "u2": "H",
    "i4": "i",
    "u4": "I",
    "i8": "q",
    "u8": "Q",
}


@dataclass(frozen=True, slots=True)
class FlatArray:
    """Numbers in C order; `kind` is NumPy's type without its byte order ("f4"), `shape` may be () for a scalar."""

    kind: str
    shape: tuple[int, ...]
    values: array[float] | array[int]

    def __post_init__(self) -> None:
        if self.kind not in TYPECODES or len(self.values) != math.prod(self.shape):
            raise _refuse(f"{len(self.values)} numbers of type {self.kind} do not fill the shape {self.shape}")

    @property
    def is_finite(self) -> bool:
        """False when a float is a NaN or an infinity."""
        return self.kind[0] != "f" or all(map(math.isfinite, self.values))


def flat(kind: str, shape: tuple[int, ...], numbers: list[float] | list[int]) -> FlatArray:
    """A FlatArray of plain numbers: `flat("f4", (2,), [1.0, 2.0])`."""
    return FlatArray(kind, shape, array(TYPECODES[kind], numbers))


def read_npz(data: bytes, *, max_bytes: int = DEFAULT_MAX_BYTES) -> dict[str, FlatArray]:
    """Names (without ".npy") to arrays, in the archive's order; FormatError for anything else."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            total = sum(member.file_size for member in members)
            if total > max_bytes:
                raise _refuse(f"it inflates to {total} bytes, at most {max_bytes} are read")
            arrays = {_name_of(member): read_npy(read_member(archive, member, max_bytes)) for member in members}
    except ZIP_ERRORS as exc:
        raise _refuse(f"it is no ZIP archive: {str(exc)[:400]}") from exc
    if len(arrays) != len(members):
        raise _refuse("a name appears twice")
    if not arrays:
        raise _refuse("it holds no array")
    return arrays


def write_npz(arrays: Mapping[str, FlatArray], *, deflate: bool = False) -> bytes:
    """The archive that `numpy.load` reads; the same arrays always give the same bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED) as archive:
        for name, values in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            member.compress_type = archive.compression
            archive.writestr(member, write_npy(values))
    return out.getvalue()


def read_npy(data: bytes) -> FlatArray:
    """One array; FormatError for object, structured, Fortran-ordered, truncated or over-long data."""
    header, body = _split_header(data)
    kind, swapped, shape = _describe(header)
    values = array(TYPECODES[kind])
    expected = math.prod(shape) * values.itemsize
    if len(body) != expected:
        raise _refuse(f"an array has {len(body)} bytes of numbers, its header says {expected}")
    values.frombytes(body)
    if swapped:
        values.byteswap()
    return FlatArray(kind, shape, values)


def write_npy(flat_array: FlatArray) -> bytes:
    """npy 1.0 bytes of one array."""
    values = flat_array.values
    if sys.byteorder == "big":
        values = values[:]
        values.byteswap()
    order = "|" if values.itemsize == 1 else "<"
    header = repr({"descr": order + flat_array.kind, "fortran_order": False, "shape": flat_array.shape}).encode("latin-1")
    padding = -(len(MAGIC) + 4 + len(header) + 1) % 64
    header += b" " * padding + b"\n"
    return MAGIC + b"\x01\x00" + struct.pack("<H", len(header)) + header + values.tobytes()


def _split_header(data: bytes) -> tuple[bytes, memoryview]:
    version = data[6:8]
    if data[:6] != MAGIC or version not in (b"\x01\x00", b"\x02\x00"):
        raise _refuse("a member is not an npy file of version 1.0 or 2.0")
    width, form = (2, "<H") if version == b"\x01\x00" else (4, "<I")
    if len(data) < 8 + width:
        raise _refuse("an npy header is cut off")
    length = struct.unpack_from(form, data, 8)[0]
    if length > MAX_HEADER_BYTES or len(data) < 8 + width + length:
        raise _refuse(f"an npy header claims {length} bytes")
    start = 8 + width
    return data[start : start + length], memoryview(data)[start + length :]


def _describe(header: bytes) -> tuple[str, bool, tuple[int, ...]]:
    try:
        fields = ast.literal_eval(header.decode("latin-1").strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as exc:
        raise _refuse(f"an npy header is no dictionary: {str(exc)[:400]}") from exc
    if not isinstance(fields, dict) or set(fields) != {"descr", "fortran_order", "shape"}:
        raise _refuse("an npy header does not have exactly descr, fortran_order and shape")
    descr, shape = fields["descr"], fields["shape"]
    if not isinstance(descr, str) or descr[1:] not in TYPECODES or descr[0] not in "<>|=":
        raise _refuse(f"the array type {str(descr)[:80]!r} is not a plain number")
    if fields["fortran_order"] is not False:
        raise _refuse("an array is in Fortran order")
    if not isinstance(shape, tuple) or len(shape) > MAX_DIMENSIONS or not all(map(_is_side, shape)):
        raise _refuse("an npy header has a shape that no array has")
    native = "<" if sys.byteorder == "little" else ">"
    return descr[1:], descr[0] in "<>" and descr[0] != native, shape


def _is_side(side: object) -> bool:
    return type(side) is int and 0 <= side < MAX_SIDE


def _name_of(member: zipfile.ZipInfo) -> str:
    if not member.filename.endswith(".npy"):
        raise _refuse(f"member {member.filename[:200]!r} is not an npy file")
    return member.filename[: -len(".npy")]


def _refuse(cause: str) -> FormatError:
    return FormatError(f"cannot read the npz model: {cause}", code="container-invalid", hint="Save it with numpy.savez.")
