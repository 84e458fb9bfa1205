# SPDX-License-Identifier: Apache-2.0
"""ZIP archives, read strictly (PKWARE APPNOTE 6.3.10): one meaning, whoever reads.

Refused beside damage: encrypted or otherwise compressed entries (only stored and deflated pass), duplicate names, names that
are not plain text, entries that overlap or whose local header contradicts the directory, bytes between the directory and
its end, several disks, more entries or inflated bytes than the caller allows.  The standard zipfile forgives most of these,
and what two readers read differently, an attacker can use.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from scaleoutd.step.source import InflatedSource, PartSource, Source, chunks, refuse

_END = struct.Struct("<4s4H2LH")  # 4.3.16
_END64_LOCATOR = struct.Struct("<4sLQL")  # 4.3.15
_END64 = struct.Struct("<4sQ2H2L4Q")  # 4.3.14
_DIRECTORY = struct.Struct("<4s6H3L5H2L")  # 4.3.12
_LOCAL = struct.Struct("<4s5H3L2H")  # 4.3.7
_MAX_DIRECTORY_BYTES = 16 << 20
_MAX_NAME_BYTES = 1024
STORED, DEFLATED = 0, 8
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_DATA_DESCRIPTOR = 0x8
_UTF8 = 0x800


@dataclass(frozen=True)
class Entry:
    name: str
    method: int
    flags: int
    crc: int
    compressed_bytes: int
    size_bytes: int
    header_offset: int


class Archive:
    """The directory of a ZIP archive, and its entries as sources."""

    def __init__(self, source: Source, *, max_entries: int, max_inflated_bytes: int) -> None:
        self._source = source
        count, size, start, end = self._find_directory()
        if count > max_entries:
            raise refuse(f"the archive has {count} entries, at most {max_entries} are read", "limit-model")
        self.entries = self._read_directory(count, size, start)
        if start + size != end:
            raise refuse("the archive has bytes between its directory and its end")
        total = sum(entry.size_bytes for entry in self.entries.values())
        if total > max_inflated_bytes:
            raise refuse(f"the archive inflates to {total} bytes, at most {max_inflated_bytes} are read", "limit-model")
        self._starts = self._check_layout(start)

    def open(self, name: str) -> Source:
        """The inflated bytes of an entry."""
        entry = self.entries[name]
        part = PartSource(self._source, self._starts[name], entry.compressed_bytes)
        return part if entry.method == STORED else InflatedSource(part, entry.size_bytes)

    def check_crc(self, name: str) -> None:
        """Reads the whole entry and compares its CRC-32 and size."""
        source, crc = self.open(name), 0
        for data in chunks(source, 0, source.size):
            crc = zlib.crc32(data, crc)
        if isinstance(source, InflatedSource):
            source.check_end()
        if crc != self.entries[name].crc:
            raise refuse(f"entry {name!r} is damaged: its checksum differs")

    def _find_directory(self) -> tuple[int, int, int, int]:
        """(entries, bytes, start, end) of the central directory."""
        size = self._source.size
        tail_bytes = min(size, _END.size + 0xFFFF)
        tail = self._source.read_at(size - tail_bytes, tail_bytes)
        at = tail.rfind(b"PK\x05\x06")
        if at < 0 or at + _END.size > len(tail):
            raise refuse("the archive has no end record; it is cut off")
        _, disk, disk_of, here, count, length, start, comment = _END.unpack_from(tail, at)
        if at + _END.size + comment != len(tail):
            raise refuse("the archive goes on after its end record")
        end = size - tail_bytes + at
        locator = end - _END64_LOCATOR.size
        if locator >= 0 and self._source.read_at(locator, 4) == b"PK\x06\x07":
            _, disk, where, disks = _END64_LOCATOR.unpack(self._source.read_at(locator, _END64_LOCATOR.size))
            if disk or disks > 1 or where + _END64.size != locator:
                raise refuse("the archive's ZIP64 end record is not where it must be")
            signature, _, _, _, disk, disk_of, here, count, length, start = _END64.unpack(
                self._source.read_at(where, _END64.size)
            )
            end = where
            if signature != b"PK\x06\x06":
                raise refuse("the archive's ZIP64 end record is damaged")
        if disk or disk_of or here != count:
            raise refuse("the archive is spread over several disks")
        if length > _MAX_DIRECTORY_BYTES or start + length > end:
            raise refuse("the archive's directory lies outside it or is too large")
        return count, length, start, end

    def _read_directory(self, count: int, length: int, start: int) -> dict[str, Entry]:
        data = self._source.read_at(start, length)
        entries: dict[str, Entry] = {}
        at = 0
        for _ in range(count):
            if at + _DIRECTORY.size > length:
                raise refuse("the archive's directory is cut off")
            fields = _DIRECTORY.unpack_from(data, at)
            signature, _, _, flags, method, _, _, crc, packed, size, name_len, extra_len, comment_len, _, _, _, offset = fields
            body = at + _DIRECTORY.size
            if signature != b"PK\x01\x02" or body + name_len + extra_len + comment_len > length:
                raise refuse("the archive's directory is damaged")
            name = _name_of(data[body : body + name_len], flags)
            extra = data[body + name_len : body + name_len + extra_len]
            size, packed, offset = _with_zip64(extra, size, packed, offset)
            _check_entry(name, flags, method, packed, size)
            if name in entries:
                raise refuse(f"entry {name!r} appears twice")
            entries[name] = Entry(name, method, flags, crc, packed, size, offset)
            at = body + name_len + extra_len + comment_len
        if at != length:
            raise refuse("the archive's directory has more bytes than entries")
        return entries

    def _check_layout(self, end: int) -> dict[str, int]:
        """Where the data of each entry starts; local headers agree with the directory and nothing overlaps."""
        starts: dict[str, int] = {}
        free_from = 0
        for entry in sorted(self.entries.values(), key=lambda item: item.header_offset):
            if entry.header_offset < free_from or entry.header_offset + _LOCAL.size > end:
                raise refuse(f"entry {entry.name!r} overlaps another or lies outside the archive")
            fields = _LOCAL.unpack(self._source.read_at(entry.header_offset, _LOCAL.size))
            signature, _, flags, method, _, _, crc, packed, size, name_len, extra_len = fields
            start = entry.header_offset + _LOCAL.size + name_len + extra_len
            name = _name_of(self._source.read_at(entry.header_offset + _LOCAL.size, name_len), flags)
            same = signature == b"PK\x03\x04" and name == entry.name and method == entry.method and not flags & _ENCRYPTED
            if not flags & _DATA_DESCRIPTOR:
                small = packed != 0xFFFFFFFF and size != 0xFFFFFFFF
                same &= crc == entry.crc and (not small or (packed, size) == (entry.compressed_bytes, entry.size_bytes))
            if not same:
                raise refuse(f"entry {entry.name!r} differs between the directory and its own header")
            free_from = start + entry.compressed_bytes
            if free_from > end:
                raise refuse(f"entry {entry.name!r} lies outside the archive")
            starts[entry.name] = start
        return starts


def _name_of(raw: bytes, flags: int) -> str:
    if not raw or len(raw) > _MAX_NAME_BYTES:
        raise refuse("an entry has no name or one that is too long")
    try:
        # Without the UTF-8 flag a name is in code page 437; only the part it shares with ASCII is taken.
        name = raw.decode("utf-8" if flags & _UTF8 else "ascii")
    except UnicodeDecodeError as exc:
        raise refuse("an entry has a name that is no plain text") from exc
    if any(ord(char) < 32 for char in name) or name.startswith("/") or "\\" in name or ".." in name.split("/"):
        raise refuse(f"an entry has the forbidden name {name!r}")
    return name


def _check_entry(name: str, flags: int, method: int, packed: int, size: int) -> None:
    if flags & _ENCRYPTED:
        raise refuse(f"entry {name!r} is encrypted")
    if method not in (STORED, DEFLATED):
        raise refuse(f"entry {name!r} uses compression method {method}; only stored and deflated are read")
    if method == STORED and packed != size:
        raise refuse(f"entry {name!r} is stored and has two sizes")


def _with_zip64(extra: bytes, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """Section 4.5.3: what does not fit in 32 bits stands in extra field 1, in this order."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if at + 4 + length > len(extra):
            raise refuse("an entry's extra field is damaged")
        if kind == 1:
            values = [value for (value,) in struct.iter_unpack("<Q", extra[at + 4 : at + 4 + length // 8 * 8])]
            if size == 0xFFFFFFFF and values:
                size = values.pop(0)
            if packed == 0xFFFFFFFF and values:
                packed = values.pop(0)
            if offset == 0xFFFFFFFF and values:
                offset = values.pop(0)
            return size, packed, offset
        at += 4 + length
    return size, packed, offset
