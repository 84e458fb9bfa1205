# SPDX-License-Identifier: Apache-2.0
"""Bytes of somebody else, read in place: a file, a part of it, or an inflated part of it.

A source has a size and gives bytes at an offset; nothing is ever held but one chunk.  Inflated sources keep a copy of the
decompressor's state every 16 MiB, so reading backwards costs one stretch and not the whole.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from typing import Protocol

from scaleoutd.errors import FormatError

CHUNK_BYTES = 256 * 1024
_STRETCH_BYTES = 16 << 20
_MAX_CAUSE_CHARS = 1600


class Source(Protocol):
    size: int

    def read_at(self, offset: int, count: int) -> bytes:
        """Exactly `count` bytes; FormatError when there are fewer."""
        ...


def chunks(source: Source, offset: int, length: int, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """The bytes from `offset`, in pieces whose size is a multiple of 32 but for the last."""
    end = offset + length
    while offset < end:
        data = source.read_at(offset, min(chunk_bytes, end - offset))
        offset += len(data)
        yield data


def refuse(cause: str, code: str = "container-invalid") -> FormatError:
    return FormatError(
        f"cannot read the model: {cause[:_MAX_CAUSE_CHARS]}", code=code, hint="Ask who made the model to write it again."
    )


class FileSource:
    """An open regular file."""

    def __init__(self, fd: int, size: int) -> None:
        self.size = size
        self._fd = fd

    def read_at(self, offset: int, count: int) -> bytes:
        data = os.pread(self._fd, count, offset)
        while len(data) < count:
            more = os.pread(self._fd, count - len(data), offset + len(data))
            if not more:
                raise refuse(f"it ends at byte {offset + len(data)}, {offset + count} were announced")
            data += more
        return data


class PartSource:
    """`size` bytes of another source from `start`."""

    def __init__(self, source: Source, start: int, size: int) -> None:
        if start < 0 or size < 0 or start + size > source.size:
            raise refuse(f"a part from byte {start} to {start + size} lies outside the {source.size} bytes there are")
        self.size = size
        self._source = source
        self._start = start

    def read_at(self, offset: int, count: int) -> bytes:
        if offset + count > self.size:
            raise refuse(f"a part ends at byte {self.size}, {offset + count} were announced")
        return self._source.read_at(self._start + offset, count)


class InflatedSource:
    """A raw deflate stream of `size` bytes, inflated; more or less than that is refused when it is met."""

    def __init__(self, source: Source, size: int) -> None:
        self.size = size
        self._source = source
        self._marks: list[tuple[int, int, bytes, zlib._Decompress]] = []
        self._restart()

    def _restart(self) -> None:
        self._position = 0  # of the next inflated byte
        self._consumed = 0  # of the source
        self._tail = b""  # read from the source, not yet inflated
        self._decompressor = zlib.decompressobj(-15)

    def read_at(self, offset: int, count: int) -> bytes:
        if offset + count > self.size:
            raise refuse(f"a compressed part has {self.size} bytes, {offset + count} were announced")
        if offset < self._position:
            self._rewind(offset)
        while self._position < offset:
            self._next(min(CHUNK_BYTES, offset - self._position))
        pieces = []
        while count:
            piece = self._next(min(CHUNK_BYTES, count))
            pieces.append(piece)
            count -= len(piece)
        return b"".join(pieces)

    def check_end(self) -> None:
        """Refuses a stream that holds more than it announced."""
        if self.size:
            self.read_at(self.size - 1, 1)
        extra = self._inflate(1)
        if extra or not self._decompressor.eof:
            raise refuse(f"a compressed part is longer than the {self.size} bytes it announces")
        if self._decompressor.unused_data or self._consumed < self._source.size:
            raise refuse("a compressed part goes on after its end")

    def _rewind(self, offset: int) -> None:
        before = [mark for mark in self._marks if mark[0] <= offset]
        self._restart()
        if before:
            self._position, self._consumed, self._tail, state = before[-1]
            self._decompressor = state.copy()

    def _next(self, count: int) -> bytes:
        last = self._marks[-1][0] if self._marks else 0
        if self._position - last >= _STRETCH_BYTES:
            self._marks.append((self._position, self._consumed, self._tail, self._decompressor.copy()))
        data = self._inflate(count)
        if not data:
            raise refuse(f"a compressed part ends at byte {self._position}, {self.size} were announced")
        self._position += len(data)
        return data

    def _inflate(self, count: int) -> bytes:
        while not self._decompressor.eof:
            if not self._tail and self._consumed < self._source.size:
                take = min(CHUNK_BYTES, self._source.size - self._consumed)
                self._tail = self._source.read_at(self._consumed, take)
                self._consumed += take
            ended = not self._tail
            try:
                data = self._decompressor.decompress(self._tail, count)
            except zlib.error as exc:
                raise refuse(f"a compressed part is damaged: {exc}") from exc
            self._tail = self._decompressor.unconsumed_tail
            if data:
                return data
            if ended:
                break
        return b""
