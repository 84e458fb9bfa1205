# SPDX-License-Identifier: Apache-2.0
"""A step instance of the command line's own: for `doctor`, which proves, and for `run --shell`, which lets a person in.

Started as the parent of the rooms does it (rooms.py): the launcher with one end of a socket pair as descriptor 3.  No runner
is asked, so nothing that happens in it can leave: there is no gate, no outbox and no combiner here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from scaleoutd.errors import LaunchError, PeerError
from scaleoutd.ipc.channel import Channel
from scaleoutd.ipc.packets import Connection
from scaleoutd.step.start import CONNECTION_FD, launcher_command

END_S = 30.0


@dataclass(frozen=True)
class OwnInstance:
    """`channel` speaks ipc/step; `launcher` is the pid of the program."""

    channel: Channel
    launcher: int


@contextmanager
def own_instance() -> Iterator[OwnInstance]:
    """A launcher that has said hello; at the end whatever runs in it is killed, and its scratch emptied."""
    ours, theirs = Connection.pair()
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(
            # The shell-less way to have a descriptor as number 3 without a preexec function.
            [sys.executable, "-I", "-S", "-B", "-c", _EXEC, str(theirs.fileno()), *launcher_command(sys.executable)],
            stdin=subprocess.DEVNULL,
            stderr=words,
            pass_fds=[theirs.fileno()],
            cwd="/",
            env={"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"},
            process_group=0,
        )
        theirs.close()
        channel = Channel(ours, "step")
        try:
            try:
                channel.greet("runner")
            except PeerError as exc:
                process.wait(END_S)
                words.seek(0)
                said = words.read(2000).decode("utf-8", "replace").strip().splitlines()
                raise LaunchError(f"cannot start a step instance: {said[-1] if said else exc.message}") from exc
            yield OwnInstance(channel, process.pid)
        finally:
            channel.connection.shut()
            channel.connection.drain(END_S)
            channel.close()
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


_EXEC = f"import os, sys; os.dup2(int(sys.argv[1]), {CONNECTION_FD}); os.execv(sys.argv[2], sys.argv[2:])"
