# SPDX-License-Identifier: Apache-2.0
"""Step instances, connected ahead of time, and the conversation with one.

An instance is one connection through the door to the step; its end kills whatever runs in it.  Spares are connected while
nothing runs, so that a task does not wait for an interpreter to start, and are dropped when they were started under another
policy.  Each task gets a slot, a step uid of its own, that is free again only when the instance before is gone.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from scaleoutd.core.plan import GateFacts, GateRules, ModelFacts, ModelRules, SandboxPlan, StepResult
from scaleoutd.errors import LaunchError, PeerError, ScaleoutError, VerificationError
from scaleoutd.ipc.channel import Channel, Received
from scaleoutd.ipc.doors import ClientDoor
from scaleoutd.ipc.step import (
    CancelStep,
    Clean,
    Cleaned,
    Ended,
    Execute,
    Gate,
    Gated,
    Inspect,
    Inspected,
    Prepare,
    Probe,
    Probed,
    Started,
)

SLOTS = 8
CONNECT_TRIES = 3
INSPECT_S = 600.0
GATE_S = 600.0
PROBE_S = 60.0
# An instance that is given up goes on starting, and the next one makes both slower: a busy machine would never get one.
HELLO_S = 60.0
# Above the plan's wall clock: the launcher ends the step, kills what is left and reports.
GRACE_S = 30.0
ANSWERS = (Probed, Inspected, Started, Ended, Gated, Cleaned)


@dataclass
class Instance:
    """One step instance with the slot it may use."""

    channel: Channel
    slot: int
    _on_close: Callable[[Instance], None]
    _on_leave: Callable[[Instance], None]
    plan: SandboxPlan | None = None  # what was executed here

    def probe(self, plan: SandboxPlan) -> Probed:
        return self.channel.ask(Probe(plan), Probed, timeout_s=PROBE_S)

    def prepare(self, plan: SandboxPlan) -> None:
        """Has the sandbox of `plan` built beside what comes next; nothing runs in it before `execute` with the same plan."""
        self.channel.tell(Prepare(plan))

    def inspect(self, plan: SandboxPlan, rules: ModelRules, model: int) -> ModelFacts:
        return self.channel.ask(Inspect(plan, rules), Inspected, descriptors=[model], timeout_s=INSPECT_S).facts

    def execute(self, plan: SandboxPlan, log: int, terminal: int | None) -> None:
        """Starts the step; `ended` waits for it."""
        self.plan = plan
        descriptors = [log] if terminal is None else [log, terminal]
        self.channel.ask(Execute(plan, terminal is not None), Started, descriptors=descriptors, timeout_s=PROBE_S)

    def cancel(self) -> None:
        self.channel.tell(CancelStep())

    def ended(self, timeout_s: float) -> StepResult:
        return self.channel.expect(Ended, timeout_s=timeout_s).result

    def gate(self, plan: SandboxPlan, rules: GateRules, model: int | None) -> tuple[GateFacts, int | None]:
        """The gate's facts, and for train the weights as a read-only descriptor, the caller's."""
        self.channel.tell(Gate(plan, rules), [] if model is None else [model])
        received = self.channel.receive(Gated, timeout_s=GATE_S)
        wanted = 1 if rules.task in ("train", "build") else 0
        if len(received.descriptors) != wanted:
            count = len(received.descriptors)
            received.close()
            raise PeerError(f"cannot take the gate's answer: it carries {count} descriptors, expected {wanted}")
        return _facts_of(received), received.take() if wanted else None

    def close(self) -> None:
        self._on_close(self)

    def __enter__(self) -> Instance:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        """After a failure the instance ends now, with all that may run in it, beside what comes next.  Else nothing of the run is
        alive any more, and its clean-up waits until the result is out (`Instances.end_left`)."""
        if kind is None:
            self._on_leave(self)
        else:
            threading.Thread(target=self.close, name=f"end of slot {self.slot}", daemon=True).start()


def _facts_of(received: Received) -> GateFacts:
    message = received.message
    if not isinstance(message, Gated):
        raise PeerError("cannot take the gate's answer: it has another type")
    return message.facts


class Instances:
    """The pool: `take` gives a connected instance with a free slot."""

    def __init__(self, door: ClientDoor, spares: int = 1, *, units: bool = False) -> None:
        """`units`: the instances are units that `policy apply` has written the limits and paths of."""
        self._door = door
        self._wanted = spares
        self._units = units
        self._lock = threading.Lock()
        self._filling = threading.Lock()  # held while spares are connected
        self._spares: list[Channel] = []
        self._left: list[Instance] = []
        self._busy: set[int] = set()
        self._closed = False

    def take(self, policy_sha256: str = "") -> Instance:
        """VerificationError `policy-mismatch` when even a new instance was started under another policy than this one."""
        if not self._spares:
            with self._filling:  # one that is being connected is there sooner than one that is begun now
                pass
        with self._lock:
            channel = self._spares.pop() if self._spares else None
            slot = next((number for number in range(SLOTS) if number not in self._busy), None)
            if slot is None:
                raise LaunchError(f"cannot start a step: all {SLOTS} slots are in use", code="step-unavailable")
            self._busy.add(slot)
        try:
            if channel is not None and channel.connection.wait(0):
                channel.close()  # a spare has nothing to say: it is gone
                channel = None
            if channel is not None and not self._fits(channel, policy_sha256):
                channel.close()
                channel = None
            if channel is None:
                channel = self._connect()
                if not self._fits(channel, policy_sha256):
                    channel.close()
                    raise VerificationError(
                        f"cannot start a step: its unit was written for policy {_policy_of(channel) or 'none'}, in force is"
                        f" {policy_sha256}",
                        code="policy-mismatch",
                        hint="Run `scaleoutctl policy apply` as root.",
                    )
            return Instance(channel, slot, self._release, self._leave)
        except BaseException:
            with self._lock:
                self._busy.discard(slot)
            raise

    def _fits(self, channel: Channel, policy_sha256: str) -> bool:
        return not self._units or _policy_of(channel) == policy_sha256

    def refill(self) -> None:
        """Connects spares up to the wanted number; call it when nothing is in a hurry."""
        with self._filling:
            while self._is_short():
                channel = self._connect()
                with self._lock:
                    self._spares.append(channel)
            if self._closed:
                self.close()  # it came in between

    def _is_short(self) -> bool:
        with self._lock:
            return not self._closed and len(self._spares) < self._wanted

    def end_left(self) -> None:
        """Ends the instances whose task is over."""
        with self._lock:
            left, self._left = self._left, []
        for instance in left:
            instance.close()

    def _leave(self, instance: Instance) -> None:
        with self._lock:
            self._left.append(instance)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for channel in self._spares:
                channel.close()
            self._spares.clear()

    def _connect(self) -> Channel:
        cause: PeerError | None = None
        for _ in range(CONNECT_TRIES):
            try:
                channel = self._door.connect("step")
            except PeerError as exc:
                cause = exc
                continue
            try:
                channel.greet("runner", timeout_s=HELLO_S)
                return channel
            except PeerError as exc:  # the end of the connection before hello: busy, or the instance could not start
                channel.close()
                cause = exc
        raise LaunchError(
            f"cannot reach a step instance: {cause.message if cause else 'no answer'}",
            code="step-unavailable",
            hint="See the launcher's last words in the log; a path bound into its view may be missing.",
        ) from cause

    def _release(self, instance: Instance) -> None:
        """Ends the connection, waits until the instance is gone, and frees its slot."""
        channel = instance.channel
        try:
            # Our end says no more; the launcher kills what runs, empties the scratch folder and closes its end.
            channel.connection.shut()
            cleaned = _last_word(channel)
            if instance.plan is not None and not cleaned and has_left_overs(instance.plan):
                self._clean(instance.plan)
        finally:
            channel.close()
            with self._lock:
                self._busy.discard(instance.slot)

    def _clean(self, plan: SandboxPlan) -> None:
        """An instance that was killed leaves its scratch folder as it was, and only the slot's user may empty it."""
        channel = self._connect()
        try:
            channel.ask(Clean(plan), Cleaned, timeout_s=GRACE_S)
        finally:
            channel.close()


def _policy_of(channel: Channel) -> str:
    return channel.peer_hello.digests.get("policy", "") if channel.peer_hello else ""


def _last_word(channel: Channel) -> bool:
    """Waits until the instance is gone; True when it said that it left nothing in its scratch folder."""
    deadline_s = time.monotonic() + GRACE_S
    cleaned = False
    while (left_s := deadline_s - time.monotonic()) > 0:
        try:
            received = channel.receive(*ANSWERS, timeout_s=left_s)
        except ScaleoutError as exc:  # an answer to what nobody waits for any more
            if isinstance(exc, PeerError) and exc.code in ("peer-closed", "peer-timeout"):
                break
            continue
        cleaned = isinstance(received.message, Cleaned)
        received.close()
    return cleaned


def has_left_overs(plan: SandboxPlan) -> bool:
    """Whether something lies in the scratch folder; True when this room may not even look."""
    if plan.backend == "systemd":
        return True  # the path is one of the step's view
    try:
        return bool(os.listdir(plan.scratch))
    except FileNotFoundError:
        return False
    except PermissionError:
        return True
