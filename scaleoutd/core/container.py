# SPDX-License-Identifier: Apache-2.0
"""The model container of dialect edge, written: a ZIP archive of stored entries (PKWARE APPNOTE 6.3.10).

    metadata.json         {"model_id", "helper_type", "_version": 2, …}
    training_model.bin    the weights, raw

The weights are the last entry, so the whole container is `head + weights + tail` with head and tail of a few hundred bytes
that are known once the weights' size and CRC-32 are.  Nothing is compressed: float weights gain nothing and cost most of
the time of a round.  Times are fixed at 1980-01-01, so the same content is the same bytes.

Reading containers is not here: foreign bytes are parsed by a confined child of the step only.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from scaleoutd.core import strictjson
from scaleoutd.core.strictjson import Json

VERSION = 2
_UTF8_NAMES = 0x0800
_DOS_DATE = 0x0021  # 1980-01-01
_LIMIT_32 = 0xFFFFFFFF


@dataclass(frozen=True)
class Container:
    """`head` and `tail` go before and after the weights."""

    head: bytes
    tail: bytes
    size_bytes: int


@dataclass(frozen=True)
class _Entry:
    name: bytes
    crc32: int
    size: int
    offset: int

    @property
    def wide(self) -> bool:
        return self.size >= _LIMIT_32 or self.offset >= _LIMIT_32

    def local_header(self) -> bytes:
        # ZIP64 extra field (section 4.5.3): both sizes must be there in a local header.
        extra = struct.pack("<HHQQ", 1, 16, self.size, self.size) if self.wide else b""
        size = _LIMIT_32 if self.wide else self.size
        fixed = struct.pack(
            "<IHHHHHIIIHH", 0x04034B50, 45 if self.wide else 20, _UTF8_NAMES, 0, 0, _DOS_DATE, self.crc32, size, size,
            len(self.name), len(extra),
        )  # fmt: skip
        return fixed + self.name + extra

    def directory_header(self) -> bytes:
        extra = struct.pack("<HHQQQ", 1, 24, self.size, self.size, self.offset) if self.wide else b""
        size, offset = (_LIMIT_32, _LIMIT_32) if self.wide else (self.size, self.offset)
        version = 45 if self.wide else 20
        fixed = struct.pack(
            "<IHHHHHHIIIHHHHHII", 0x02014B50, 3 << 8 | version, version, _UTF8_NAMES, 0, 0, _DOS_DATE, self.crc32, size, size,
            len(self.name), len(extra), 0, 0, 0, 0o100600 << 16, offset,
        )  # fmt: skip
        return fixed + self.name + extra


def container_around(weights_size: int, weights_crc32: int, *, model_id: str, helper_type: str) -> Container:
    """The container of `weights_size` bytes of weights with CRC-32 `weights_crc32`."""
    values: dict[str, Json] = {"_version": VERSION, "helper_type": helper_type, "model_id": model_id}
    metadata = strictjson.canonical(values)
    first = _Entry(b"metadata.json", zlib.crc32(metadata), len(metadata), 0)
    head = first.local_header() + metadata
    second = _Entry(b"training_model.bin", weights_crc32, weights_size, len(head))
    head += second.local_header()
    directory = first.directory_header() + second.directory_header()
    start = len(head) + weights_size
    tail = directory + _end_of_directory(start, len(directory), 2)
    return Container(head, tail, len(head) + weights_size + len(tail))


def _end_of_directory(start: int, size: int, count: int) -> bytes:
    wide = b""
    if start >= _LIMIT_32:
        wide = struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, count, count, size, start)
        wide += struct.pack("<IIQI", 0x07064B50, 0, start + size, 1)
    return wide + struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, count, count, size, min(start, _LIMIT_32), 0)
