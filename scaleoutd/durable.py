# SPDX-License-Identifier: Apache-2.0
"""Files that survive a crash: atomic replacement and an append-only state file.

Rules (POSIX rename(2), fsync(2); the order is the one every journalled file system honours):
  1. A file is replaced by: write to a new name in the same folder, fsync, rename, fsync the folder.
  2. An append is acknowledged after fdatasync.  A last line without its newline is the mark of a crash in the middle
     of a write: it was never acknowledged, it is cut off and handed to the caller, who puts that on record.
  3. Modes are explicit; the umask of the caller does not matter.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from scaleoutd.errors import ConfigError, FormatError, StorageError

T = TypeVar("T")


@contextmanager
def storage_errors(act: str) -> Iterator[None]:
    """Turns OSError into StorageError: "cannot {act}: …"; ENOSPC and EDQUOT have their own code."""
    try:
        yield
    except OSError as exc:
        full = exc.errno in (errno.ENOSPC, errno.EDQUOT)
        raise StorageError(
            f"cannot {act}: {exc.strerror or exc}",
            code="storage-full" if full else "storage-failed",
            hint="Free space on that file system." if full else "See the path's owner, mode and file system.",
        ) from exc


def read_state(path: Path, decode: Callable[[bytes], T], hint: str) -> T | None:
    """What `decode` makes of a state file, None when it is not there; `state-corrupt`, with `hint`, where that is FormatError."""
    with storage_errors(f"read {path}"):
        if not path.exists():
            return None
        data = path.read_bytes()
    try:
        return decode(data)
    except FormatError as exc:
        raise StorageError(f"cannot read {path}: {exc.message}", code="state-corrupt", hint=hint) from exc


def sync_folder(folder: Path) -> None:
    """fsync of a folder: makes names in it durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file(path: Path) -> None:
    """fsync of a file that was written before."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_together(barriers: Sequence[Callable[[], object]]) -> None:
    """Does all `barriers` beside each other; returns when every one is done, raises the first failure."""
    failures: list[BaseException] = []

    def wait_for(barrier: Callable[[], object]) -> None:
        try:
            barrier()
        except BaseException as exc:  # noqa: BLE001 - raised in the caller's thread
            failures.append(exc)

    threads = [threading.Thread(target=wait_for, args=[barrier], name="barrier") for barrier in barriers[1:]]
    for thread in threads:
        thread.start()
    wait_for(barriers[0])
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def make_private_folder(folder: Path) -> Path:
    """`folder` and its parents; `folder` itself is 0700.  Returns it."""
    with storage_errors(f"make the folder {folder}"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_mode & 0o777 != 0o700 and folder.stat().st_uid == os.geteuid():
            folder.chmod(0o700)
    return folder


def hold_folder(folder: Path, room: str, wait_s: float) -> int:
    """Holds `folder` for this process as long as the descriptor is open (flock(2)); two rooms on one state tear it apart.

    Waits: a room whose parent was killed needs a moment to end, and the node may be started again at once.
    """
    deadline = time.monotonic() + wait_s
    with storage_errors(f"open {folder}"):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except OSError as exc:
            if time.monotonic() > deadline:
                os.close(fd)
                raise ConfigError(f"cannot use {folder}: another {room} has it open", hint="End the other node first.") from exc
        time.sleep(0.02)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Every byte of `data`; write(2) may take less."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def replace_file(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Atomically and durably gives `path` the content `data`."""
    with storage_errors(f"write {path}"):
        temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            write_all(fd, data)
            os.fchmod(fd, mode)
            os.fsync(fd)
        except BaseException:
            os.close(fd)
            temporary.unlink(missing_ok=True)
            raise
        os.close(fd)
        temporary.rename(path)
        sync_folder(path.parent)


class AppendFile:
    """An append-only file of lines; each `append` returns after fdatasync.

    `lines` holds what was there when it was opened, `torn` the unacknowledged rest of a crash (b"" for none).
    """

    def __init__(self, path: Path, *, max_bytes: int = 64 * 1024 * 1024) -> None:
        self.path = path
        with storage_errors(f"open {path}"):
            existed = path.exists()
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                data = self._read_all(max_bytes)
                cut = data.rfind(b"\n") + 1
                self.lines = data[:cut].splitlines()
                self.torn = data[cut:]
                if self.torn:
                    os.ftruncate(self._fd, cut)
                    os.fsync(self._fd)
                self._end = cut
                self._unnamed = not existed  # its name becomes durable with its first line
            except BaseException:
                os.close(self._fd)
                raise

    def _read_all(self, max_bytes: int) -> bytes:
        size = os.fstat(self._fd).st_size
        if size > max_bytes:
            raise StorageError(f"cannot open {self.path}: {size} bytes, at most {max_bytes} are expected", code="state-corrupt")
        return os.pread(self._fd, size, 0) if size else b""

    def append(self, line: bytes, *, sync: bool = True) -> None:
        """Adds `line` (without newline) and makes it durable.  After a failure the file is as before.

        Without `sync` it survives the end of the process but not of the machine, until the next append with it.
        """
        if b"\n" in line:
            raise ValueError("a line has no newline")
        with storage_errors(f"append to {self.path}"):
            data = line + b"\n"
            try:
                written = 0
                while written < len(data):
                    written += os.pwrite(self._fd, data[written:], self._end + written)
                if sync:
                    self._barrier()
            except OSError:
                os.ftruncate(self._fd, self._end)
                raise
            self._end += len(data)

    def sync(self) -> None:
        """Makes everything appended so far durable."""
        with storage_errors(f"synchronise {self.path}"):
            self._barrier()

    def _barrier(self) -> None:
        os.fdatasync(self._fd)
        if self._unnamed:
            sync_folder(self.path.parent)
            self._unnamed = False

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
