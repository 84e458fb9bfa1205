# SPDX-License-Identifier: Apache-2.0
"""A warm process of the foreground that does nothing but fork launchers, so that an instance costs 3 ms and not 50.

The parent of the rooms starts it as it would start a launcher and sends it, for each connection to the step, one packet with
that connection.  The child is a launcher (launcher.py) like any other: the connection is its descriptor 3, it holds nothing else
but its standard streams, and makes its own cgroup and namespaces.  See docs/adr/0012-template-of-launchers.md.

Rules:
  1. The template reads nothing but these packets, opens nothing, and runs no request: there is no state that a launcher could
     inherit from an earlier run, and no secret.
  2. Every descriptor but the connection is closed in the child before it does anything else.
  3. When the parent hangs up, it waits for its launchers, who end with their own connections; at SIGTERM it kills them.
  4. Launchers of one template share hash seed and addresses, so the parent replaces it after LAUNCHERS_OF_ONE.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from scaleoutd.core import records
from scaleoutd.errors import PeerError, ScaleoutError
from scaleoutd.ipc.channel import Channel, Hello
from scaleoutd.ipc.packets import Connection
from scaleoutd.ipc.step import Launch
from scaleoutd.step import launcher, seccomp, syscalls
from scaleoutd.step.start import CONNECTION_FD


class _Ended(Exception):
    """SIGTERM has come."""


class Template:
    """`serve` returns in the template at its end; in a launcher it does not return."""

    def __init__(self, parent: Connection) -> None:
        self._parent: Connection | None = parent
        self._launchers: dict[int, int] = {}  # pidfd → pid
        self._poll = select.poll()
        self._poll.register(parent.fileno(), select.POLLIN)

    def serve(self) -> None:
        """Until the parent has hung up and the last launcher has ended, or SIGTERM."""
        try:
            while self._parent is not None or self._launchers:
                for fd, _ in self._poll.poll():
                    if fd in self._launchers:
                        self._reap(fd)
                    else:
                        self._take()
        except _Ended:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            for pid in self._launchers.values():
                os.kill(pid, signal.SIGKILL)  # not waited for yet, so the number is still its own
            for fd in list(self._launchers):
                self._reap(fd)

    def _take(self) -> None:
        """The next packet.  One that cannot be understood ends the conversation as a hang-up does: the parent never sends it."""
        parent = self._parent
        if parent is None:
            return
        try:
            received = Channel(parent, "parent").receive(Launch, timeout_s=0)
            try:
                if len(received.descriptors) != 1:
                    raise PeerError("cannot start a launcher: exactly one descriptor, its connection, must come with the message")
                self._fork(parent, received.descriptors[0])
            finally:
                received.close()
        except PeerError:
            self._poll.unregister(parent.fileno())
            parent.close()
            self._parent = None

    def _fork(self, parent: Connection, connection: int) -> None:
        # Until the child has its own disposition, SIGTERM would raise in it what is the template's.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        pid = os.fork()
        if pid == 0:
            parent.detach()
            _be_launcher(connection, mask)
        try:
            pidfd = os.pidfd_open(pid)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._launchers[pidfd] = pid
        self._poll.register(pidfd, select.POLLIN)

    def _reap(self, pidfd: int) -> None:
        self._poll.unregister(pidfd)
        os.waitpid(self._launchers.pop(pidfd), 0)
        os.close(pidfd)


def _be_launcher(connection: int, mask: set[signal.Signals | int]) -> NoReturn:
    status = 1
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.dup2(connection, CONNECTION_FD)  # in the place of the template's own
        syscalls.close_range(CONNECTION_FD + 1)
        launcher.main()
        status = 0
    except SystemExit as exc:
        status = exc.code if isinstance(exc.code, int) else 1
    except BaseException:  # noqa: BLE001 - as the interpreter would: told, and the end
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)  # nothing of the template's is finished in its child


def _end(number: int, frame: FrameType | None) -> None:
    raise _Ended


def main() -> None:
    """Entry point; the connection to the parent of the rooms is descriptor 3.  See start.py."""
    os.umask(0o077)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    parent = Connection.from_descriptor(CONNECTION_FD)
    os.set_inheritable(CONNECTION_FD, False)
    records.learn(Hello, Launch, *launcher.REQUESTS)
    with suppress(ScaleoutError):  # a damaged installation: each launcher meets it too, and says it where it is heard
        seccomp.loaded()
    gc.collect()
    gc.freeze()  # what is shared stays shared: no collection of a child writes into it
    Template(parent).serve()
