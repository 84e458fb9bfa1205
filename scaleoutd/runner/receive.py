# SPDX-License-Identifier: Apache-2.0
"""The model on its way in: written by the agent, proven to be out of its hands, hashed, linked to a name the step sees.

Rules (open(2) O_TMPFILE, fcntl(2) F_SETLEASE, linkat(2)):
  1. The file has no name while the agent writes it, and mode 0600 of the runner: in the service the agent, another user,
     cannot open it again, neither for reading nor for writing.
  2. The agent gets a descriptor that can only write.
  3. It is hashed after a read lease was granted.  The kernel grants one only when no descriptor and no mapping anywhere
     can write the file: what was hashed cannot change any more, a taken agent included.
  4. What the agent says it wrote must be what was hashed: else the disk, the agent or the way between them is not to be trusted.
  5. The link to its name is made by the runner itself; nothing is copied.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from scaleoutd.durable import storage_errors
from scaleoutd.errors import LimitExceededError, PeerError, StorageError, TransportError

BUFFER_BYTES = 1 << 20
LEASE_WAIT_S = 5.0


@dataclass(frozen=True)
class ReceivedModel:
    """A model that nobody can write any more: its read-only descriptor, size and SHA-256 (hex)."""

    descriptor: int
    size_bytes: int
    sha256: str


def check_told(model: ReceivedModel, size_bytes: int, sha256: str) -> None:
    """TransportError `download-corrupt` unless the agent's own count of what it wrote is what was hashed here."""
    if (model.size_bytes, model.sha256) != (size_bytes, sha256):
        raise TransportError(
            f"cannot take the model: expected {size_bytes} bytes, sha256 {sha256}, as the agent says it wrote; found"
            f" {model.size_bytes} bytes, sha256 {model.sha256}",
            code="download-corrupt",
            hint="Look at the disk that holds the runner's state (`journalctl -k`); else the agent is not to be trusted.",
        )


class IncomingModel:
    """The file of one task's model.  `take_writer` once, then `seal`, then `link`; `close` in the end."""

    def __init__(self, folder: Path) -> None:
        with storage_errors(f"make a file in {folder}"):
            self._writer = os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            try:
                self.reader = os.open(f"/proc/self/fd/{self._writer}", os.O_RDONLY | os.O_CLOEXEC)
            except BaseException:
                os.close(self._writer)
                raise

    def take_writer(self) -> int:
        """The write-only descriptor, the caller's from now on: send it, then close it."""
        writer, self._writer = self._writer, -1
        return writer

    def seal(self, max_bytes: int) -> ReceivedModel:
        """Waits until no writer is left, then hashes."""
        deadline = time.monotonic() + LEASE_WAIT_S
        while True:
            try:
                fcntl.fcntl(self.reader, fcntl.F_SETLEASE, fcntl.F_RDLCK)
                break
            except OSError as exc:
                if exc.errno not in (errno.EAGAIN, errno.EACCES):
                    raise StorageError(
                        f"cannot lease the model's file: {exc.strerror}",
                        hint="The state folder must lie on a local file system with leases (ext4, xfs, btrfs, tmpfs).",
                    ) from exc
                if time.monotonic() > deadline:
                    raise PeerError("cannot take the model: the agent still holds its file open for writing") from exc
                time.sleep(0.002)
        size = os.fstat(self.reader).st_size
        if size > max_bytes:
            raise LimitExceededError(
                f"cannot take the model: {size} bytes, at most {max_bytes} are allowed",
                code="limit-model",
                hint="Raise limits.model_bytes in the policy.",
            )
        return ReceivedModel(self.reader, size, hash_descriptor(self.reader))

    def link(self, path: Path, mode: int = 0o444) -> None:
        """Gives the file the name `path`, readable for the step and writable for nobody."""
        with storage_errors(f"link the model to {path}"):
            os.fchmod(self.reader, mode)
            # CPython calls link(2), which does not follow the magic link, unless a directory descriptor is given.
            descriptors = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.link(str(self.reader), path, src_dir_fd=descriptors, follow_symlinks=True)
            finally:
                os.close(descriptors)

    def close(self) -> None:
        for fd in (self._writer, self.reader):
            if fd >= 0:
                os.close(fd)
        self._writer = self.reader = -1


def hash_descriptor(fd: int) -> str:
    """SHA-256 (hex) of a whole file, read through its descriptor with one buffer."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(BUFFER_BYTES))
    offset = 0
    with storage_errors("read a file to hash it"):
        while count := os.preadv(fd, [buffer], offset):
            digest.update(buffer[:count])
            offset += count
    return digest.hexdigest()
