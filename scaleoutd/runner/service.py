# SPDX-License-Identifier: Apache-2.0
"""The runner as a process: takes connections, one thread each; one task runs at a time.

At start it proves the outcomes that the policy demands, puts that on record, and takes up what a crash left in the run-once
table.  Then it serves until its door closes or SIGTERM comes.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import replace

from scaleoutd import __version__
from scaleoutd.core.plan import OUTCOMES, Enforcement
from scaleoutd.core.policy import Policy
from scaleoutd.errors import (
    CODES,
    KernelSupportError,
    LaunchError,
    LedgerError,
    PeerError,
    PolicyDeniedError,
    ScaleoutError,
    from_code,
)
from scaleoutd.ipc.channel import Channel, Refused
from scaleoutd.ipc.control import Control
from scaleoutd.ipc.doors import ServerDoor, TaskEnded
from scaleoutd.ipc.messages import CancelTask, Delivered, Forgotten, Released, TaskOffer
from scaleoutd.ipc.step import Probed
from scaleoutd.runner import openings, planner
from scaleoutd.runner.admission import admit
from scaleoutd.runner.budget import Uptime, runs_so_far
from scaleoutd.runner.connections import Connections
from scaleoutd.runner.control import RunnerDesk
from scaleoutd.runner.environments import resolve_environment
from scaleoutd.runner.link import Link
from scaleoutd.runner.outbox import Outgoing
from scaleoutd.runner.pipeline import Task, perform, release
from scaleoutd.runner.policyfile import read_policy
from scaleoutd.runner.room import Room
from scaleoutd.runner.runs import Run
from scaleoutd.runner.stopping import Stopped, stop_on_sigterm
from scaleoutd.runner.tidy import tidy_after

# A result stays in the outbox until the agent says what became of it; an agent that is silent this long is asked no more.
DELIVERY_S = 24 * 3600.0
# Begun so often and never ended: something about the task ends the instance or the room.
MAX_ATTEMPTS = 3
STOP_RECORD_S = 2.0
# One that says nothing does not keep its place (connections.py).
OFFER_S = 60.0


class Runner:
    """Serves the connections of `door`."""

    def __init__(self, room: Room, log: Callable[[str], None]) -> None:
        self.room = room
        self.log = log
        self._one_at_a_time = threading.Lock()
        self._digests: dict[str, str] = {}
        self.waiting = 0  # tasks that were offered and have no answer yet
        self.on_status: Callable[[str], None] = lambda text: None  # one line for whoever looks at the unit
        self._denied: KernelSupportError | None = None  # why a development node runs without namespaces

    @property
    def busy(self) -> bool:
        return self._one_at_a_time.locked()

    @property
    def policy_sha256(self) -> str:
        """Of the policy at the start, "" before."""
        return self._digests.get("policy", "")

    def start(self) -> str:
        """Probes, recovers and records; returns what people must be told.  Raises when a demanded outcome cannot be proven."""
        policy = read_policy(self.room.policy_file)
        self._digests = {"policy": policy.digest()}
        probed = self._prove(policy)
        self.room.ledger.record(
            "runner-started",
            version=__version__,
            policy_sha256=policy.digest(),
            backend=self.room.backend,
            outcomes=[told(item) for item in probed.outcomes],
            seccomp_sha256=probed.filter_sha256 or None,
            landlock_abi=probed.landlock_abi,
            development=policy.development,
            formats=list(policy.model_formats),
            kernel=os.uname().release,
            clock_synchronised=self.room.now().synchronised,
            pid=os.getpid(),
        )
        left_open = self.room.left_open = tuple(name for name in OUTCOMES if name in _open_of(probed))
        if left_open:
            self.room.ledger.record("outcome-open", outcomes=list(left_open), backend=self.room.backend)
        self.recover()
        self.room.instances.end_left()
        self.room.instances.refill()
        if self._denied is not None:
            return openings.told_at_start(self._denied.message, self._denied.hint, left_open)
        return openings.told_as_allowed(left_open, self.room.backend)

    def _prove(self, policy: Policy) -> Probed:
        """The probe.  A development node goes on where no namespaces can be had; a node with a policy never does by itself."""
        try:
            return self._probe(policy)
        except KernelSupportError as exc:
            if exc.code != "namespaces-denied":
                raise
            if not policy.development:
                exc.hint += " Without them: `backend: inner` in the policy, and under outcomes: only what can be proven then."
                raise
            if os.geteuid() == 0:
                exc.hint = "Start it as an ordinary user (a container: --user), or give the container CAP_SYS_ADMIN."
                raise
            self._denied = exc
            self.room.backend = "inner"
            return self._probe(replace(policy, outcomes=()))

    def _probe(self, policy: Policy) -> Probed:
        if not policy.environments:
            return Probed(())
        name = sorted(policy.environments)[0]
        environment = resolve_environment(policy.environments[name])
        with self.room.instances.take(policy.digest()) as instance:
            plan = planner.make_plan(
                planner.PlanInputs(
                    run="probe",
                    backend=self.room.backend,
                    slot=instance.slot,
                    task="train",
                    command=[environment.python],
                    snapshot=self.room.seen_by_step(self.room.state / "store"),
                    model_folder=self.room.seen_by_step(self.room.state / "in"),
                    scratch=self.room.seen_by_step(self.room.scratch / str(instance.slot)),
                    environment=environment,
                    data_sets={},
                    limits=policy.limits.of_run(),
                    outcomes=policy.outcomes,
                    devices=policy.devices,
                )
            )
            return instance.probe(plan)

    def recover(self) -> None:
        """Puts on record what a crash left: half-written files, and runs that had begun and not computed."""
        for name in self.room.outbox.abandoned:
            self.room.ledger.record("state-repaired", file=f"outbox/{name}", torn_bytes=0, reason="half-written result")
        for run in self.room.runs.all():
            try:
                if run.torn_bytes:
                    self.room.ledger.record("state-repaired", file=f"runs/{run.name}/state", torn_bytes=run.torn_bytes)
                self._interrupt(run)
                if run.state in ("forgotten", "failed"):
                    self.room.outbox.remove(run.name)  # a crash may have come between the state and this
            finally:
                run.close()

    def _interrupt(self, run: Run) -> None:
        if run.state in ("accepted", "about-to-run"):
            found = run.state
            self.room.ledger.record(
                "run-interrupted",
                run=run.name,
                attempt=run.attempts,
                correlation_id=run.offer.correlation_id,
                task=run.offer.task,
                found=found,
                state="interrupted",
            )
            self.room.enter(run, "interrupted", {"found": found})

    # --- connections ------------------------------------------------------------------------------------------

    def serve(self, door: ServerDoor) -> None:
        """Accepts until the door closes."""
        Connections(self.handle, self.log).serve(door)

    def handle(self, channel: Channel) -> None:
        """One connection: one task, from its offer to what became of it."""
        link = Link(channel)
        offer: TaskOffer | None = None
        try:
            channel.greet("runner", self._digests)
            offer = channel.expect(TaskOffer, timeout_s=OFFER_S)
            # A client that waits for its turn costs a thread, not a run.
            self.waiting += 1
            try:
                with self._one_at_a_time:
                    self.on_status(f"{offer.task} of session {offer.session_id}")
                    answer = self._answer(offer, link)
            finally:
                self.waiting -= 1
            self._tell_end(offer, link)
            if answer is not None:
                self._deliver(channel, link.answered, *answer)
        except PeerError as exc:
            # In the foreground that is Ctrl-C or a cancellation, and the parent knows.
            if self.room.watcher is None or exc.code != "peer-closed":
                self.log(f"connection of {channel.peer} ended: {exc.message}")
        except ScaleoutError as exc:
            if offer is None or not self._tell_end(offer, link, exc):
                self.log(f"task of {channel.peer} refused: {exc.message} [{exc.code}]")
            self._refuse(channel, exc)
        except Exception as exc:  # a bug must not take the room down with it; it is told and the task fails
            self.log(f"bug while serving {channel.peer}: {exc!r}")
            self._refuse(channel, ScaleoutError(f"cannot run the task: {type(exc).__name__} in the runner"))
            raise
        finally:
            link.decided.set()
            link.answered.set()
            channel.close()
            if offer is not None and not self.busy:
                self.on_status(self.at_rest())

    def at_rest(self) -> str:
        """What is said while nothing runs."""
        begun = runs_so_far(self.room.runs, "", self.room.now(), Uptime.now()).day
        waiting = len(self.room.approvals.kept.waiting)
        asks = f", {waiting} sessions wait for approval" if waiting else ""
        return f"waits for tasks, {begun} runs in the last 24 hours{asks}"

    def _tell_end(self, offer: TaskOffer, link: Link, error: ScaleoutError | None = None) -> bool:
        """Tells whoever watches in the foreground how a task ended; False when nobody does."""
        if self.room.watcher is None:
            return False
        body = Refused.of(error) if error is not None else Refused("none", "")
        code = body.code if error is not None else ""
        try:
            self.room.watcher(TaskEnded(offer.task, link.run or "none", code, body.message, body.hint, link.denied))
        except PeerError:
            return False
        return True

    def _refuse(self, channel: Channel, error: ScaleoutError) -> None:
        """Tells the asker.  What the agent is told can leave the node, so it gets the bare code unless the policy says more."""
        if channel.peer == "agent" and not self._failure_detail():
            error = from_code(error.code, f"cannot run the task: {CODES[error.code]}", "The node's log and trail say more.")
        try:
            channel.tell(Refused.of(error))
        except PeerError:
            pass  # the asker is gone; what happened is on record

    def _failure_detail(self) -> bool:
        try:
            return read_policy(self.room.policy_file).egress.failure_detail
        except ScaleoutError:
            return False

    def _answer(self, offer: TaskOffer, link: Link) -> tuple[Released, Outgoing] | None:
        """Runs the task, or answers from the run-once table when it was run before."""
        threading.Thread(target=tidy_after, args=[self.room.instances, link, self.log], name="tidy", daemon=True).start()
        run = self.room.runs.open(offer)
        link.run = run.name
        try:
            if run.state in ("computed", "released"):
                task = Task(self.room, run, link, self.room.now())
                outgoing = self.room.outbox.get(
                    run.name, int(run.field("computed", "size_bytes")), str(run.field("computed", "sha256"))
                )
                return release(task, outgoing), outgoing
            if run.state == "failed":
                raise from_code(str(run.fields["code"]), str(run.fields["message"]), str(run.fields.get("hint", "")))
            if run.state == "forgotten":
                raise PolicyDeniedError(
                    f"cannot run {offer.correlation_id} again: its result was delivered before", code="run-repeated"
                )
            admit(self.room, offer)
            self._interrupt(run)  # its agent went away in the middle; the connection's end killed what ran
            if run.begun >= MAX_ATTEMPTS:
                raise self._give_up(run)
            return perform(Task(self.room, run, link, self.room.now()))
        finally:
            run.close()
            link.decided.set()

    def _give_up(self, run: Run) -> ScaleoutError:
        error = LaunchError(
            f"cannot finish the task: it was begun {run.begun} times and never ended",
            hint="See the log for why the step instance or a room went away, for example for want of memory.",
        )
        body = {"code": error.code, "message": error.message, "hint": error.hint}
        self.room.ledger.record("run-failed", run=run.name, correlation_id=run.offer.correlation_id, stage="execute", **body)
        self.room.enter(run, "failed", body)
        return error

    def _deliver(self, channel: Channel, answered: threading.Event, released: Released, outgoing: Outgoing) -> None:
        """Hands over what was released, and forgets it when the agent knows what became of it."""
        if outgoing.weights:
            fd = outgoing.open_container()
            try:
                channel.tell(released, [fd])
            finally:
                os.close(fd)
        else:
            channel.tell(released)
        delivered = self._delivered(channel)
        answered.set()
        run = self.room.runs.find(delivered.run)
        if run is None or delivered.run != released.run:
            raise PeerError(f"cannot forget run {delivered.run}: this connection is about {released.run}")
        try:
            self.room.ledger.record(
                "outbox-forgotten",
                run=run.name,
                correlation_id=run.offer.correlation_id,
                outcome=delivered.outcome,
                sha256=released.sha256,
                size_bytes=released.size_bytes,
            )
            if run.state != "forgotten":
                self.room.enter(run, "forgotten", {"outcome": delivered.outcome})
            self.room.outbox.remove(run.name)
        finally:
            run.close()
        channel.tell(Forgotten(run.name))

    @staticmethod
    def _delivered(channel: Channel) -> Delivered:
        """What became of the result.  A cancellation that crossed with it comes too late and is passed over."""
        while True:
            received = channel.receive(Delivered, CancelTask, timeout_s=DELIVERY_S)
            if received.descriptors:
                received.close()
                raise PeerError("cannot take what became of a result: the message carries descriptors")
            if isinstance(received.message, Delivered):
                return received.message

    def stop(self, reason: str) -> None:
        """Bounded: with the parent the ledger is gone too, and what still runs here must end soon."""
        self.room.instances.close()
        recorder = threading.Thread(target=self._record_stop, args=[reason], name="stop", daemon=True)
        recorder.start()
        recorder.join(STOP_RECORD_S)

    def _record_stop(self, reason: str) -> None:
        try:
            self.room.ledger.record("runner-stopped", reason=reason)
        except LedgerError as exc:
            self.log(f"stopped without a record: {exc.message}")


def _open_of(probed: Probed) -> set[str]:
    return {item.name for item in probed.outcomes if item.status == "open"}


def told(item: Enforcement) -> str:
    """`no-socket-out: proven (netns, seccomp)`."""
    return f"{item.name}: {item.status}" + (f" ({', '.join(item.providers)})" if item.providers else "")


def run(
    room: Room,
    door: ServerDoor,
    ready: Callable[[str], None],
    control: socket.socket | None = None,
    failed: Callable[[str, str], None] = lambda code, message: None,
    status: Callable[[str], None] | None = None,
) -> int:
    """The room's life; returns its exit status.

    `control` is the listening socket for administrators (ipc/control.py); `failed` hears code and message of a start that failed,
    `status` what the room does, in a line.
    """

    def log(line: str) -> None:
        print(f"runner: {line}", file=sys.stderr, flush=True)

    runner = Runner(room, log)
    stop_on_sigterm()
    if control is not None:
        desk = RunnerDesk(runner)
        Control("runner", control, desk, log, desk.may).start()
    reason = "the parent is gone"
    try:
        told = runner.start()
        ready(told)
        if status is not None:
            runner.on_status = status
            status(told or runner.at_rest())
        runner.serve(door)
    except Stopped:
        reason = "SIGTERM"
    except ScaleoutError as exc:
        log(f"{exc.message} [{exc.code}]" + (f"\n        {exc.hint}" if exc.hint else ""))
        failed(exc.code, exc.message)
        return exc.exit_status
    runner.stop(reason)
    return 0
