# SPDX-License-Identifier: Apache-2.0
"""What the ledger tells an administrator (ipc/control.py).  It takes no command: nothing a person says stops the trail.

Called from a thread beside the ledger's loop, so it only reads counters that are replaced whole.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Protocol

from scaleoutd import __version__
from scaleoutd.ipc.control import Command, Done, Operator, StatusReport, refuse_command


class Counters(Protocol):
    """The part of the recorder that is told (ledger/recorder.py)."""

    @property
    def size(self) -> int: ...

    @property
    def signed(self) -> int: ...

    @property
    def failed(self) -> bool: ...


class LedgerDesk:
    """A Desk (ipc/control.py) of `recorder`."""

    def __init__(self, recorder: Counters) -> None:
        self._recorder, self._since_ms = recorder, time.time_ns() // 1_000_000

    def report(self) -> StatusReport:
        failed = self._recorder.failed
        return StatusReport(
            room="ledger",
            build=__version__,
            pid=os.getpid(),
            since_ms=self._since_ms,
            state="refusing" if failed else "serving",
            text=f"{self._recorder.size} events, {self._recorder.signed} of them signed",
            code="ledger-unavailable" if failed else "",
            message="the disk did not take a write" if failed else "",
            hint="See the kernel's log." if failed else "",
            facts={"events": self._recorder.size, "signed_events": self._recorder.signed},
        )

    def do(self, command: Command, operator: Operator, files: Mapping[str, int]) -> Done:
        raise refuse_command("ledger", command)
