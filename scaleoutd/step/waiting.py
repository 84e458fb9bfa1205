# SPDX-License-Identifier: Apache-2.0
"""The two processes of a run before there is a plan, and the launcher's ends of their sockets.

They are forked while the launcher is warm and nobody waits: forks, namespaces and the part of the view that every run has are
most of the way to an exec, and depend on nothing that a request says.  What waits is our own code with nothing of anybody's in
it; it ends with the launcher, whose sockets hang up.
"""

from __future__ import annotations

import os
import select
import signal
import socket

from scaleoutd.errors import LaunchError
from scaleoutd.step import init, namespaces, orders

_END_MS = 2000


class Waiting:
    """Pid 1 (init.py) with its main process, forked for `base`."""

    def __init__(self, base: orders.Base) -> None:
        self.base = base
        self.out, out = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.out, False)
        self.control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.door, door = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = 0
        try:
            self.pid = _fork(base, out, control.fileno(), door.fileno())
        except BaseException:
            self.close_ends()
            raise
        finally:
            os.close(out)
            control.close()
            door.close()

    def fits(self, *, own_namespaces: bool) -> bool:
        """Whether a plan with or without namespaces of its own can be carried out here: neither process has failed or ended."""
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        poll.register(self.door, select.POLLIN)
        return self.base.own_namespaces == own_namespaces and not poll.poll(0)

    def discard(self) -> None:
        """Ends what got no order: pid 1 ends its child and itself when our ends are closed; it is the launcher's own still."""
        self.close_ends()
        ended = os.pidfd_open(self.pid)
        try:
            poll = select.poll()
            poll.register(ended, select.POLLIN)
            if not poll.poll(_END_MS):
                os.kill(self.pid, signal.SIGKILL)
        finally:
            os.close(ended)
        os.waitpid(self.pid, 0)

    def close_ends(self) -> None:
        self.door.close()
        self.control.close()
        os.close(self.out)


def _fork(base: orders.Base, out: int, control: int, door: int) -> int:
    try:
        pid = namespaces.fork_in_pid_namespace() if base.own_namespaces else os.fork()
    except OSError as exc:
        raise LaunchError(f"cannot start the step: {exc.strerror} ({exc.filename or 'fork'})") from exc
    if pid == 0:
        init.run(base, out, control, door)
    return pid
