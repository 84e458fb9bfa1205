# SPDX-License-Identifier: Apache-2.0
"""The launchers of a node in the foreground, as its parent has them: forked by a template (step/template.py).

systemd starts an interpreter for each connection to the step; here a warm process forks.  A template that is gone is started
again, and one is replaced after LAUNCHERS_OF_ONE, because what it forks shares its hash seed and its addresses; the old one ends
with the last of its launchers.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from scaleoutd.errors import PeerError
from scaleoutd.ipc.channel import Channel
from scaleoutd.ipc.packets import Connection
from scaleoutd.ipc.step import Launch
from scaleoutd.step.start import CONNECTION_FD, template_command

LAUNCHERS_OF_ONE = 64
END_S = 2.0


class Launchers:
    """`launch` returns at once; the launcher's hello says when it is there."""

    def __init__(self) -> None:
        self._template: Channel | None = None
        self._forked = 0
        self._pids: set[int] = set()  # of templates

    def warm(self) -> None:
        """Starts a template, so that the first launcher does not wait for it."""
        if self._template is not None:
            return
        ours, theirs = Connection.pair()
        command = template_command(sys.executable)
        try:
            self._pids.add(
                os.posix_spawn(
                    command[0],
                    command,
                    {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"},
                    file_actions=[
                        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                        (os.POSIX_SPAWN_DUP2, theirs.fileno(), CONNECTION_FD),
                    ],
                    setpgroup=0,
                )
            )
        finally:
            theirs.close()
        self._template, self._forked = Channel(ours, "step"), 0

    def launch(self, end: Connection) -> None:
        """Has a launcher started for one connection; PeerError when no template takes it."""
        if self._forked >= LAUNCHERS_OF_ONE:
            self._retire()
        try:
            self._ask(end)
        except PeerError:  # it was killed: once more, with a new one
            self._retire()
            self._ask(end)

    def reap(self) -> None:
        """Waits for templates that have ended."""
        self._pids = {pid for pid in self._pids if os.waitpid(pid, os.WNOHANG)[0] == 0}

    def stop(self) -> None:
        """Ends all of them: launchers end with their connections, what is left after END_S seconds is killed."""
        self._retire()
        deadline_s = time.monotonic() + END_S
        self.reap()
        while self._pids and time.monotonic() < deadline_s:
            time.sleep(0.005)
            self.reap()
        for pid in self._pids:
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)
        self._pids.clear()

    def _ask(self, end: Connection) -> None:
        self.warm()
        assert self._template is not None  # noqa: S101
        self._template.tell(Launch(), [end.fileno()])
        self._forked += 1

    def _retire(self) -> None:
        if self._template is not None:
            self._template.close()
            self._template = None
