# SPDX-License-Identifier: Apache-2.0
"""What the combiner's answers become: new tasks in the spool, stops of known ones, and the end of those it has heard of.

Rules:
  1. The same correlation id is one task: while it is here, and after it is over (spool.finished).
  2. A task that cannot be kept or offered is failed by name; nothing the combiner sends ends the agent.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from scaleoutd.agent.dialects import Directive, Report
from scaleoutd.agent.log import Log
from scaleoutd.agent.spool import Spool, failure_response
from scaleoutd.agent.telling import Telling
from scaleoutd.agent.trail import Trail
from scaleoutd.core import records
from scaleoutd.core.settings import MAX_SETTINGS_BYTES
from scaleoutd.errors import FormatError, PolicyDeniedError, ScaleoutError, StorageError
from scaleoutd.ipc.messages import TaskOffer

MAX_ID_CHARS = 256


class Intake:
    """See the module.  Called by the poll thread."""

    def __init__(self, spool: Spool, trail: Trail, log: Log, telling: Telling | None = None) -> None:
        self._spool, self._trail, self._log = spool, trail, log
        self._telling = telling or Telling(log)
        self._hearing = threading.Lock()  # at a stop the farewell and a poll that is still under way both hear

    def heard(self, reports: list[Report]) -> None:
        """The combiner has these reports; tasks that are done are over, each once."""
        with self._hearing:
            self._heard(reports)

    def _heard(self, reports: list[Report]) -> None:
        for report in reports:
            entry = self._spool.find(report.correlation_id)
            if entry is None or not report.done or entry.needs_worker or entry.active:
                continue
            try:
                self._spool.finish(entry)
            except StorageError as exc:
                self._log.error("task-reported", exc, correlation_id=report.correlation_id)  # it is reported once more
                continue
            self._trail.note("task-reported", correlation_id=report.correlation_id, status=report.status)
            self._log.debug("task-reported", f"task is {report.status}", correlation_id=report.correlation_id)

    def take(self, directive: Directive, combiner: str, wake: Callable[[], None]) -> Report | None:
        """Takes one directive; `wake` is called when there is work.  A report that is due at once is returned."""
        correlation_id = directive.correlation_id
        if len(correlation_id) > MAX_ID_CHARS or not correlation_id.isprintable():
            self._log.warning("task-refused", "a task whose correlation id cannot be used was ignored")
            return None
        entry = self._spool.find(correlation_id)
        if entry is not None:
            if directive.stop:
                entry.interrupt.set(directive.stop)
                wake()
                self._log.info("task-stopped", f"the combiner says {directive.stop}", correlation_id=correlation_id)
            return None
        over = self._spool.finished(correlation_id)
        if over is not None:
            return Report(over.correlation_id, over.status, True, over.response)
        try:
            return self._receive(directive, combiner, wake)
        except StorageError as exc:
            self._log.error("task-refused", exc, correlation_id=correlation_id)
            self._trail.note("task-refused", correlation_id=correlation_id, code=exc.code, message=exc.message)
            return Report(correlation_id, "FAILED", True, failure_response(exc.code, exc.message))

    def _receive(self, directive: Directive, combiner: str, wake: Callable[[], None]) -> Report | None:
        problem = problem_of(directive, combiner)
        entry = self._spool.receive(_bounded(directive) if problem else directive, combiner, problem)
        correlation_id = directive.correlation_id
        if problem is not None:
            self._trail.note("task-refused", correlation_id=correlation_id, code=problem.code, message=problem.message)
            self._log.warning("task-refused", problem, correlation_id=correlation_id)
            return entry.report()
        wake()  # the worker offers while this thread makes the arrival durable
        self._trail.note(
            "task-received",
            correlation_id=correlation_id,
            task=directive.task or directive.type,
            model_id=directive.model_id,
            session_id=directive.session_id,
            round_id=directive.round_id,
            combiner=combiner,
        )
        self._telling.received(directive)
        try:
            entry.settle()
        except (OSError, StorageError) as exc:
            # The worker comes to the same point and fails the task there, where that has a place.
            self._log.warning("task-received", str(exc), correlation_id=correlation_id)
        return None


def kept(report: Report) -> Report:
    """The last word about a task that is not over: it will be taken up again."""
    if report.done:
        return report
    return Report(report.correlation_id, "PENDING", False, '{"message":"the client stops; the task is kept"}', report.started_ms)


def problem_of(directive: Directive, combiner: str) -> ScaleoutError | None:
    """Why a directive cannot be offered to the runner, None when it can."""
    if directive.stop:
        return None
    settings_bytes = len(directive.settings.encode())
    if settings_bytes > MAX_SETTINGS_BYTES:
        return PolicyDeniedError(
            f"cannot do the task: client_settings are {settings_bytes} bytes, at most {MAX_SETTINGS_BYTES} are taken",
            code="settings-denied",
            hint="Settings are for parameters; put what is larger into the model or the project.",
        )
    if directive.problem:
        code, message = directive.problem
        return FormatError(message, code=code)
    try:
        offer = TaskOffer(
            correlation_id=directive.correlation_id,
            task=directive.task or "train",
            model_id=directive.model_id,
            session_id=directive.session_id,
            round_id=directive.round_id,
            combiner=combiner,
            settings=directive.settings,
        )
        records.decode(TaskOffer, records.encode(offer), "task")
    except FormatError as exc:
        return exc
    return None


def _bounded(directive: Directive) -> Directive:
    """What is kept of a directive that is refused: enough to report it."""
    return Directive(
        correlation_id=directive.correlation_id,
        type=directive.type[:64],
        task=directive.task,
        model_id=directive.model_id[:MAX_ID_CHARS],
        session_id=directive.session_id[:MAX_ID_CHARS],
        round_id=directive.round_id[:MAX_ID_CHARS],
    )
