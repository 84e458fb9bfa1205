# SPDX-License-Identifier: Apache-2.0
"""The agent as a service: keeps a session open, polls, reports, and has one worker that carries tasks.

    main thread   waits for `stop`, then ends the others
    session       opens a session again and again (link.py), waits for its end
    heartbeat     every 2 s; announces again when the connection was cut; gives the session up after some failures
    poll          reports and asks for tasks, every 5 s and at once when there is something to tell
    worker        one task at a time (worker.py, pipeline.py)

Rules:
  1. What heals by waiting never ends the agent.  It ends with the error's exit status when its credential is refused or its
     configuration cannot be used.
  2. Runner and ledger may be away: heartbeats go on, tasks are PENDING with the code of what they wait for.
  3. An orderly stop takes at most 5 s: the run is given up, the combiner hears that the task is kept, then Disconnect.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable

from scaleoutd import __version__
from scaleoutd.agent.backoff import Backoff
from scaleoutd.agent.config import AgentConfig
from scaleoutd.agent.control import AgentDesk, keep_told
from scaleoutd.agent.dialects import Dialect, Report
from scaleoutd.agent.intake import Intake, kept
from scaleoutd.agent.link import Link, LinkEvents
from scaleoutd.agent.log import Log
from scaleoutd.agent.pipeline import Door, Pipeline
from scaleoutd.agent.spool import Spool
from scaleoutd.agent.telling import Telling
from scaleoutd.agent.tls import ClientFacts, PeerFacts
from scaleoutd.agent.trail import Ledger, Trail
from scaleoutd.agent.worker import Worker
from scaleoutd.errors import ConfigError, CredentialError, ScaleoutError, StorageError, TransportError
from scaleoutd.hold import HoldFile
from scaleoutd.ipc.activation import Notifier
from scaleoutd.ipc.channel import Channel
from scaleoutd.ipc.control import Control
from scaleoutd.ipc.doors import ClientDoor
from scaleoutd.ipc.ledger_client import LedgerClient

HEARTBEATS_LOST = 5
WORKER_STOP_S = 1.0
FAREWELL_S = 1.5
THREADS_STOP_S = 0.5
LEDGER_RETRY_S = 2.0


class LockedDoor:
    """A door that several threads may use; the one of the foreground is a conversation."""

    def __init__(self, door: ClientDoor) -> None:
        self._door = door
        self._lock = threading.Lock()

    def connect(self, room: str, timeout_s: float = 10.0) -> Channel:
        with self._lock:
            return self._door.connect(room, timeout_s)


def run(
    config: AgentConfig,
    door: ClientDoor,
    log: Log,
    stop: threading.Event,
    ledger: Ledger | None = None,
    control: socket.socket | None = None,
    notifier: Notifier = Notifier(),  # noqa: B008 - tells nobody
) -> int:
    """Serves until `stop` is set (status 0) or until nothing that can heal is left (the error's exit status).

    `control` is the listening socket for administrators (ipc/control.py).
    """
    locked = LockedDoor(door)
    trail = Trail(ledger or LedgerClient(locked, "agent", retry_for_s=LEDGER_RETRY_S), log)
    status, reason = 1, "a bug"
    trail.note(
        "agent-started",
        version=__version__,
        dialect="edge",
        api_url=config.api_url,
        client_name=config.name,
        client_id=config.client_id,
        client_certificate=config.client_certificate,
        tls_policy="TLS 1.3",
        pid=os.getpid(),
    )
    try:
        agent = _agent(config, locked, trail, log, stop)
        if control is not None:
            Control("agent", control, agent.desk(), lambda line: log.info("control", line)).start()
        status, reason = agent.run(notifier), "stopped"
    except ScaleoutError as exc:
        notifier.failed(exc.code, exc.message)
        log.error("agent-stopped", exc)
        status, reason = exc.exit_status, exc.code
    finally:
        trail.note("agent-stopped", reason=reason, exit_status=status)
        trail.close()
    return status


def _agent(config: AgentConfig, door: Door, trail: Trail, log: Log, stop: threading.Event) -> Agent:
    try:
        return Agent(config, door, trail, log, stop)
    except ScaleoutError as exc:
        _note_refusal(trail, config.api_url, exc)
        raise


def _note_refusal(trail: Trail, where: str, exc: ScaleoutError) -> None:
    if exc.code in ("token-refused", "token-invalid"):
        trail.note("token-refused", code=exc.code, message=exc.message)
    else:
        trail.note("connection-refused", combiner=where, code=exc.code, message=exc.message)


class Agent:
    """See the module."""

    def __init__(self, config: AgentConfig, door: Door, trail: Trail, log: Log, stop: threading.Event) -> None:
        self._config, self._trail, self._log, self._stop = config, trail, log, stop
        self.spool = Spool(config.state / "spool", self._repaired)
        self._link = Link(
            config, LinkEvents(self._on_connected, self._on_renewed, self._on_loaded, self._on_bad_pair, self._on_not_cached)
        )
        self._session: Dialect | None = None
        self._up, self._lost = threading.Event(), threading.Event()
        self._tell = threading.Event()
        self._telling = Telling(log, told_by_parent=config.foreground and config.log_format == "text")
        pipeline = Pipeline(door, self._session_now, trail, log, self._telling)
        self._worker = Worker(pipeline, self.spool, log, config, self._tell)
        self._intake = Intake(self.spool, trail, log, self._telling)
        self._refusal = ""
        self._fatal: ScaleoutError | None = None
        self.hold = HoldFile(config.state)
        self.trouble: ScaleoutError | None = None  # why there is no session
        self.connected_ms = 0

    def run(self, notifier: Notifier = Notifier()) -> int:  # noqa: B008 - tells nobody
        self._take_up()
        threads = [
            threading.Thread(target=self._guarded, args=(loop,), name=loop.__name__.strip("_"), daemon=True)
            for loop in (self._work_loop, self._poll_loop, self._heartbeat_loop, self._keep_session)
        ]
        for thread in threads:
            thread.start()
        try:
            keep_told(notifier, self.desk(), self._stop)
        finally:
            self._stop.set()
            self._end(threads)
        if self._fatal:
            raise self._fatal
        return 0

    # --- for administrators (control.py) ----------------------------------------------------------------------

    def desk(self) -> AgentDesk:
        return AgentDesk(self, self._link, self._trail, self._log)

    @property
    def connected(self) -> bool:
        return self._session is not None

    def wake(self) -> None:
        """Something to tell, or to do, may be there."""
        self._tell.set()
        self._worker.wake()

    @property
    def _at_rest(self) -> bool:
        """Paused, and everything is ended and reported: the combiner hears a farewell and then nothing."""
        hold = self.hold.now
        return hold is not None and hold.kind == "pause" and not self.spool.entries()

    # --- session ----------------------------------------------------------------------------------------------

    def _keep_session(self) -> None:
        backoff = Backoff(self._config.backoff_ms / 1000, self._config.backoff_limit_ms / 1000)
        while not self._stop.is_set():
            self._lost.clear()
            try:
                session = self._link.open()
            except ScaleoutError as exc:
                if not self._refused(exc):
                    raise
                self._stop.wait(backoff.next_s())
                continue
            if self._stop.is_set():
                session.close()
                return
            backoff.reset()
            self._refusal, self.trouble = "", None
            self.connected_ms = time.time_ns() // 1_000_000
            shown = "with its client certificate (mTLS)" if self._link.tls.has_certificate else "without a client certificate"
            who = f"{self._config.name} ({self._client_id()})" if self._config.name else self._client_id()
            self._log.info("connected", f"connected to combiner {self._link.where} as {who}, {shown}")
            self._session = session
            self._up.set()
            self._tell.set()
            self._worker.wake()
            self._lost.wait()  # the end of the agent sets it too
            if not self._stop.is_set():
                self._close_session("heartbeats failed")

    def _refused(self, exc: ScaleoutError) -> bool:
        """Puts the refusal on record (each code once until it goes well again); False when waiting will not help."""
        self.trouble = exc
        if exc.code != self._refusal:
            self._refusal = exc.code
            _note_refusal(self._trail, self._link.where, exc)
        if isinstance(exc, CredentialError):
            waits = exc.code in ("client-certificate-refused", "client-certificate-invalid")
        else:
            waits = isinstance(exc, TransportError | StorageError)
        if waits:
            self._log.warning("connection-refused", exc)
        return waits

    def _close_session(self, reason: str) -> None:
        session, self._session = self._session, None
        self.connected_ms = 0
        self._up.clear()
        if session is not None:
            self._trail.note("disconnected", combiner=self._link.where, reason=reason)
            session.close()

    def _session_now(self) -> Dialect:
        session = self._session
        if session is None:
            raise TransportError("cannot reach the combiner: there is no session now")
        return session

    def _client_id(self) -> str:
        return self._link.assignment.client_id if self._link.assignment else self._link.tokens.client_id

    def _heartbeat_loop(self) -> None:
        failures, resting = 0, False
        while not self._stop.wait(self._config.heartbeat_interval_ms / 1000):
            session = self._session
            if session is None:
                failures, resting = 0, False
                continue
            try:
                if self._at_rest:
                    if not resting:
                        session.disconnect()
                        resting = True
                    continue
                if session.was_cut() or resting:
                    resting = False
                    session.connect()
                    self._log.info("connected", f"connected again to combiner {self._link.where}")
                    self._tell.set()
                    self._worker.wake()
                session.heartbeat()
                failures = 0
            except ScaleoutError as exc:
                failures += 1
                self._log.warning("heartbeat", exc)
                if failures >= HEARTBEATS_LOST:
                    failures = 0
                    self._lost.set()

    # --- tasks ------------------------------------------------------------------------------------------------

    def _poll_loop(self) -> None:
        backoff = Backoff(self._config.backoff_ms / 1000, self._config.poll_interval_ms / 1000)
        while not self._stop.is_set():
            session = self._session
            if session is None:
                self._up.wait(5.0)
                continue
            self._tell.clear()
            if self._at_rest:
                self._tell.wait()  # the end of the agent sets it too
                continue
            reports = [entry.report() for entry in self.spool.entries()]
            try:
                directives = session.poll(reports, take_tasks=self.hold.now is None)
            except ScaleoutError as exc:
                self._log.warning("poll", exc)
                self._stop.wait(backoff.next_s())
                continue
            backoff.reset()
            self._intake.heard(reports)
            for directive in directives:
                again = self._intake.take(directive, self._link.where, self._worker.wake)
                if again is not None:
                    self._tell_at_once(session, again)
            self._tell.wait(self._config.poll_interval_ms / 1000)

    def _tell_at_once(self, session: Dialect, report: Report) -> None:
        try:
            session.poll([report], take_tasks=False)
            self._intake.heard([report])
        except ScaleoutError as exc:
            self._log.warning("poll", exc, correlation_id=report.correlation_id)

    def _work_loop(self) -> None:
        self._worker.run(self._stop, self._up)

    def _take_up(self) -> None:
        """What a stop or a crash left in the spool goes on."""
        for entry in self.spool.entries():
            self._log.info("task-resumed", f"task found in state {entry.state}", correlation_id=entry.task.correlation_id)
        self._worker.wake()

    def _guarded(self, loop: Callable[[], None]) -> None:
        """A bug in a thread must end the agent, loudly, so that it is started anew; half an agent looks healthy."""
        try:
            loop()
        except ScaleoutError as exc:
            self._fatal = exc
        except BaseException:  # noqa: BLE001
            self._log.bug("internal")
            self._fatal = ScaleoutError("cannot go on: a bug in scaleoutd, see the traceback above")
        finally:
            self._stop.set()

    # --- end --------------------------------------------------------------------------------------------------

    def _end(self, threads: list[threading.Thread]) -> None:
        self._worker.give_up()
        for event in (self._tell, self._up, self._lost):
            event.set()
        threads[0].join(WORKER_STOP_S)
        self._telling.last_words(self.spool.entries())
        session = self._session
        if session is not None:
            # In a thread of its own: a combiner that does not answer must not hold up the stop.
            farewell = threading.Thread(target=self._say_farewell, args=(session,), name="farewell", daemon=True)
            farewell.start()
            farewell.join(FAREWELL_S)
            self._close_session("stopped")
        deadline_s = time.monotonic() + THREADS_STOP_S
        for thread in threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        if not any(thread.is_alive() for thread in threads):
            self.spool.close()

    def _say_farewell(self, session: Dialect) -> None:
        try:
            reports = [kept(entry.report()) for entry in self.spool.entries()]
            if reports:
                session.poll(reports, take_tasks=False)
                self._intake.heard(reports)
            session.disconnect()
        except ScaleoutError as exc:
            self._log.warning("disconnected", exc)

    # --- on record --------------------------------------------------------------------------------------------

    def _on_connected(self, facts: PeerFacts) -> None:
        self._trail.note(
            "connected",
            combiner=f"{facts.host}:{facts.port}",
            peer_spki_sha256=facts.spki_sha256,
            peer_subject=facts.subject,
            peer_not_after=facts.not_after,
            tls_version=facts.tls_version,
            service="combiner",
        )

    def _on_renewed(self) -> None:
        self._trail.note("token-refreshed", issuer=self._config.api_url)

    def _on_loaded(self, facts: ClientFacts) -> None:
        self._trail.note(
            "credential-loaded",
            subject=facts.subject,
            serial=facts.serial,
            not_after=facts.not_after,
            spki_sha256=facts.spki_sha256,
        )

    def _on_bad_pair(self, exc: ConfigError) -> None:
        self._trail.note("credential-refused", code=exc.code, message=exc.message)
        self._log.error("credential-refused", exc)

    def _on_not_cached(self, exc: StorageError) -> None:
        self._log.warning("token-not-cached", exc)

    def _repaired(self, file: str, torn_bytes: int, reason: str) -> None:
        self._trail.note("state-repaired", file=file, torn_bytes=torn_bytes, reason=reason)
        self._log.warning("state-repaired", f"{file}: {reason}")
