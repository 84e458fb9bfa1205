# SPDX-License-Identifier: Apache-2.0
"""The agent's side of the audit trail.

`must` returns when the event is durable, or raises: for acts that may not happen without a record (sending).
`note` is for what has happened already: it is queued, goes out soon or with the next `must` in one barrier, and waits
while the ledger is away.  What does not fit into the queue then is counted and said in the log.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from scaleoutd.agent.log import Log
from scaleoutd.core import catalogue
from scaleoutd.errors import FormatError, ScaleoutError
from scaleoutd.ipc.messages import Recorded

LINGER_S = 0.2
RETRY_S = 2.0
MAX_WAITING = 1024
MAX_BATCH = 60

Event = tuple[str, dict[str, Any]]


class Ledger(Protocol):
    """LedgerClient, or a fake of it."""

    def record_all(self, events: Sequence[tuple[str, Mapping[str, Any]]]) -> Recorded: ...

    def close(self) -> None: ...


class Trail:
    """See the module.  Safe for several threads."""

    def __init__(self, ledger: Ledger, log: Log) -> None:
        self._ledger, self._log = ledger, log
        self._waiting: deque[Event] = deque()
        self._dropped = 0
        self._lock = threading.Lock()  # of the queue; never held while the ledger is asked
        self._order = threading.Lock()  # held while the ledger is asked, so that events keep their order
        self._wake, self._stop = threading.Event(), threading.Event()
        self.trouble = ""
        self._thread = threading.Thread(target=self._run, name="trail", daemon=True)
        self._thread.start()

    def note(self, type_: str, /, **body: Any) -> None:
        """Queues an event.  One that the catalogue does not know is a bug: it is in the log, and nothing else suffers."""
        try:
            catalogue.normalise(type_, body, "agent")
        except FormatError as exc:
            self._log.error(type_, exc)
            return
        with self._lock:
            if len(self._waiting) >= MAX_WAITING:
                self._waiting.popleft()
                self._dropped += 1
            self._waiting.append((type_, body))
        self._wake.set()

    def must(self, type_: str, /, **body: Any) -> None:
        """Makes the event, and what waits before it, durable; LedgerError when that is not possible now."""
        with self._order:
            while self._flush_some():
                pass
            self._record([*self._take(), (type_, body)], lost=1)

    def close(self, timeout_s: float = 1.0) -> None:
        """Writes what waits, within `timeout_s`."""
        self._stop.set()
        self._wake.set()
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            self._ledger.close()
        with self._lock:
            left = len(self._waiting)
        if left:
            self._log.error("agent-stopped", f"{left} events could not be recorded: the ledger was away")

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait()
            self._stop.wait(LINGER_S)
            self._wake.clear()
            self._flush()
        self._flush()  # what was noted while the last batch was written, or before this thread came to run

    def _flush(self) -> None:
        try:
            with self._order:
                while self._flush_some():
                    pass
        except ScaleoutError as exc:
            if exc.code != self.trouble:
                self._log.error("ledger", exc)
            self.trouble = exc.code
            self._stop.wait(RETRY_S)
            self._wake.set()

    def _flush_some(self) -> bool:
        """Writes a batch; False when less than a batch was waiting (`must` takes such a rest along)."""
        with self._lock:
            full = len(self._waiting) >= MAX_BATCH
        if full or threading.current_thread() is self._thread:
            events = self._take()
            if events:
                self._record(events, lost=0)
            return full
        return False

    def _take(self) -> list[Event]:
        with self._lock:
            return [self._waiting.popleft() for _ in range(min(MAX_BATCH, len(self._waiting)))]

    def _record(self, events: list[Event], lost: int) -> None:
        """`lost`: how many of the last events are the caller's own, who hears of the failure, and do not wait again."""
        try:
            self._ledger.record_all(events)
        except ScaleoutError:
            with self._lock:
                self._waiting.extendleft(reversed(events[: len(events) - lost]))
            raise
        if self.trouble or self._dropped:
            self._log.info("ledger", f"the ledger records again; {self._dropped} events were lost in the meantime")
            self.trouble, self._dropped = "", 0
