# SPDX-License-Identifier: Apache-2.0
"""What the runner tells an administrator, and what it does when told (ipc/control.py).

Drain is the agent's: what it has begun, the runner ends.  Pause is the runner's: it begins no run, whoever asks, and says so
with the code `paused`; what is computed is still delivered.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from scaleoutd import __version__
from scaleoutd.core.plan import OUTCOMES
from scaleoutd.core.records import encode
from scaleoutd.core.strictjson import Json
from scaleoutd.errors import PolicyDeniedError, ScaleoutError
from scaleoutd.hold import Hold, HoldFile
from scaleoutd.ipc.control import (
    ApproveSession,
    Change,
    Command,
    Done,
    Operator,
    Pause,
    Reload,
    ResetTrust,
    Resume,
    State,
    Status,
    StatusReport,
    must_record,
)
from scaleoutd.runner.budget import Approval, Uptime, runs_so_far
from scaleoutd.runner.policyfile import read_policy
from scaleoutd.runner.resetting import reset_trust

if TYPE_CHECKING:
    from scaleoutd.runner.service import Runner


SHOWN_SESSIONS = 16


def _persons(operator: Operator, login_uid: int | None) -> tuple[int, ...]:
    return (operator.uid,) if login_uid is None else (operator.uid, login_uid)


class RunnerDesk:
    """A Desk (ipc/control.py) of `runner`."""

    def __init__(self, runner: Runner) -> None:
        self._runner, self._since_ms = runner, time.time_ns() // 1_000_000
        self._is_unit = runner.room.backend == "systemd"

    @property
    def _hold(self) -> HoldFile:
        return self._runner.room.hold

    def report(self) -> StatusReport:
        code, message, hint, facts = "", "", "", self._facts()
        try:
            policy = read_policy(self._runner.room.policy_file)
            facts |= {"policy_sha256": policy.digest(), "project": policy.project.name, "project_folder": policy.project.path}
            facts |= {"runs_per_day": policy.budget.runs_per_day, "approval": policy.budget.approval}
            if self._runner.policy_sha256 not in ("", policy.digest()):
                facts["policy_at_start_sha256"] = self._runner.policy_sha256
        except ScaleoutError as exc:
            code, message, hint = exc.code, exc.message, exc.hint
        state: State = "refusing" if code else "serving"
        if self._hold.now is not None and not code:
            state = "paused"
        return StatusReport(
            room="runner",
            build=__version__,
            pid=os.getpid(),
            since_ms=self._since_ms,
            state=state,
            text=self._text(state),
            busy=self._runner.busy,
            code=code,
            message=message[:1024],
            hint=hint[:1024],
            facts=facts,
        )

    def may(self, request: Status | Command, operator: Operator) -> bool:
        """In the foreground the socket is open to every user of the host: those whom the policy names see which sessions wait;
        the others get no further than to a refusal on record."""
        if self._is_unit or operator.uid == os.geteuid() or isinstance(request, ApproveSession):
            return True
        return isinstance(request, Status) and operator.name in read_policy(self._runner.room.policy_file).budget.approvers

    def do(self, command: Command, operator: Operator, files: Mapping[str, int]) -> Done:
        room = self._runner.room
        if isinstance(command, ApproveSession):
            return self._approve(command, operator)
        if isinstance(command, Pause):
            room.approvals.acted("pause", *_persons(operator, command.login_uid))
            must_record(room.ledger.record, command, operator)
            changed = self._hold.set(Hold("pause", room.now().wall_ms, operator.name, command.reason))
            return Done(changed, "no run begins")
        if isinstance(command, Resume):
            if self._hold.now is None:
                return Done(False, "it was not paused")
            must_record(room.ledger.record, command, operator)
            return Done(self._hold.lift(), "runs begin again")
        if isinstance(command, Reload):
            # Policy and trust root are read for each task; a policy that cannot be used is told now and not at the next one.
            policy = read_policy(room.policy_file)
            must_record(room.ledger.record, command, operator)
            return Done(True, f"policy {policy.digest()[:16]} counts from the next task on")
        if isinstance(command, Change):
            room.approvals.acted(command.command, *_persons(operator, command.login_uid))
            must_record(room.ledger.record, command, operator)
            return Done(True, "on record")
        if isinstance(command, ResetTrust):
            return reset_trust(room, command, operator)
        return Done(False, "the agent drains; what was begun ends here")

    def _approve(self, command: ApproveSession, operator: Operator) -> Done:
        """A second person's word; a refusal of one who is none is on record as well."""
        room = self._runner.room
        policy = read_policy(room.policy_file)
        if policy.budget.approval == "none":
            raise PolicyDeniedError(
                "cannot approve a session: the policy asks for nobody's approval",
                code="command-refused",
                hint="Ask for it with budget.approval: second-person in the policy.",
            )
        combiner = room.approvals.combiner_of(command)
        who = {"session_id": command.session, "combiner": combiner, "operator": operator.name, "peer_uid": operator.uid}
        try:
            room.approvals.check_second(operator, policy, room.policy_file, by_name=not self._is_unit)
        except PolicyDeniedError as exc:
            room.ledger.record("approval-refused", **who, code=exc.code, message=exc.message, hint=exc.hint)
            raise
        now_ms = room.now().wall_ms
        approval = Approval(command.session, combiner, policy.digest(), operator.name, operator.uid, now_ms)
        if room.approvals.find(command.session, combiner, approval.policy_sha256) is not None:
            return Done(False, f"session {command.session} of {combiner} was approved before")
        room.ledger.record("session-approved", **who, policy_sha256=approval.policy_sha256)
        room.approvals.approve(approval)
        return Done(True, f"session {command.session} of {combiner} may run")

    def _facts(self) -> dict[str, Json]:
        room = self._runner.room
        kept = room.approvals.kept
        facts: dict[str, Json] = {
            "backend": room.backend,
            "outcomes_open": [name for name in OUTCOMES if name in room.left_open],
            "waiting": self._runner.waiting,
            "runs_last_day": runs_so_far(room.runs, "", room.now(), Uptime.now()).day,
            "sessions_waiting": [encode(item) for item in kept.waiting[-SHOWN_SESSIONS:]],
            "sessions_approved": [encode(item) for item in kept.approved[-SHOWN_SESSIONS:]],
        }
        if self._hold.now is not None:
            facts |= {
                "held_by": self._hold.now.operator,
                "held_since_ms": self._hold.now.since_ms,
                "reason": self._hold.now.reason,
            }
        return facts

    def _text(self, state: State) -> str:
        if state == "paused" and self._hold.now is not None:
            return f"paused by {self._hold.now.operator}: {self._hold.now.reason}"
        return "a task runs" if self._runner.busy else "waits for tasks" if state == "serving" else "can run nothing"
