# SPDX-License-Identifier: Apache-2.0
"""The folder of a guest on the host: who holds its lock lives, and what is nobody's is removed, its empty cgroups too."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

PLACE = Path("/var/tmp")  # on disk: what a guest writes must not count as memory of its units
PREFIX = "scaleoutd-guest-"


class GuestFolder:
    """A new folder.  Its lock is this process's alone, so that its end, however it comes, tells the next session."""

    def __init__(self) -> None:
        remove_left()
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=PLACE))
        self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def remove(self) -> None:
        remove(self.path)
        os.close(self._lock)


def remove(folder: Path) -> None:
    """Removes a dead guest's cgroups and its folder."""
    listed = folder / "cgroups"
    cgroups = {Path(line) for line in listed.read_text().splitlines()} if listed.exists() else set()
    end_s = time.monotonic() + 10
    for cgroup in cgroups:
        # The kernel empties the cgroups of killed processes a moment after they are gone; nothing can be waited for in v1.
        while cgroup.exists():
            try:
                for path, _, _ in os.walk(cgroup, topdown=False):
                    os.rmdir(path)
            except OSError:
                assert time.monotonic() < end_s, f"{cgroup} still has processes: {(cgroup / 'cgroup.procs').read_text()}"
                time.sleep(0.01)
    shutil.rmtree(folder)


def remove_left() -> None:
    """Removes what guests left whose session was killed: the lock on their folder is free."""
    for folder in PLACE.glob(f"{PREFIX}*"):
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(folder)
        except BlockingIOError:
            pass
        finally:
            os.close(fd)
