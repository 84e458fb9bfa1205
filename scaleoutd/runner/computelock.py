# SPDX-License-Identifier: Apache-2.0
"""One step at a time on a machine that several clients share: the official client's SCALEOUT_CLIENT_COMPUTE_LOCK.

The lock is flock(2) on a file, as the official client's filelock package takes it, so both kinds of client wait for each other.
The kernel gives it back when its holder dies.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scaleoutd.durable import storage_errors
from scaleoutd.errors import WorkloadError
from scaleoutd.ipc.messages import CancelTask
from scaleoutd.runner.link import Link

LOOK_AGAIN_S = 0.05


@contextmanager
def computing(path: Path | None, link: Link) -> Iterator[None]:
    """Holds the lock; waits for it as long as the other end of `link` wants the task."""
    if path is None:
        yield
        return
    with storage_errors(f"open the compute lock {path}"):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        while not _take(fd):
            if link.channel.connection.wait(LOOK_AGAIN_S):
                link.channel.receive(CancelTask).close()  # PeerError when the asker is gone
                raise WorkloadError("cannot run: the task was cancelled while it waited for its turn", code="step-cancelled")
        yield
    finally:
        os.close(fd)


def _take(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
