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

    @property
    def trouble(self) -> str: ...


def text_of(recorder: Counters) -> str:
    """One line for a person: what there is, or why nothing more is recorded."""
    if cause := _cause(recorder):
        return f"records nothing: {cause}"
    return f"{recorder.size} events, {recorder.signed} of them signed"


def _cause(recorder: Counters) -> str:
    return "the disk did not take a write" if recorder.failed else recorder.trouble


class LedgerDesk:
    """A Desk (ipc/control.py) of `recorder`."""

    def __init__(self, recorder: Counters) -> None:
        self._recorder, self._since_ms = recorder, time.time_ns() // 1_000_000

    def report(self) -> StatusReport:
        cause, hint = _cause(self._recorder), ""
        if cause:
            hint = "See the kernel's log." if self._recorder.failed else "Make room for the trail; it goes on by itself."
        return StatusReport(
            room="ledger",
            build=__version__,
            pid=os.getpid(),
            since_ms=self._since_ms,
            state="refusing" if cause else "serving",
            text=text_of(self._recorder),
            code="ledger-unavailable" if cause else "",
            message=cause[:1024],
            hint=hint,
            facts={"events": self._recorder.size, "signed_events": self._recorder.signed},
        )

    def do(self, command: Command, operator: Operator, files: Mapping[str, int]) -> Done:
        raise refuse_command("ledger", command)
