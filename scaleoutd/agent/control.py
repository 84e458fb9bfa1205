# SPDX-License-Identifier: Apache-2.0
"""What the agent tells an administrator, and what it does when told (ipc/control.py).

Held back, the agent asks the combiner for nothing; what it has, it ends and reports.  A pause that has come to rest takes leave
of the combiner in order, and Resume announces the client again.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from scaleoutd import __version__
from scaleoutd.core.strictjson import Json
from scaleoutd.errors import ScaleoutError
from scaleoutd.hold import Hold
from scaleoutd.ipc.activation import Notifier
from scaleoutd.ipc.control import (
    Command,
    Done,
    Drain,
    Operator,
    Pause,
    Reload,
    Resume,
    State,
    StatusReport,
    must_record,
    refuse_command,
)

if TYPE_CHECKING:
    from scaleoutd.agent.link import Link
    from scaleoutd.agent.log import Log
    from scaleoutd.agent.service import Agent
    from scaleoutd.agent.trail import Trail


STATUS_S = 1.0  # how old the status line may be


class AgentDesk:
    """A Desk (ipc/control.py) of `agent`."""

    def __init__(self, agent: Agent, link: Link, trail: Trail, log: Log) -> None:
        self._agent, self._link, self._trail, self._log = agent, link, trail, log
        self._since_ms = _now_ms()

    def report(self) -> StatusReport:
        agent = self._agent
        hold, left = agent.hold.now, len(agent.spool.entries())
        state: State = "serving" if hold is None else "draining" if left else "paused" if hold.kind == "pause" else "drained"
        trouble = agent.trouble
        if hold is None and trouble is not None:
            state = "refusing"
        return StatusReport(
            room="agent",
            build=__version__,
            pid=os.getpid(),
            since_ms=self._since_ms,
            state=state,
            text=self._text(state, left),
            busy=left > 0,
            code=trouble.code if trouble else "",
            message=trouble.message[:1024] if trouble else "",
            hint=trouble.hint[:1024] if trouble else "",
            facts=self._facts(left),
        )

    def do(self, command: Command, operator: Operator, files: Mapping[str, int]) -> Done:
        agent = self._agent
        if isinstance(command, Drain | Pause):
            kind, reason = ("pause", command.reason) if isinstance(command, Pause) else ("drain", "")
            must_record(self._trail.must, command, operator)
            changed = agent.hold.set(Hold("pause" if kind == "pause" else "drain", _now_ms(), operator.name, reason))
            agent.wake()
            return Done(changed, f"no new task is taken, {len(agent.spool.entries())} to end")
        if isinstance(command, Resume):
            if agent.hold.now is None:
                return Done(False, "it was not held back")
            must_record(self._trail.must, command, operator)
            changed = agent.hold.lift()
            agent.wake()
            return Done(changed, "tasks are taken again")
        if not isinstance(command, Reload):
            raise refuse_command("agent", command)
        must_record(self._trail.must, command, operator)
        return Done(True, self._reload(files))

    def _reload(self, files: Mapping[str, int]) -> str:
        """New certificates for connections from now on; open ones go on.  Raises and changes nothing when they are bad."""
        try:
            facts = self._link.reload(files)
        except ScaleoutError as exc:
            self._trail.note("credential-refused", code=exc.code, message=exc.message)
            self._log.error("credential-refused", exc)
            raise
        return f"certificate {facts.subject} valid until {facts.not_after}" if facts else "no client certificate is configured"

    def _facts(self, left: int) -> dict[str, Json]:
        agent, link = self._agent, self._link
        who = link.assignment.client_id if link.assignment else link.tokens.client_id
        facts: dict[str, Json] = {"connected": agent.connected, "combiner": link.where, "client_id": who, "tasks": left}
        if link.certificate is not None:
            facts |= {"certificate_subject": link.certificate.subject, "certificate_not_after": link.certificate.not_after}
        if agent.connected_ms:
            facts["connected_since_ms"] = agent.connected_ms
        hold = agent.hold.now
        if hold is not None:
            facts |= {"held_by": hold.operator, "held_since_ms": hold.since_ms, "reason": hold.reason}
        return facts

    def _text(self, state: State, left: int) -> str:
        hold, where = self._agent.hold.now, self._link.where
        if hold is not None:
            told = f"paused by {hold.operator}: {hold.reason}" if hold.kind == "pause" else f"drained by {hold.operator}"
            return f"{told}, {left} to end" if left else told
        if state == "refusing":
            return f"not connected to {where}"
        told = f"connected to {where}" if self._agent.connected else f"connecting to {where}"
        return f"{told}, {left} in hand" if left else f"{told}, idle"


def keep_told(notifier: Notifier, desk: AgentDesk, stop: threading.Event) -> None:
    """Tells the service manager what `systemctl status` shows, and that this process lives, until `stop`.

    The threads do the work; each that ends by a bug sets `stop`, so alive means at work.
    """
    shown = _shown(desk.report())
    notifier.ready(shown)
    while not stop.wait(min(STATUS_S, notifier.watchdog_s / 4 or STATUS_S)):
        notifier.progress()
        if (text := _shown(desk.report())) != shown:
            notifier.status(text)
            shown = text
    notifier.stopping("stopping: what is in progress is kept")


def _shown(report: StatusReport) -> str:
    return f"{report.text}: {report.message} [{report.code}]" if report.code else report.text


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
