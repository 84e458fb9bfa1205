# SPDX-License-Identifier: Apache-2.0
"""ZIP archives, read strictly (PKWARE APPNOTE 6.3.10): one meaning, whoever reads.

Refused beside damage: encrypted or otherwise compressed entries (only stored and deflated pass), duplicate names, names that
are not plain text or that an extra field replaces (Info-ZIP's Unicode path), entries that overlap or whose local header
contradicts the directory, bytes before, between or after entries that no entry has, a comment (it can hold a second end record),
a ZIP64 end record that says another thing than the end record, several disks, more entries or inflated bytes than the caller
allows.  The standard zipfile forgives most of these, and what two readers read differently, an attacker can use.
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
_PATCHED = 0x20
_DATA_DESCRIPTOR = 0x8
_UTF8 = 0x800
_SIZES_AND_OFFSET = 1  # extra field 4.5.3
_UNICODE_PATH = 0x7075  # extra field 4.6.9
_BIG = 0xFFFFFFFF  # "see the ZIP64 field"
_NEWEST_VERSION = 63  # of APPNOTE 6.3, in tenths (4.4.3)


@dataclass(frozen=True)
class Entry:
    """One file of the archive."""

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
        # In the order of the bytes: a deflated archive around this one is then inflated once, whatever the directory's order.
        self.entries = {name: self.entries[name] for name in self._starts}

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
        if comment or at + _END.size != len(tail):
            raise refuse("the archive goes on after its end record")
        end = size - tail_bytes + at
        locator = end - _END64_LOCATOR.size
        if locator >= 0 and self._source.read_at(locator, 4) == b"PK\x06\x07":
            _, disk, where, disks = _END64_LOCATOR.unpack(self._source.read_at(locator, _END64_LOCATOR.size))
            if disk or disks > 1 or where + _END64.size != locator:
                raise refuse("the archive's ZIP64 end record is not where it must be")
            short = (disk_of, here, count, length, start)
            signature, _, _, _, disk, disk_of, here, count, length, start = _END64.unpack(
                self._source.read_at(where, _END64.size)
            )
            end = where
            if signature != b"PK\x06\x06":
                raise refuse("the archive's ZIP64 end record is damaged")
            long, marks = (disk_of, here, count, length, start), (0xFFFF, 0xFFFF, 0xFFFF, _BIG, _BIG)
            if any(one not in (other, mark) for one, other, mark in zip(short, long, marks, strict=True)):
                raise refuse("the archive's two end records contradict each other")
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
            signature, _, needed, flags, method, _, _, crc, packed, size, name_len, extra_len, comment_len, _, _, _, offset = (
                fields
            )
            body = at + _DIRECTORY.size
            if signature != b"PK\x01\x02" or body + name_len + extra_len + comment_len > length:
                raise refuse("the archive's directory is damaged")
            name = _name_of(data[body : body + name_len], flags)
            extra = data[body + name_len : body + name_len + extra_len]
            size, packed, offset = _with_zip64(extra, size, packed, offset)
            if needed & 0xFF > _NEWEST_VERSION:
                raise refuse(f"entry {name!r} needs version {needed & 0xFF} of the format, at most {_NEWEST_VERSION} is read")
            _check_entry(name, flags, method, packed, size)
            if name in entries:
                raise refuse(f"entry {name!r} appears twice")
            entries[name] = Entry(name, method, flags, crc, packed, size, offset)
            at = body + name_len + extra_len + comment_len
        if at != length:
            raise refuse("the archive's directory has more bytes than entries")
        return entries

    def _check_layout(self, end: int) -> dict[str, int]:
        """Where the data of each entry starts; local headers agree with the directory, and every byte belongs to one entry."""
        starts: dict[str, int] = {}
        free_from, before = 0, None
        for entry in sorted(self.entries.values(), key=lambda item: item.header_offset):
            self._check_gap(before, free_from, entry.header_offset)
            if entry.header_offset < free_from or entry.header_offset + _LOCAL.size > end:
                raise refuse(f"entry {entry.name!r} overlaps another or lies outside the archive")
            start = self._check_header(entry)
            free_from, before = start + entry.compressed_bytes, entry
            if free_from > end:
                raise refuse(f"entry {entry.name!r} lies outside the archive")
            starts[entry.name] = start
        self._check_gap(before, free_from, end)
        return starts

    def _check_header(self, entry: Entry) -> int:
        """Where the entry's data starts, its own header being what the directory says."""
        at = entry.header_offset + _LOCAL.size
        signature, _, flags, method, _, _, crc, packed, size, name_len, extra_len = _LOCAL.unpack(
            self._source.read_at(entry.header_offset, _LOCAL.size)
        )
        name = _name_of(self._source.read_at(at, name_len), flags)
        extra = self._source.read_at(at + name_len, extra_len)
        same = signature == b"PK\x03\x04" and name == entry.name and method == entry.method
        same &= not (flags ^ entry.flags) & (_ENCRYPTED | _UTF8 | _DATA_DESCRIPTOR)
        size, packed, _ = _with_zip64(extra, size, packed, 0)
        if not flags & _DATA_DESCRIPTOR:
            same &= (crc, packed, size) == (entry.crc, entry.compressed_bytes, entry.size_bytes)
        if not same:
            raise refuse(f"entry {entry.name!r} differs between the directory and its own header")
        return int(at + name_len + extra_len)

    def _check_gap(self, entry: Entry | None, start: int, end: int) -> None:
        """Between the data of `entry` and what comes next lies its data descriptor (4.3.9) when it has one, and nothing else.

        A reader that goes from header to header, as one of a stream does, would find more there than the directory tells.
        """
        if entry is not None and entry.flags & _DATA_DESCRIPTOR:
            short = struct.pack("<L2Q", entry.crc, entry.compressed_bytes, entry.size_bytes)
            forms = [short]
            if entry.compressed_bytes <= _BIG and entry.size_bytes <= _BIG:
                forms.append(struct.pack("<3L", entry.crc, entry.compressed_bytes, entry.size_bytes))
            forms += [b"PK\x07\x08" + form for form in forms]
            if 0 <= end - start <= 24 and self._source.read_at(start, end - start) in forms:
                return
        elif end <= start:  # below: an overlap, which the caller names
            return
        raise refuse(f"the archive has {end - start} bytes from byte {start} that belong to no entry")


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
    if flags & _PATCHED:
        raise refuse(f"entry {name!r} is a patch of other data")
    if method not in (STORED, DEFLATED):
        raise refuse(f"entry {name!r} uses compression method {method}; only stored and deflated are read")
    if method == STORED and packed != size:
        raise refuse(f"entry {name!r} is stored and has two sizes")


def _with_zip64(extra: bytes, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """Section 4.5.3: what does not fit in 32 bits stands in extra field 1, in this order."""
    at, seen = 0, False
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if at + 4 + length > len(extra):
            raise refuse("an entry's extra field is damaged")
        if kind == _UNICODE_PATH:
            raise refuse("an entry has a second name in an extra field")
        if kind == _SIZES_AND_OFFSET:
            if seen:
                raise refuse("an entry has its sizes in two extra fields")
            seen = True
            values = [value for (value,) in struct.iter_unpack("<Q", extra[at + 4 : at + 4 + length // 8 * 8])]
            if size == _BIG and values:
                size = values.pop(0)
            if packed == _BIG and values:
                packed = values.pop(0)
            if offset == _BIG and values:
                offset = values.pop(0)
        at += 4 + length
    return size, packed, offset
