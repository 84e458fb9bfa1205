# SPDX-License-Identifier: Apache-2.0
"""A request to stop a task, which a thread can wait for together with a socket (eventfd(2))."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable

STOPPING = "the agent is stopping"


class Interrupt:
    """Set once, with a reason: STOPPING, or why the combiner wants the task to end.  Breaks off the call registered last."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()
        self._break_off: Callable[[], object] | None = None
        self.reason = ""

    def set(self, reason: str) -> None:
        with self._lock:
            if not self.reason:
                self.reason = reason
                os.eventfd_write(self._fd, 1)
            if self._break_off:
                self._break_off()

    @property
    def cancels(self) -> str:
        """Why the task itself must end, "" when it need not."""
        return "" if self.reason == STOPPING else self.reason

    def on_call(self, break_off: Callable[[], object]) -> None:
        """`break_off` is called when the interrupt comes, or at once when it has come."""
        with self._lock:
            self._break_off = break_off
            if self.reason:
                break_off()

    def wait(self, timeout_s: float) -> bool:
        """True when it is set, after at most `timeout_s`."""
        return self.wait_with(-1, timeout_s)[0]

    def wait_with(self, fd: int, timeout_s: float | None) -> tuple[bool, bool]:
        """(set, `fd` is readable); waits for one of them."""
        own = self._fd
        if own < 0:
            return True, False
        poll = select.poll()
        poll.register(own, select.POLLIN)
        if fd >= 0:
            poll.register(fd, select.POLLIN)
        ready = {number for number, _ in poll.poll(None if timeout_s is None else int(timeout_s * 1000) + 1)}
        return own in ready, fd in ready

    def close(self) -> None:
        with self._lock:
            if self._fd >= 0:  # a number closed twice may be somebody else's by then
                os.close(self._fd)
                self._fd = -1
            self._break_off = None
            self.reason = self.reason or "closed"
