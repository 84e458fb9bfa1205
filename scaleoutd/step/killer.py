# SPDX-License-Identifier: Apache-2.0
"""The end of processes that the launcher itself may not signal.

The launcher of a unit may become the step's user but is not it, and has no CAP_KILL: kill(2) of a step is EPERM.  So a child is
forked while all is well, waits, and when it is told a uid it becomes that user and calls kill(-1, SIGKILL), which reaches
every process of that uid and no other.  Or it kills one of them: a reader, while the sandbox of the same slot waits for its step.
It is forked early because a step that has filled the unit's TasksMax= leaves no room for a fork; it stays the launcher's until
then, because a step could end what has its own uid.
"""

from __future__ import annotations

import os
import signal
import struct
import time
from typing import NoReturn

from scaleoutd.errors import LaunchError
from scaleoutd.step import confine, syscalls
from scaleoutd.step.confine import Identity

_UIDS = struct.Struct("IIi")  # uid, gid, pid
_WORD = 0


class Killer:
    """One waiting child at a time."""

    def __init__(self) -> None:
        self._pid = self._pipe = 0
        self._fork()

    def kill(self, identity: Identity, pid: int = -1) -> None:
        """Ends `pid`, which is of `identity`, without one every process of it; returns when they are signalled.

        `pid` must be a child that was not waited for: the number is still its own.  LaunchError when there is no killer left.
        """
        if not self._pid:
            raise LaunchError("cannot end the step: there is no process left to do it", hint="The instance ends, and all in it.")
        os.write(self._pipe, _UIDS.pack(identity.uid, identity.gid, pid))
        os.close(self._pipe)
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        if status:
            raise LaunchError(f"cannot end the step: the process that does it ended with status {status}")
        self._fork()

    def _fork(self) -> None:
        read, write = os.pipe2(os.O_CLOEXEC)
        try:
            pid = os.fork()
        except OSError:
            # What it just ended may still be leaving.  Without a killer the next need ends the instance, and systemd the rest.
            os.close(read)
            os.close(write)
            return
        if pid == 0:
            _wait_and_kill(read)
        os.close(read)
        self._pid, self._pipe = pid, write


def _wait_and_kill(read: int) -> NoReturn:
    """The child.  Never returns."""
    try:
        os.dup2(read, _WORD)
        syscalls.close_range(_WORD + 1)
        os.setsid()
        word = os.read(_WORD, _UIDS.size)
        if len(word) < _UIDS.size:
            os._exit(0)  # the launcher is gone; its unit's cgroup is emptied by systemd
        uid, gid, pid = _UIDS.unpack(word)
        confine.become(Identity(uid, gid, change=True))
        # A process that forks while it is being killed leaves no child behind (fork(2) gives up when a signal is pending); the
        # second round is for one that changed places in the list.
        for _ in range(2):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                break
            time.sleep(0.001)
        os._exit(0)
    except BaseException:  # noqa: BLE001 - the launcher reads it from the status
        os._exit(70)
