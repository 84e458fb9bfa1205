# SPDX-License-Identifier: Apache-2.0
"""What is allowed to leave, as the exact bytes that will leave.

    OUTBOX/<run>/update.zip     the container of a training result (core.container), written once
    OUTBOX/<run>/body.json      training metadata, metrics or prediction after the egress rules, canonical JSON

Written in a folder of another name, made durable, then renamed: a folder with the run's name is complete.  The digest that
goes on record is that of the bytes on disk, read back while they were written, and it is the digest the combiner sees.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import threading
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Self

from scaleoutd.core.container import container_around
from scaleoutd.durable import make_private_folder, storage_errors, sync_file, sync_folder, sync_together, write_all
from scaleoutd.errors import OutputError, StorageError
from scaleoutd.runner.receive import BUFFER_BYTES, hash_descriptor

WRITE_BEHIND_BYTES = 16 << 20


@dataclass(frozen=True)
class Outgoing:
    """What lies in the outbox for a run.  Without weights, size and digest are those of the body."""

    folder: Path
    body: bytes
    size_bytes: int
    sha256: str
    weights: bool

    def open_container(self) -> int:
        """A fresh read-only descriptor of the container."""
        with storage_errors(f"open the outbox of {self.folder.name}"):
            return os.open(self.folder / "update.zip", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)


class Outbox:
    """The folder of finished results; `abandoned` names half-written ones that a crash left (they are removed)."""

    def __init__(self, folder: Path) -> None:
        self.folder = make_private_folder(folder)
        self.abandoned = [path.name for path in folder.iterdir() if path.name.startswith(".")]
        for name in self.abandoned:
            shutil.rmtree(folder / name)

    def put(self, run: str, body: bytes, weights: int | None, *, model_id: str = "", helper_type: str = "") -> Outgoing:
        """Copies body and weights in and makes them durable; `weights` is a read-only descriptor."""
        work = self.folder / f".{run}"
        final = self.folder / run
        with storage_errors(f"write the outbox of {run}"), ExitStack() as undo:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(mode=0o700)
            undo.callback(shutil.rmtree, work, ignore_errors=True)
            size, sha256 = len(body), hashlib.sha256(body).hexdigest()
            if weights is not None:
                size, sha256 = _write_container(work / "update.zip", weights, model_id, helper_type)
            (work / "body.json").write_bytes(body)
            # Three barriers at once, because none needs another: the file system makes them one commit.
            paths = [work / "body.json", *([work / "update.zip"] if weights is not None else [])]
            sync_together([functools.partial(sync_file, path) for path in paths] + [functools.partial(sync_folder, work)])
            shutil.rmtree(final, ignore_errors=True)
            work.rename(final)
            undo.pop_all()
            sync_folder(self.folder)
        return Outgoing(final, body, size, sha256, weights is not None)

    def get(self, run: str, size_bytes: int, sha256: str) -> Outgoing:
        """What was put for `run`, proven again to be those bytes; StorageError when it is not."""
        folder = self.folder / run
        with storage_errors(f"read the outbox of {run}"):
            body = (folder / "body.json").read_bytes()
            weights = (folder / "update.zip").exists()
            found = Outgoing(folder, body, size_bytes, sha256, weights)
            if weights:
                fd = found.open_container()
                try:
                    digest = hash_descriptor(fd)
                finally:
                    os.close(fd)
            else:
                digest = hashlib.sha256(body).hexdigest()
        if digest != sha256:
            raise StorageError(
                f"cannot release run {run}: its outbox has SHA-256 {digest}, on record is {sha256}",
                code="state-corrupt",
                hint="The disk or somebody changed it; the result is lost. See the trail.",
            )
        return found

    def remove(self, run: str) -> None:
        """Forgets a result; one that is not there is no error."""
        if not (self.folder / run).exists():
            return
        with storage_errors(f"remove the outbox of {run}"):
            shutil.rmtree(self.folder / run, ignore_errors=True)
            sync_folder(self.folder)


def _write_container(path: Path, weights: int, model_id: str, helper_type: str) -> tuple[int, str]:
    """Size and SHA-256 of the container, which is not durable yet.

    Two passes over the weights: CRC-32 for the header, then copy and hash.
    """
    size, crc = _crc32_of(weights)
    container = container_around(size, crc, model_id=model_id, helper_type=helper_type)
    digest = hashlib.sha256()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        write_all(fd, container.head)
        digest.update(container.head)
        copied, check = _copy_weights(weights, fd, digest)
        # Nothing of the run is alive by now; a difference means that something wrote to it all the same.
        if (copied, check) != (size, crc):
            raise OutputError("cannot collect the weights: they changed while they were copied", code="output-unsafe")
        write_all(fd, container.tail)
        digest.update(container.tail)
    finally:
        os.close(fd)
    return container.size_bytes, digest.hexdigest()


def _copy_weights(source: int, target: int, digest: hashlib._Hash) -> tuple[int, int]:
    """Appends `source` to `target` and to `digest`; the bytes copied and their CRC-32.

    A large file is hashed by a thread beside the writes (hashlib and write(2) release the interpreter lock), and the disk
    begins while the copy goes on.
    """
    buffer = memoryview(bytearray(BUFFER_BYTES))
    copied = check = started = 0
    with _Beside(digest.update) as hasher:
        while count := os.preadv(source, [buffer], copied):
            data = buffer[:count]
            hasher.begin(data)
            write_all(target, data)
            check = zlib.crc32(data, check)
            hasher.wait()
            copied += count
            if copied - started >= WRITE_BEHIND_BYTES:
                # Linux starts to write dirty pages of a range that is "not needed" and drops only clean ones, of which there
                # are none yet: the fsync at the end then waits for the last few MiB and not for all.
                os.posix_fadvise(target, started, copied - started, os.POSIX_FADV_DONTNEED)
                started = copied
    return copied, check


class _Beside:
    """Does `work` on one piece at a time, a full one in a thread beside the caller; a small one is not worth it.

    concurrent.futures would do and costs an idle runner the memory of the logging package.
    """

    def __init__(self, work: Callable[[memoryview], object]) -> None:
        self._work = work
        self._pieces: SimpleQueue[memoryview | None] = SimpleQueue()
        self._done: SimpleQueue[BaseException | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._open = False

    def begin(self, piece: memoryview) -> None:
        if len(piece) < BUFFER_BYTES:
            self._work(piece)
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="hash")
            self._thread.start()
        self._pieces.put(piece)
        self._open = True

    def wait(self) -> None:
        """Until the piece is worked on; raises what the work raised."""
        if self._open:
            self._open = False
            failure = self._done.get()
            if failure is not None:
                raise failure

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._thread is not None:
            self._pieces.put(None)
            self._thread.join()

    def _serve(self) -> None:
        while (piece := self._pieces.get()) is not None:
            try:
                self._work(piece)
                self._done.put(None)
            except BaseException as exc:  # noqa: BLE001  raised again in the caller's thread
                self._done.put(exc)


def _crc32_of(fd: int) -> tuple[int, int]:
    buffer = memoryview(bytearray(BUFFER_BYTES))
    size = crc = 0
    while count := os.preadv(fd, [buffer], size):
        crc = zlib.crc32(buffer[:count], crc)
        size += count
    return size, crc
