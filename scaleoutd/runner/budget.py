# SPDX-License-Identifier: Apache-2.0
"""The purpose budget where it needs a memory or a clock: runs on record, hours, and a second person's word for a session.

    STATE/approvals.json     who acted last, which sessions wait, which were approved by whom

Rules:
  1. What a run costs is counted by the run-once table (runs.py): an entry that may have run counts, so a crash gives no run for
     free.  A day is 24 hours by the wall clock and by the kernel's time since boot: what lies within one of them counts, so that
     neither a clock set ahead nor one set back gives the day's runs again.
  2. Where the policy asks for a second person, a session waits until somebody has approved it.  A session is approved for one
     combiner under one policy: another policy asks again.
  3. The second is whoever the kernel says is at the other end of the socket, and none of the first: the owner of the policy's
     file, and who last paused the node, applied a policy or installed a project.  Behind sudo they say who they logged in as;
     that is believed, because it can only take somebody's right to approve away.
  4. An approval is on record and on the disk before it is acknowledged.
"""

from __future__ import annotations

import pwd
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from scaleoutd.core import records, strictjson
from scaleoutd.core.clock import DAY_MS, Now
from scaleoutd.core.grant import RunsSoFar, is_allowed
from scaleoutd.core.hours import check_hours
from scaleoutd.core.policy import Policy
from scaleoutd.core.records import Count, Natural, Sha256Hex, Text
from scaleoutd.durable import read_state, replace_file, storage_errors
from scaleoutd.errors import PolicyDeniedError
from scaleoutd.hostclock import boot_id
from scaleoutd.ipc.control import ApproveSession, Operator
from scaleoutd.runner.runs import Runs
from scaleoutd.runner.sitetime import local_time

MAX_WAITING = 64  # a taken agent may name sessions without end; the oldest is forgotten, and asks again
MAX_APPROVED = 1024
MAX_BYTES = 4 << 20


@dataclass(frozen=True)
class Session:
    """As the offer names it."""

    session_id: Annotated[str, Text(256)]
    combiner: Annotated[str, Text(256)]
    since_ms: Natural


@dataclass(frozen=True)
class Approval:
    session_id: Annotated[str, Text(256)]
    combiner: Annotated[str, Text(256)]
    policy_sha256: Sha256Hex
    operator: Annotated[str, Text(256)]
    uid: Natural
    at_ms: Natural


@dataclass(frozen=True)
class Kept:
    """The file.  `acted` by command: the uids of whoever gave it last."""

    acted: Mapping[str, tuple[Natural, ...]] = field(default_factory=dict)
    waiting: Annotated[tuple[Session, ...], Count(0, MAX_WAITING)] = ()
    approved: Annotated[tuple[Approval, ...], Count(0, MAX_APPROVED)] = ()


@dataclass(frozen=True)
class Uptime:
    """Milliseconds since boot, sleep included, of the boot `boot`."""

    boot: str
    up_ms: int

    @classmethod
    def now(cls) -> Uptime:
        return cls(boot_id(), time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000)

    def fields(self) -> dict[str, str | int]:
        """For the line of a run that begins."""
        return {"boot": self.boot, "up_ms": self.up_ms}


def runs_so_far(runs: Runs, session_id: str, now: Now, uptime: Uptime) -> RunsSoFar:
    """What counts of the table, for `authorize`."""
    return RunsSoFar(*runs.counts(now.wall_ms - DAY_MS, session_id, uptime.boot, uptime.up_ms - DAY_MS))


def check_time(policy: Policy, now: Now) -> None:
    """PolicyDeniedError `outside-hours`."""
    if policy.budget.hours:
        check_hours(policy.budget.hours, local_time(now.wall_ms, policy.budget.time_zone))


class Approvals:
    """The file of one runner; safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "approvals.json"
        self._lock = threading.Lock()
        self.kept = read_kept(self._path)

    def acted(self, command: str, *uids: int) -> None:
        """Somebody gave a command that makes them a first person.  Durable when this returns."""
        with self._lock:
            found = tuple(dict.fromkeys(uids))
            if self.kept.acted.get(command) != found:
                self._keep(replace(self.kept, acted={**self.kept.acted, command: found}))

    def find(self, session_id: str, combiner: str, policy_sha256: str) -> Approval | None:
        wanted = (session_id, combiner, policy_sha256)
        return next((item for item in self.kept.approved if (item.session_id, item.combiner, item.policy_sha256) == wanted), None)

    def waits(self, session_id: str, combiner: str) -> bool:
        return any((item.session_id, item.combiner) == (session_id, combiner) for item in self.kept.waiting)

    def wait_for(self, session_id: str, combiner: str, at_ms: int) -> None:
        """Puts a session on the list of those that wait."""
        with self._lock:
            waiting = (*self.kept.waiting, Session(session_id, combiner, at_ms))[-MAX_WAITING:]
            self._keep(replace(self.kept, waiting=waiting))

    def combiner_of(self, command: ApproveSession) -> str:
        """The combiner that is meant; PolicyDeniedError when no session of that id waits, or several and none is named."""
        known: list[Session | Approval] = [*self.kept.waiting, *self.kept.approved]
        found = list(dict.fromkeys(item.combiner for item in known if item.session_id == command.session))
        if command.combiner:
            found = [command.combiner]
        if len(found) == 1:
            return found[0]
        cause = f"it is asked for by {' and '.join(found)}" if found else "no such session waits"
        raise PolicyDeniedError(
            f"cannot approve session {command.session[:80]}: {cause}",
            code="command-refused",
            hint="See which wait: `scaleoutctl approve-session`. Name the combiner with --combiner HOST:PORT to approve ahead.",
        )

    def approve(self, approval: Approval) -> bool:
        """Durable when this returns; False when it was approved so already."""
        with self._lock:
            if self.find(approval.session_id, approval.combiner, approval.policy_sha256):
                return False
            meant = (approval.session_id, approval.combiner)
            waiting = tuple(item for item in self.kept.waiting if (item.session_id, item.combiner) != meant)
            others = tuple(item for item in self.kept.approved if (item.session_id, item.combiner) != meant)
            self._keep(replace(self.kept, waiting=waiting, approved=(*others, approval)[-MAX_APPROVED:]))
            return True

    def check_second(self, operator: Operator, policy: Policy, policy_file: Path, *, by_name: bool) -> None:
        """PolicyDeniedError `approval-refused` for one of the first persons, and for one whom the policy does not name.

        `by_name`: the socket is open to everybody, so "*" names nobody.
        """
        with storage_errors(f"look at {policy_file}"):
            first = {"owns the policy": (policy_file.stat().st_uid,), **{_ACTS.get(k, k): v for k, v in self.kept.acted.items()}}
        for act, uids in first.items():
            if operator.uid in uids:
                raise _not_second(operator, f"they are who {act}", "Another person approves, under an account of their own.")
        if (by_name or "*" not in policy.budget.approvers) and operator.name not in policy.budget.approvers:
            named = ", ".join(policy.budget.approvers) or "nobody"
            raise _not_second(operator, f"the policy names {named}", "See budget.approvers in the policy.")

    def _keep(self, kept: Kept) -> None:
        replace_file(self._path, strictjson.canonical(records.encode(kept)))
        self.kept = kept


# What a command makes its giver, in the message of a refusal.
_ACTS = {"pause": "paused the node", "policy-apply": "applied the policy", "project-install": "installed the project"}


def _not_second(operator: Operator, cause: str, hint: str) -> PolicyDeniedError:
    return PolicyDeniedError(
        f"cannot take an approval of {operator.name} (uid {operator.uid}): expected a second person, {cause}",
        code="approval-refused",
        hint=hint,
    )


def check_approval(
    approvals: Approvals, policy: Policy, session_id: str, combiner: str, now: Now, record: Callable[..., object]
) -> None:
    """PolicyDeniedError `approval-needed` while the session waits; that it does is put on record once.

    A session that the policy does not allow at all is not asked for: that it is refused is for `authorize` to say.
    """
    if policy.budget.approval == "none" or not is_allowed(policy.budget, session_id, combiner):
        return
    policy_sha256 = policy.digest()
    if approvals.find(session_id, combiner, policy_sha256) is not None:
        return
    if not approvals.waits(session_id, combiner):
        record("session-waits", session_id=session_id, combiner=combiner, policy_sha256=policy_sha256)
        approvals.wait_for(session_id, combiner, now.wall_ms)
    raise PolicyDeniedError(
        f"cannot run for session {session_id[:80]!r} of {combiner[:80]!r}: it waits for a second person's approval",
        code="approval-needed",
        hint="Somebody else than who installed or paused the node: `scaleoutctl approve-session`.",
    )


def unknown_approvers(policy: Policy) -> tuple[str, ...]:
    """Names under budget.approvers that are no user of this host."""
    return tuple(name for name in policy.budget.approvers if name != "*" and not _is_user(name))


def _is_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def read_kept(path: Path) -> Kept:
    """The file; nothing when it is not there.  One that cannot be read stops the room: it may hold who must not approve."""
    kept = read_state(
        path,
        lambda data: records.decode(Kept, strictjson.parse(data, max_bytes=MAX_BYTES, what="the approvals"), "approvals"),
        f"Keep {path.name} as evidence and remove it: every session then waits again.",
    )
    return kept or Kept()
