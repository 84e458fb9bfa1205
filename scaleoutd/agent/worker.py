# SPDX-License-Identifier: Apache-2.0
"""One task at a time: validations first, else in the order received; what waits for something is tried again with back-off."""

from __future__ import annotations

import threading

from scaleoutd.agent.backoff import Backoff
from scaleoutd.agent.config import AgentConfig
from scaleoutd.agent.interrupt import STOPPING
from scaleoutd.agent.log import Log
from scaleoutd.agent.pipeline import Pipeline
from scaleoutd.agent.spool import Entry, Spool
from scaleoutd.errors import ScaleoutError

LONGEST_PAUSE_S = 30.0


class Worker:
    """`tell` is set whenever there is something new to report."""

    def __init__(self, pipeline: Pipeline, spool: Spool, log: Log, config: AgentConfig, tell: threading.Event) -> None:
        self._pipeline, self._spool, self._log, self._tell = pipeline, spool, log, tell
        self._backoff = Backoff(config.backoff_ms / 1000, min(LONGEST_PAUSE_S, config.backoff_limit_ms / 1000))
        self._wake = threading.Event()
        self._current: Entry | None = None

    def wake(self) -> None:
        """There is a task, or what one waited for may be back."""
        self._wake.set()

    def give_up(self) -> None:
        """The agent stops: the task in hand stays in the spool."""
        current = self._current
        if current is not None:
            current.interrupt.set(STOPPING)
        self._wake.set()

    def run(self, stop: threading.Event, up: threading.Event) -> None:
        """Works while `up` is set, until `stop` is."""
        while not stop.is_set():
            self._wake.clear()
            if stop.is_set():
                return
            entry = self._next()
            if entry is None or not up.is_set():
                self._wake.wait()
                continue
            pause_s = self._carry(entry, stop)
            if pause_s:
                self._wake.wait(pause_s)

    def _carry(self, entry: Entry, stop: threading.Event) -> float:
        """Seconds to wait before the next try, 0 when the task went as far as it can."""
        entry.active = True
        self._current = entry
        try:
            self._pipeline.carry(entry)
        except ScaleoutError as exc:
            entry.waits_for = exc.code
            if not stop.is_set():
                self._log.warning("task-waits", exc, correlation_id=entry.task.correlation_id)
            return self._backoff.next_s()
        finally:
            self._current = None
            entry.active = False
            self._tell.set()
        self._backoff.reset()
        return 0.0

    def _next(self) -> Entry | None:
        """Validations before training: the combiner waits for them to close a round.  What waits for a person comes last."""
        waiting = [entry for entry in self._spool.entries() if entry.needs_worker]
        return min(waiting, key=_rank, default=None)


def _rank(entry: Entry) -> tuple[bool, bool, int]:
    return entry.waits_for == "approval-needed", entry.task.task != "validate", entry.task.order
