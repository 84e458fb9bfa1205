# SPDX-License-Identifier: Apache-2.0
"""The stages of one task, as the agent sees them (DESIGN.md section 2): offer, receive, wait, send, forget.

    received ─offer▶ offered ─receive, wait▶ released ─send▶ sending ─▶ acknowledged ─▶ (report, by the service) reported
                                                              └─▶ unknown ─▶ sending again, same ids
    anything ─▶ failed(code) ─▶ (report) reported

Rules:
  1. `carry` may be called again at every state: it goes on from there.  It raises what heals by waiting (network, ledger,
     runner away), and puts everything else on record as `failed`.
  2. "sending" is in the trail before the first byte leaves, "acknowledged" only after the combiner took the announcement.
  3. The runner's connection stands for the run: closing it is how a run is given up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal, Protocol

from scaleoutd.agent.dialects import Dialect, Result
from scaleoutd.agent.interrupt import Interrupt
from scaleoutd.agent.log import Log
from scaleoutd.agent.run import Run
from scaleoutd.agent.spool import Entry
from scaleoutd.agent.telling import Telling
from scaleoutd.agent.trail import Trail
from scaleoutd.errors import LedgerError, LimitExceededError, PeerError, ScaleoutError, TransportError, WorkloadError, from_code
from scaleoutd.ipc.channel import Channel
from scaleoutd.ipc.messages import (
    CancelTask,
    Delivered,
    Forgotten,
    ModelReceived,
    ReceiveModel,
    Released,
    Stage,
    TaskOffer,
)

ANSWER_TIMEOUT_S = 120.0  # to an offer: the runner verifies the project in this time
CANCEL_TIMEOUT_S = 15.0
FORGET_TIMEOUT_S = 5.0
CORRUPT_ATTEMPTS = 3
DOWNLOAD_ATTEMPTS = 5
DOWNLOAD_PAUSE_S = 0.5
# A task is kept for another try when the cause lies outside of it.
_HEALING_CODES = {"transport-failed", "token-refused", "client-certificate-refused", "client-certificate-invalid"}


class Door(Protocol):
    def connect(self, room: str, timeout_s: float = 10.0) -> Channel: ...


def heals(error: ScaleoutError) -> bool:
    """Whether the same task may go well later."""
    if isinstance(error, PeerError | LedgerError) or error.code in ("paused", "approval-needed"):
        return True
    if isinstance(error, TransportError):
        return error.code in _HEALING_CODES or error.code.startswith("tls-")
    return False


class Pipeline:
    """Carries tasks, one at a time.  `session` gives the open dialect, or raises TransportError when there is none."""

    def __init__(
        self, door: Door, session: Callable[[], Dialect], trail: Trail, log: Log, telling: Telling | None = None
    ) -> None:
        self._door, self._session, self._trail, self._log = door, session, trail, log
        self._telling = telling or Telling(log)

    def carry(self, entry: Entry) -> None:
        """One task from where it stands to `acknowledged` and confirmed, or to `failed`."""
        try:
            self._note_restart(entry)
            self._check_start(entry)
            if entry.state == "acknowledged":
                self._confirm(entry)
                return
            with self._offer(entry) as run:
                if run.to_receive:
                    self._receive(entry, run)
                    self._wait(entry, run)
                self._send(entry, run)
                self._forget(entry, run)
        except ScaleoutError as exc:
            error = exc
            if heals(exc):
                # A task that is both taken back and has no result yet need not wait for what is away.
                if not entry.interrupt.cancels or entry.state not in ("received", "offered"):
                    raise
                error = cancelled(entry.interrupt.cancels)
            if entry.state in ("received", "offered"):  # later on it was dropped where it was given up
                self._record_dropped(entry, error)
            entry.fail(error)
            self._telling.failed(entry.task, error, by_runner=error.reported_by == "runner")

    # --- stages -----------------------------------------------------------------------------------------------

    def _offer(self, entry: Entry, *, heed_interrupt: bool = True) -> Run:
        """The runner's answer: a file to fill, or the result that it still has."""
        task = entry.task
        if task.task is None:
            raise TransportError(f"cannot do the task: type {task.type[:64]!r} is not known here", code="task-unknown")
        channel = self._door.connect("runner")
        run = Run(channel)
        try:
            channel.greet("agent")
            if entry.state in ("received", "offered"):
                entry.advance("offered")
            channel.tell(
                TaskOffer(
                    correlation_id=task.correlation_id,
                    task=task.task,
                    model_id=task.model_id,
                    session_id=task.session_id,
                    round_id=task.round_id,
                    combiner=task.combiner,
                    settings=task.settings,
                )
            )
            self._await(entry, run, ANSWER_TIMEOUT_S, told=not heed_interrupt)
        except BaseException:
            with run:
                raise
        return run

    def _receive(self, entry: Entry, run: Run) -> None:
        """The model from the combiner into the runner's file."""
        assert run.to_receive is not None  # noqa: S101
        started_s = time.monotonic()
        session, task = self._session(), entry.task
        session.tell_status(f"{task.task} started: {task.correlation_id}", audit=False)
        for attempt in range(1, DOWNLOAD_ATTEMPTS + 1):
            try:
                arrived = session.download(task.model_id, run.fd, run.to_receive.max_bytes, entry.interrupt.on_call)
                break
            except LimitExceededError as exc:
                if not run.to_receive.max_is_space:
                    raise
                told = f"{exc.message}, for want of space on the disk"
                raise from_code("storage-full", told, "Free space where the runner keeps its state.") from exc
            except TransportError as exc:
                self._check_interrupt(entry)
                last = CORRUPT_ATTEMPTS if exc.code == "download-corrupt" else DOWNLOAD_ATTEMPTS
                if attempt >= last or not (heals(exc) or exc.code == "download-corrupt"):
                    raise
                self._log.warning("model-downloaded", exc, correlation_id=task.correlation_id)
                entry.interrupt.wait(DOWNLOAD_PAUSE_S * attempt)
                self._check_interrupt(entry)
                session = self._session()
        run.close_file()
        run.fetch_s = time.monotonic() - started_s
        entry.wait_settled()
        self._trail.note(
            "model-downloaded",
            model_id=task.model_id,
            correlation_id=task.correlation_id,
            size_bytes=arrived.size_bytes,
            sha256=arrived.sha256,
            wall_ms=int(run.fetch_s * 1000),
        )
        run.channel.tell(ModelReceived(arrived.size_bytes, arrived.sha256))

    def _wait(self, entry: Entry, run: Run) -> None:
        """Until the run is released.  The runner enforces the wall clock; a connection that ends is a runner that ended."""
        run.to_receive = None
        self._await(entry, run, None)

    def _send(self, entry: Entry, run: Run) -> None:
        """Upload and announce, under the ids that the runner gave; the durable states around it are the point."""
        released = run.released
        if released is None:
            raise PeerError("cannot send: the runner asked for the model a second time")
        if entry.state == "offered":
            entry.advance("released", run=released.run, model_update_id=released.model_update_id)
        self._telling.withheld(entry.task, released.withheld)
        try:
            if entry.interrupt.cancels:
                raise cancelled(entry.interrupt.cancels)
            self._deliver(entry, released, run)
        except ScaleoutError as exc:
            if not heals(exc):
                self._give_up(entry, run, exc)
            raise

    def _deliver(self, entry: Entry, released: Released, run: Run) -> None:
        session = self._session()
        facts = {
            "run": released.run,
            "correlation_id": entry.task.correlation_id,
            "attempt": entry.attempts + 1,
            "combiner": entry.task.combiner,
            "kind": released.task,
            "sha256": released.sha256,
            "size_bytes": released.size_bytes,
            "model_update_id": released.model_update_id,
        }
        self._trail.must("sending", **facts)
        entry.advance("sending", attempt=entry.attempts + 1, model_update_id=released.model_update_id)
        started_s = time.monotonic()
        if released.task == "train":
            session.upload(released.model_update_id, run.fd, released.size_bytes, released.sha256)
        entry.sync()  # after a power cut too it must be known that it may have been counted
        self._announce(session, entry, _result(entry, released, run, time.monotonic() - started_s), facts)
        entry.advance("acknowledged", sync=True)
        session.tell_status(f"{released.task} delivered: {entry.task.correlation_id}", audit=True)
        wall_s = time.monotonic() - started_s
        self._record_sent(entry, {**facts, "wall_ms": int(wall_s * 1000)})
        self._telling.sent(entry.task, released.size_bytes, wall_s)

    def _announce(self, session: Dialect, entry: Entry, result: Result, facts: dict[str, Any]) -> None:
        """The call that makes the combiner count it: what ends without an answer here is unknown."""
        try:
            if result.directive.task == "train":
                session.send_update(result)
            elif result.directive.task == "predict":
                session.send_prediction(result)
            else:
                session.send_validation(result)
        except TransportError as exc:
            if exc.code == "transport-failed":
                self._record_unknown(entry, {**facts, "resolution": session.resend})
            if exc.code == "transport-refused":
                raise TransportError(exc.message, code="upload-refused") from exc
            raise

    def _record_unknown(self, entry: Entry, facts: dict[str, Any]) -> None:
        """The event first: after a crash in between it is there twice, never not at all."""
        try:
            self._trail.must("delivery-unknown", outcome="unknown", **facts)
        except LedgerError:
            # The state stays `sending`, so the next start comes to the same conclusion if the queue is lost.
            self._trail.note("delivery-unknown", outcome="unknown", **facts)
            return
        entry.advance("unknown", sync=True)

    def _record_sent(self, entry: Entry, facts: dict[str, Any]) -> None:
        """Durable before the task is over: while the ledger is away, and after a restart, `_confirm` tries again."""
        self._trail.must("sent", outcome="acknowledged", **facts)
        entry.advance("acknowledged", recorded=True)

    def _forget(self, entry: Entry, run: Run) -> None:
        """The runner may delete the result; when it cannot be told now, `_confirm` does it later."""
        _tell_delivered(run, "acknowledged")
        entry.advance("acknowledged", recorded=True, confirmed=True)

    # --- what happens beside ----------------------------------------------------------------------------------

    def _await(self, entry: Entry, run: Run, timeout_s: float | None, *, told: bool = False) -> None:
        """The next answer of the runner; a cancelled task is cancelled there first, unless it was `told` already."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            if told:
                readable = run.channel.connection.wait(left_s)
            else:
                interrupted, readable = entry.interrupt.wait_with(run.channel.fileno(), left_s)
                if interrupted and not readable:
                    self._cancel(entry.interrupt, run)
                    told, deadline_s = True, time.monotonic() + CANCEL_TIMEOUT_S
                    continue
            if not readable:
                raise PeerError("cannot go on with the task: the runner did not answer in time", code="peer-timeout")
            received = run.channel.receive(ReceiveModel, Released, Stage, timeout_s=1.0)
            if isinstance(received.message, Stage):
                received.close()
                self._log.debug("stage", received.message.name, correlation_id=entry.task.correlation_id)
                continue
            run.take(received.message, received.descriptors)
            return

    @staticmethod
    def _cancel(interrupt: Interrupt, run: Run) -> None:
        if not interrupt.cancels:
            raise PeerError(f"cannot go on with the task: {interrupt.reason}", code="peer-closed")
        run.channel.tell(CancelTask(interrupt.cancels))

    @staticmethod
    def _check_interrupt(entry: Entry) -> None:
        if entry.interrupt.cancels:
            raise cancelled(entry.interrupt.cancels)
        if entry.interrupt.reason:
            raise PeerError(f"cannot go on with the task: {entry.interrupt.reason}", code="peer-closed")

    @staticmethod
    def _check_start(entry: Entry) -> None:
        if entry.state == "received" and entry.interrupt.cancels:
            raise cancelled(entry.interrupt.cancels)

    def _record_dropped(self, entry: Entry, error: ScaleoutError) -> None:
        """What the combiner hears is on record too, whoever found the cause."""
        facts = {"correlation_id": entry.task.correlation_id, "code": error.code, "message": error.message}
        try:
            self._trail.must("task-dropped", **facts)
        except LedgerError:
            self._trail.note("task-dropped", **facts)

    def _give_up(self, entry: Entry, run: Run, error: ScaleoutError) -> None:
        self._record_dropped(entry, error)
        try:
            _tell_delivered(run, "dropped")
        except PeerError:
            # A cancel that crossed with the release breaks the conversation; the result is asked for once more, quietly.
            self._drop_again(entry)

    def _drop_again(self, entry: Entry) -> None:
        try:
            with self._offer(entry, heed_interrupt=False) as run:
                _tell_delivered(run, "dropped")
        except ScaleoutError as exc:
            self._log.warning("task-dropped", exc, correlation_id=entry.task.correlation_id)

    def _note_restart(self, entry: Entry) -> None:
        """What was being sent when the process ended is unknown, and that is on record."""
        if entry.found_after_restart and entry.state == "sending":
            facts = {**_known_facts(entry), "attempt": entry.attempts, "note": "found after a restart"}
            self._trail.must("delivery-unknown", outcome="unknown", **facts)
            entry.advance("unknown", sync=True)
        entry.found_after_restart = False

    def _confirm(self, entry: Entry) -> None:
        """The combiner has it; the trail and the runner may not know, because the process ended in between."""
        if not entry.field("acknowledged", "recorded"):
            self._record_sent(entry, {**_known_facts(entry), "note": "recorded later than it was sent"})
        try:
            with self._offer(entry) as run:
                if run.released:
                    _tell_delivered(run, "acknowledged")
        except ScaleoutError as exc:
            if heals(exc):
                raise
            self._log.debug("forgotten", exc.message, correlation_id=entry.task.correlation_id)
        entry.advance("acknowledged", recorded=True, confirmed=True)


def cancelled(reason: str) -> WorkloadError:
    return WorkloadError(f"cannot finish the task: the combiner says {reason}", code="step-cancelled")


def _result(entry: Entry, released: Released, run: Run, upload_s: float) -> Result:
    exec_s = released.exec_ms / 1000
    return Result(
        directive=entry.task.directive,
        body=released.body,
        model_update_id=released.model_update_id,
        exec_s=exec_s,
        fetch_s=run.fetch_s,
        upload_s=upload_s,
        total_s=exec_s + run.fetch_s + upload_s,
    )


def _known_facts(entry: Entry) -> dict[str, Any]:
    """What the spool remembers of a delivery."""
    return {
        "run": str(entry.field("released", "run") or ""),
        "model_update_id": str(entry.field("released", "model_update_id") or ""),
        "correlation_id": entry.task.correlation_id,
        "combiner": entry.task.combiner,
    }


def _tell_delivered(run: Run, outcome: Literal["acknowledged", "dropped"]) -> None:
    if run.released is not None:
        run.channel.tell(Delivered(run.released.run, outcome))
        run.channel.expect(Forgotten, timeout_s=FORGET_TIMEOUT_S)
