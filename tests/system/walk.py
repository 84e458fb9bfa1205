# SPDX-License-Identifier: Apache-2.0
"""A document of the administrators followed in a booted guest: tests/e2e/walkthrough.py with the guest's shell for a terminal.

The terminals are pipes, not ptys: what a command prints is what it prints into a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.e2e.walkthrough import SHELL, Terminal, Walkthrough
from tests.system.guest import Guest

FOLDER = Path("/root/brought")
# As a login has it; no pager waits for a key.
ENVIRONMENT = {"HOME": "/root", "LANG": "C.UTF-8", "SYSTEMD_PAGER": "cat", "DEBIAN_FRONTEND": "noninteractive"}


class GuestTerminal(Terminal):
    """A shell of root in the guest; `folder` is the guest's."""

    def __init__(self, guest: Guest, folder: Path, environment: Mapping[str, str]) -> None:
        self._guest = guest
        super().__init__(folder, environment)

    def __post_init__(self) -> None:
        # Commands come by the standard input, which the commands themselves do not get.
        self._process = self._guest.start(
            f"exec 9<&0 </dev/null 2>&1; {SHELL}", cwd=str(self.folder), env=self.environment, stdin=None, sink=self.arrive
        )

    def write_command(self, line: bytes) -> None:
        self._process.send(line)

    def wait_status(self, timeout_s: float = 90) -> int:
        return super().wait_status(timeout_s * self._guest.patience)

    def close(self) -> None:
        self._process.end_input()
        self._process.wait()


class GuestWalkthrough(Walkthrough):
    """Runs a document's blocks as root in `folder` of the guest."""

    def __init__(self, guest: Guest, folder: Path = FOLDER) -> None:
        super().__init__(folder, ENVIRONMENT, timeout_s=60 * guest.patience)
        self._guest = guest

    def new_terminal(self, folder: Path) -> Terminal:
        return GuestTerminal(self._guest, folder, self._environment)
