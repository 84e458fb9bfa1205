# SPDX-License-Identifier: Apache-2.0
"""The program of a step instance: one connection, one task, then the end.

It holds no secret and decides nothing: the runner sends plans, this room carries them out and reports.  When the connection
ends, for any reason, everything that runs is killed and scratch is emptied.  SIGINT of a terminal is ignored: the runner
decides what it means.
"""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import gc
import os
import signal
import stat
import sys
from collections.abc import Callable, Sequence
from typing import Any

from scaleoutd.core import records
from scaleoutd.core.plan import POLICY_VARIABLE, GateFacts, GateRules, ModelFacts, SandboxPlan
from scaleoutd.errors import KernelSupportError, LaunchError, PeerError, ScaleoutError
from scaleoutd.ipc.channel import Channel, Hello, Received, Refused
from scaleoutd.ipc.packets import Connection
from scaleoutd.ipc.step import (
    RESULT_OUTPUT,
    TRAIN_METADATA,
    TRAIN_OUTPUT,
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
from scaleoutd.step import (
    children,
    confine,
    devices,
    execute,
    gate,
    inspect,
    killer,
    landlock,
    limits,
    namespaces,
    orders,
    outputs,
    probe,
    scratch,
    seccomp,
    syscalls,
    view,
)
from scaleoutd.step.landlock import Grant
from scaleoutd.step.start import CONNECTION_FD
from scaleoutd.step.waiting import Waiting

REQUESTS = (Probe, Clean, Prepare, Inspect, Execute, Gate)


class Launcher:
    """The session with the runner."""

    def __init__(self, channel: Channel, unit: bool = False) -> None:
        self._channel, self._unit = channel, unit
        self._filters = seccomp.loaded()
        self._abi = min(syscalls.landlock_abi(), 7)
        self._namespaces_error = None if unit else namespaces.why_not()
        self._scratch: tuple[str, confine.Identity] | None = None
        self._prepared: execute.Execution | None = None
        self._group = limits.Cgroup()
        if unit:
            self._group.adopt()
        self._killer: killer.Killer | None = None
        self._waiting: Waiting | None = None

    def serve(self) -> None:
        """Greets, then answers requests until the connection ends."""
        try:
            policy = os.environ.get(POLICY_VARIABLE, "")  # of the unit's drop-in
            self._channel.greet("step", {"filter": self._filters.step_sha256} | ({"policy": policy} if policy else {}))
            self._warm_up()
            while True:
                received = self._channel.receive(*REQUESTS)
                try:
                    self._answer(received)
                finally:
                    received.close()
                    children.reap()
        except PeerError as exc:
            if exc.code != "peer-closed":
                raise
        finally:
            self._clean_up()
            self._say_clean()

    def _say_clean(self) -> None:
        """The runner may not look into the scratch folder of a slot, so it is told; silence means that something is left."""
        try:
            self._channel.tell(Cleaned())
        except PeerError:
            pass  # the runner is gone; who uses the slot next empties it first

    def _warm_up(self) -> None:
        """What takes time and needs nobody: after the hello, while the runner proves the project."""
        if not self._unit:
            self._group.enter(limits.group_name())
        records.learn(Hello, *REQUESTS)  # done already in the launcher of a template
        gc.collect()
        gc.freeze()  # a collection later on, in a fork or here, would write into all that they share
        self._killer = killer.Killer() if self._unit else None
        self._waiting = self._fork(own_namespaces=not self._unit and self._namespaces_error is None)

    def _fork(self, *, own_namespaces: bool) -> Waiting:
        base = orders.Base(own_namespaces, self._unit, self.order_of, probe.act)
        orders.rehearse(base)
        return Waiting(base)

    def _take_waiting(self, *, own_namespaces: bool) -> Waiting:
        """What was forked while warm; for a second run, or where it is not what the plan needs, it is forked now."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None and waiting.fits(own_namespaces=own_namespaces):
            return waiting
        if waiting is not None:
            waiting.discard()
        return self._fork(own_namespaces=own_namespaces)

    def _answer(self, received: Received) -> None:
        handlers: dict[type[Any], Callable[[Received], None]] = {
            Probe: self._probe,
            Clean: self._clean,
            Prepare: self._prepare,
            Inspect: self._inspect,
            Execute: self._execute,
            Gate: self._gate,
        }
        try:
            handlers[type(received.message)](received)
        except ScaleoutError as exc:
            if isinstance(exc, PeerError) and exc.code == "peer-closed":
                raise
            self._channel.tell(Refused.of(exc))

    def _clean(self, received: Received) -> None:
        request: Clean = received.message
        plan, identity = request.plan, confine.identity_of(request.plan)
        if not self._unit:
            scratch.make(plan.scratch, identity)
        self._scratch = (plan.scratch, identity)
        self._clean_up()
        self._channel.tell(Cleaned())

    def _inspect(self, received: Received) -> None:
        request: Inspect = received.message
        if len(received.descriptors) != 1:
            raise PeerError("cannot inspect: exactly one descriptor, the model, must come with the message")
        size = _size_of_input(received.descriptors[0])
        work = functools.partial(inspect.inspect_model, request.rules, size)
        answer = children.call(self._reader_cell(request.plan), work, received.descriptors)
        self._channel.tell(Inspected(records.decode(ModelFacts, answer.value, "facts")))

    def _gate(self, received: Received) -> None:
        request: Gate = received.message
        rules, plan = request.rules, request.plan
        if rules.task == "build":
            self._gate_build(plan, rules, received)
            return
        train = rules.task == "train"
        if len(received.descriptors) != (1 if train else 0) or (train and rules.model is None):
            raise PeerError("cannot gate: the model received and its rules must come with a training, and only with one")
        names = (TRAIN_OUTPUT, TRAIN_METADATA) if train else (RESULT_OUTPUT,)
        bounds = (rules.output_bytes, rules.metadata_bytes) if train else (rules.metadata_bytes,)
        if self._scratch is None or self._scratch[0] != plan.scratch:
            raise PeerError("cannot gate: nothing was executed here with this scratch folder")
        if rules.model is not None and train:
            _size_of_input(received.descriptors[0])
            work: children.Work = functools.partial(gate.check_train, rules, rules.model)
        else:
            work = functools.partial(gate.check_result, rules)
        opening = children.Opening(
            grants=(Grant(".", "read"),),
            open=functools.partial(outputs.open_outputs, names, bounds),
            accept=functools.partial(outputs.check_all, names, bounds),
        )
        cell = dataclasses.replace(self._reader_cell(plan), folder=plan.scratch)
        answer = children.call(cell, work, received.descriptors, opening)
        try:
            facts = records.decode(GateFacts, answer.value, "facts")
            self._channel.tell(Gated(facts), answer.descriptors[:1] if train else ())
        finally:
            children.close_all(answer.descriptors)

    def _gate_build(self, plan: SandboxPlan, rules: GateRules, received: Received) -> None:
        """The seed model: the one file in the output folder, or beside it where an official project may put it."""
        if received.descriptors or rules.model is None:
            raise PeerError("cannot gate: the rules of a seed model must come with a build, and no descriptor")
        opening = functools.partial(outputs.open_only, (scratch.OUTPUT_FOLDER, "."), rules.output_bytes)
        answer = self._open(plan, opening, 1)
        weights = answer.descriptors[0]
        try:
            name = str(answer.value.get("name"))
            size = outputs.check(weights, name, rules.output_bytes)
            work = functools.partial(gate.check_build, rules, rules.model, size, name)
            checked = children.call(self._reader_cell(plan), work, [weights])
            self._channel.tell(Gated(records.decode(GateFacts, checked.value, "facts")), [weights])
        finally:
            os.close(weights)

    def _open(self, plan: SandboxPlan, work: children.Work, expected: int) -> children.Outcome:
        """What a child of the step's uid opens in the scratch folder of `plan`."""
        if self._scratch is None or self._scratch[0] != plan.scratch:
            raise PeerError("cannot gate: nothing was executed here with this scratch folder")
        answer = children.call(self._file_cell(self._scratch[1], plan.scratch, "read"), work, [])
        if len(answer.descriptors) != expected:
            for fd in answer.descriptors:
                os.close(fd)
            raise LaunchError("cannot take the outputs: the child that opens them answered with other descriptors")
        return answer

    def _probe(self, received: Received) -> None:
        plan = received.message.plan
        # A driver may load after the node starts: whether the devices are there is asked before each run, not now.
        order = self.order_of(plan, devices.present(plan.devices))
        with confine.stage("cgroup"):
            self._group.apply(plan.limits)
        found = probe.prove(order, self._run_of)
        self._channel.tell(Probed(found, self._filters.step_sha256, self._abi))

    def _reader_cell(self, plan: SandboxPlan) -> children.Cell:
        """A child that may compute on what it is given, and nothing else."""
        return children.Cell(
            identity=confine.identity_of(plan),
            program=self._filters.inspect,
            landlock_abi=self._abi,
            cpu_s=plan.limits.cpu_s,
            wall_clock_s=plan.limits.wall_clock_s,
            connection_fd=self._channel.fileno(),
            killer=self._killer,
        )

    def _execute(self, received: Received) -> None:
        request: Execute = received.message
        if len(received.descriptors) != 1 + request.terminal + request.person:
            raise PeerError("cannot execute: the log file and, with `terminal`, a pipe must come with the message")
        plan = request.plan
        run = self._prepared
        if run is None or run.plan != plan or request.person:
            self._drop_prepared()
            run = self._new_run(plan, received.descriptors[-1] if request.person else None)
        self._prepared = None
        try:
            run.prepare()
            with confine.stage("cgroup"):  # beside what the order has begun; the exec waits for our word
                self._group.apply(plan.limits)
        except BaseException:
            run.close()
            raise
        terminal = received.descriptors[1] if request.terminal else None
        result = run.run(received.descriptors[0], terminal, lambda pid: self._channel.tell(Started(pid)))
        self._channel.tell(Ended(result))

    def _prepare(self, received: Received) -> None:
        """Everything of a run but its exec.  What fails here is tried again, and told, when the run is to begin."""
        self._drop_prepared()
        try:
            run = self._new_run(received.message.plan)
            run.prepare()
        except ScaleoutError:
            return
        self._prepared = run

    def _new_run(self, plan: SandboxPlan, person: int | None = None) -> execute.Execution:
        return self._run_of(dataclasses.replace(self.order_of(plan), person=person))

    def _run_of(self, order: orders.Order) -> execute.Execution:
        plan, identity = order.plan, order.identity
        self._scratch = (plan.scratch, identity)
        renew = functools.partial(self._renew, plan, identity)
        if not self._unit and not scratch.make(plan.scratch, identity):
            renew()  # in a unit the main process looks: the launcher may not
        waiting = self._take_waiting(own_namespaces=order.own_namespaces)
        return execute.Execution(self._channel, order, waiting, self._group, self._filters, self._killer, renew)

    def _drop_prepared(self) -> None:
        run, self._prepared = self._prepared, None
        if run is not None:
            run.close()

    def order_of(self, plan: SandboxPlan, nodes: Sequence[str] | None = None) -> orders.Order:
        """What pid 1 needs to carry out `plan`; `nodes` None: all that its devices need."""
        self._check(plan)
        nodes = devices.nodes_of(plan.devices) if nodes is None else nodes
        identity = confine.identity_of(plan)
        own = plan.backend == "namespaces"
        if own:
            sight = view.beside_bare(plan, identity.uid, identity.gid, nodes)
        else:
            sight = view.of_unit(plan, nodes) if self._unit else view.of_host(plan, nodes)
        return orders.Order(
            plan=plan,
            nodes=tuple(nodes),
            view=sight,
            identity=identity,
            program=self._filters.step,
            landlock_abi=self._abi,
            watch_memory=self._group.memory is None,
            watch_processes=not self._group.holds_processes,
            own_namespaces=own,
            scratch=view.SCRATCH if own else plan.scratch,
            unit=self._unit,
        )

    def _check(self, plan: SandboxPlan) -> None:
        if (plan.backend == "systemd") != self._unit:
            raise KernelSupportError(
                f"cannot run the step: backend {plan.backend} was asked of an instance that "
                + ("is a unit of systemd" if self._unit else "is no unit of systemd"),
                hint="The installed service has the backend systemd; everywhere else it is namespaces.",
            )
        if plan.backend == "namespaces" and self._namespaces_error:
            raise self._namespaces_error
        if plan.seccomp_sha256 is not None and plan.seccomp_sha256 != self._filters.step_sha256:
            raise LaunchError(
                f"cannot run the step: the filter here has SHA-256 {self._filters.step_sha256}, the plan demands"
                f" {plan.seccomp_sha256}",
                hint="Restart the rooms so that all run the same package.",
            )

    def _renew(self, plan: SandboxPlan, identity: confine.Identity) -> None:
        children.call(self._file_cell(identity, plan.scratch), _renew, [])

    def _file_cell(self, identity: confine.Identity, folder: str, access: landlock.Access = "write") -> children.Cell:
        """A child that may open, with "write" also delete, what lies in `folder`."""
        return children.Cell(
            identity=identity,
            program=self._filters.step,
            landlock_abi=self._abi,
            cpu_s=120,
            wall_clock_s=180,
            grants=(Grant(".", access),),
            files=True,
            folder=folder,
            killer=self._killer,
        )

    def _clean_up(self) -> None:
        """Empties scratch when the connection has ended, and leaves the cgroup."""
        try:
            self._drop_prepared()
            waiting, self._waiting = self._waiting, None
            if waiting is not None:
                waiting.discard()
            if self._scratch is not None:
                path, identity = self._scratch
                children.call(self._file_cell(identity, path), _empty, [])
        finally:
            children.reap()
            self._group.leave()


def _size_of_input(fd: int) -> int:
    """Size of a file that the runner passed: regular, and read-only, so that no child could change it."""
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode) or fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY:
        raise PeerError("cannot take the model: the descriptor is no regular file open for reading only")
    return info.st_size


def _renew() -> tuple[dict[str, Any], tuple[int, ...]]:
    scratch.empty(".")
    scratch.make_output_folder(".")
    return {}, ()


def _empty() -> tuple[dict[str, Any], tuple[int, ...]]:
    scratch.empty(".")
    return {}, ()


def main() -> None:
    """Entry point; the connection is descriptor 3.  See start.py."""
    os.umask(0o077)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    channel = Channel(Connection.from_descriptor(CONNECTION_FD), "runner")
    os.set_inheritable(CONNECTION_FD, False)
    try:
        Launcher(channel, unit="--service" in sys.argv[1:]).serve()
    except ScaleoutError as exc:
        print(f"scaleoutd-step: {exc}", file=sys.stderr)
        sys.exit(exc.exit_status)
