# SPDX-License-Identifier: Apache-2.0
"""The door for a second person to a node in the foreground: a control socket that other users of the host can reach.

The node's own folders are closed to others, so the socket lies in a fresh folder below /tmp, owned by who runs the node and
writable for nobody else.  Whoever may connect may only approve sessions and see which wait (runner/control.py); the kernel says
who they are.  There is no door unless the policy asks for a second person.
"""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

from scaleoutd.core.policy import Policy
from scaleoutd.durable import storage_errors
from scaleoutd.errors import ConfigError

SOCKET_NAME = "runner.control"


def door_for(policy: Policy) -> ApprovalDoor | None:
    """None when the policy asks for nobody; ConfigError when it does not say for whom, since any user could connect."""
    if policy.budget.approval == "none":
        return None
    if not set(policy.budget.approvers) - {"*"}:
        raise ConfigError(
            "cannot start in the foreground: the policy asks for a second person and names nobody",
            hint="Name users of this host under budget.approvers in the policy; `*` counts for an installed node only.",
        )
    return ApprovalDoor()


class ApprovalDoor:
    """Listens from the start on, so that a runner that is started again finds it; `close` removes it."""

    def __init__(self) -> None:
        with storage_errors("make the socket for approvals"):
            self._folder = Path(tempfile.mkdtemp(prefix="scaleoutd-approve-", dir="/tmp"))
            self.path = self._folder / SOCKET_NAME
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
            self._listener.bind(str(self.path))
            self._listener.listen()
            self.path.chmod(0o666)
            self._folder.chmod(0o711)

    def descriptors(self) -> tuple[list[str], list[int]]:
        """The runner's arguments, and a descriptor of its own."""
        fd = os.dup(self._listener.fileno())
        return ["--control", str(fd)], [fd]

    def close(self) -> None:
        self._listener.close()
        self.path.unlink(missing_ok=True)
        self._folder.rmdir()
