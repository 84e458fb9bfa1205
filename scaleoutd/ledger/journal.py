# SPDX-License-Identifier: Apache-2.0
"""The trail on disk: segments NNNNNNNN.jsonl of lines, appended and made durable, never rewritten.

Rules:
  1. `append` writes all its lines with one write and one fdatasync, and returns after it.  When the write fails the file is
     cut back to what it was, so nothing is half there; the caller may try again when there is space.
  2. When fdatasync or the cutting back fails, nobody knows what the disk has (Linux reports a write-back error once and
     drops the pages): the journal is `failed` for good, and the process must end and read again.
  3. A last line without its newline is the rest of a crash and was never acknowledged.  It is set aside in torn/ and handed
     to the caller, who puts that on record.  The same for a tail of NUL bytes, which a file system leaves after a power cut.
  4. A segment that is complete becomes read-only.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scaleoutd.durable import make_private_folder, replace_file, storage_errors, sync_folder
from scaleoutd.errors import LedgerError

_NAME = re.compile(r"([0-9]{8})\.jsonl")
SEGMENT_MODE, CLOSED_MODE = 0o640, 0o440  # the group may read: scaleoutd-audit


@dataclass(frozen=True)
class Torn:
    """What was set aside: the file it was cut from, how much, and its digest."""

    file: str
    size_bytes: int
    sha256: str


class Journal:
    """The segments of `folder`; opens the last one for appending, makes the first when there is none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.failed = False
        with storage_errors(f"read {folder}"):
            numbers = sorted(int(match[1]) for name in os.listdir(folder) if (match := _NAME.fullmatch(name)))
        self.number = numbers[-1] if numbers else 1
        self.numbers = numbers or [1]
        self._fd = -1
        self._end = 0
        self.torn = self._open()

    @property
    def path(self) -> Path:
        return self.folder / segment_name(self.number)

    @property
    def size_bytes(self) -> int:
        return self._end

    def lines(self, number: int) -> Iterator[bytes]:
        """The lines of a segment, without newlines."""
        path = self.folder / segment_name(number)
        with storage_errors(f"read {path}"), path.open("rb") as file:
            for line in file:
                yield line.removesuffix(b"\n")

    def append(self, lines: Sequence[bytes]) -> None:
        """Makes `lines` durable in this order; StorageError, and then none of them is there."""
        if self.failed:
            raise LedgerError("cannot append: the disk did not take an earlier write", hint="Look at the kernel's log.")
        data = b"".join(line + b"\n" for line in lines)
        with storage_errors(f"append to {self.path}"):
            try:
                written = 0
                while written < len(data):
                    written += os.pwrite(self._fd, memoryview(data)[written:], self._end + written)
            except OSError:
                self._cut_back()
                raise
            try:
                os.fdatasync(self._fd)
            except OSError:
                self.failed = True
                raise
        self._end += len(data)

    def next_segment(self) -> None:
        """Closes the segment and begins the next one, durably."""
        with storage_errors(f"close {self.path}"):
            os.fchmod(self._fd, CLOSED_MODE)
            os.fsync(self._fd)
        old = self._fd
        self.number += 1
        try:
            self._open()
        except BaseException:
            self.number -= 1
            self._fd = old
            self._end = self.path.stat().st_size
            raise
        os.close(old)
        self.numbers.append(self.number)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> Torn | None:
        path = self.path
        with storage_errors(f"open {path}"):
            existed = path.exists()
            if existed and path.stat().st_mode & 0o200 == 0:
                path.chmod(SEGMENT_MODE)  # closed, and the next one was not made before a crash
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, SEGMENT_MODE)
            try:
                if not existed:
                    os.fchmod(fd, SEGMENT_MODE)
                    sync_folder(self.folder)
                torn, end = _set_aside(fd, path, self.folder)
            except BaseException:
                os.close(fd)
                raise
            self._fd, self._end = fd, end
        return torn

    def _cut_back(self) -> None:
        try:
            os.ftruncate(self._fd, self._end)
        except OSError:
            self.failed = True
            raise


def segment_name(number: int) -> str:
    return f"{number:08d}.jsonl"


def set_aside(folder: Path, name: str, offset: int, data: bytes) -> Torn:
    """Keeps `data`, the rest of a crash of file `name` at `offset`, in torn/."""
    kept = make_private_folder(folder / "torn") / f"{name}.{offset}"
    replace_file(kept, data)
    return Torn(name, len(data), hashlib.sha256(data).hexdigest())


def _set_aside(fd: int, path: Path, folder: Path) -> tuple[Torn | None, int]:
    size = os.fstat(fd).st_size
    end = _whole_lines(fd, size)
    if end == size:
        return None, end
    rest = os.pread(fd, size - end, end)
    torn = set_aside(folder, path.name, end, rest)
    os.ftruncate(fd, end)
    os.fsync(fd)
    return torn, end


def _whole_lines(fd: int, size: int) -> int:
    """Length of the file up to its last newline, and without a tail of NUL bytes."""
    block = 64 * 1024
    position = size
    while position > 0:
        start = max(0, position - block)
        data = os.pread(fd, position - start, start)
        nul = data.find(b"\x00")
        if nul >= 0:
            data = data[:nul]
        cut = data.rfind(b"\n")
        if cut >= 0 and not (nul < 0 and position == size and cut == len(data) - 1):
            return start + cut + 1
        if cut >= 0:
            return size
        position = start
    return 0
