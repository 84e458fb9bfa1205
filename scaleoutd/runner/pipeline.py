# SPDX-License-Identifier: Apache-2.0
"""The way of a task through the runner (DESIGN.md section 2), stage by stage.

Each stage takes the frozen values of those before it and returns its own.  A stage that fails raises; `perform` names the
stage, puts the refusal on record and ends the run.  Nothing is executed before stage 7 is durable, and nothing leaves before
stage 10 is.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scaleoutd.core import catalogue, strictjson
from scaleoutd.core.clock import Now
from scaleoutd.core.grant import Grant, authorize
from scaleoutd.core.plan import GateFacts, GateRules, ModelFacts, SandboxPlan, StepResult
from scaleoutd.core.policy import Policy
from scaleoutd.durable import storage_errors
from scaleoutd.errors import LedgerError, OutputError, PeerError, ScaleoutError
from scaleoutd.ipc.messages import Released
from scaleoutd.runner import budget, egress, planner
from scaleoutd.runner.environments import ResolvedEnvironment, check_data_set, resolve_environment
from scaleoutd.runner.execution import failure_of, held, place_of, run_plan
from scaleoutd.runner.instances import Instance
from scaleoutd.runner.link import Link
from scaleoutd.runner.outbox import Outgoing
from scaleoutd.runner.policyfile import read_policy
from scaleoutd.runner.receive import IncomingModel, ReceivedModel, check_told
from scaleoutd.runner.room import Room
from scaleoutd.runner.rootfile import accept_root
from scaleoutd.runner.runs import UNRECORDED, Run
from scaleoutd.runner.space import largest_model
from scaleoutd.runner.startup import start_up
from scaleoutd.runner.store import Snapshot, take_snapshot
from scaleoutd.runner.verify import Proven, prove

# The finding that goes on record when a stage refuses; other stages have only `run-failed`.
REFUSALS = {
    "verify": "manifest-refused",
    "snapshot": "manifest-refused",
    "authorize": "task-denied",
    "receive": "model-refused",
    "inspect": "model-refused",
    "gate": "output-refused",
}
KINDS = {"train": "update", "validate": "validation", "predict": "prediction"}


@dataclass
class Task:
    """A task on its way: who asked, its entry in the run-once table, and the stage it is in."""

    room: Room
    run: Run
    link: Link
    now: Now
    stage: str = "verify"
    pending: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    cleanup: ExitStack = field(default_factory=ExitStack)
    model: ExitStack = field(default_factory=ExitStack)  # what is of the model received; closed after the gate

    @property
    def context(self) -> dict[str, Any]:
        """What every event of this task carries."""
        offer = self.run.offer
        return {
            "run": self.run.name,
            "correlation_id": offer.correlation_id,
            "session_id": offer.session_id,
            "round_id": offer.round_id,
            "task": offer.task,
            "model_id": offer.model_id,
        }

    def note(self, name: str, **body: Any) -> None:
        """Something for the trail that need not be durable before the next barrier."""
        self.pending.append((name, {**self.context, **body}))

    def record(self, name: str, act: Callable[[], object] = lambda: None, /, **body: Any) -> None:
        """Makes everything noted, and this, durable with one barrier; `act` is done while the ledger waits for its disk."""
        self.note(name, **body)
        self.room.ledger.record_all(self.pending, act)
        self.pending.clear()


def perform(task: Task) -> tuple[Released, Outgoing]:
    """Takes a task from its offer to what is released for it."""
    with refusals_on_record(task), task.cleanup:
        task.room.enter(task.run, "accepted")
        policy = read_policy(task.room.policy_file)
        proven = verify(task, policy)  # 1
        grant, environment = grant_task(task, policy, proven)  # 2
        snapshot = snapshot_project(task, policy, proven)  # 3
        folder = make_model_folder(task, grant)
        with task.room.instances.take(grant.policy_sha256) as instance:
            # 6 comes before 4 and 5: the sandbox is built while the model arrives, and the inspector runs under its limits.
            plan = make_plan(task, grant, environment, snapshot, folder, instance.slot)
            instance.prepare(plan)
            model = receive(task, grant, folder)  # 4
            start_up(task, grant, environment, snapshot)
            facts = inspect(task, grant, instance, plan, model)  # 5
            record_about_to_run(task, grant, plan, model)  # 7
            result = execute(task, instance, plan)  # 8
            outputs = gate(task, grant, instance, plan, model)  # 9
            task.model.close()  # or the disk would hold the model three times
            outgoing = put_in_outbox(task, facts, result, outputs)
        return release(task, outgoing), outgoing  # 10


@contextmanager
def refusals_on_record(task: Task) -> Iterator[None]:
    """Ends the run on record when a stage refuses.  Without a ledger there is no record, so the run stays as it is."""
    try:
        yield
    except (LedgerError, PeerError) as exc:
        # Nothing was decided about the task: its agent is gone, or nothing may happen without a record.  A run that had
        # begun is found as interrupted when it is offered again; one that could not be recorded has not begun.
        if isinstance(exc, LedgerError) and (task.stage, task.run.state) == ("record", "about-to-run"):
            task.room.enter(task.run, "interrupted", {"found": UNRECORDED})
        raise
    except ScaleoutError as exc:
        body = {"code": exc.code, "message": exc.message, "hint": exc.hint}
        if task.stage in REFUSALS:
            named = catalogue.lookup(REFUSALS[task.stage])
            found = {key: value for key, value in exc.facts.items() if named.kind_of(key) == "text"}
            task.note(named.name, **{**found, **body})
        task.record("run-failed", **body, stage=task.stage)
        task.room.enter(task.run, "failed", {"code": exc.code, "message": exc.message[:1024], "hint": exc.hint[:1024]})
        raise


def verify(task: Task, policy: Policy) -> Proven:
    """1: the project is exactly what enough trusted people signed, in date, and no older than any accepted before."""
    task.stage = "verify"
    room = task.room
    if policy.development and room.ask_to_sign is not None:
        room.ask_to_sign()  # the parent has the key; it refuses what was signed for production
    floors = room.floors()
    root = accept_root(task, policy, floors)
    proven = prove(Path(policy.project.path), root, policy, floors, task.now)
    room.accept(proven.manifest, task.now)
    manifest = proven.manifest.manifest
    task.note(
        "manifest-verified",
        project=manifest.project,
        manifest_version=manifest.version,
        manifest_sha256=proven.manifest.sha256,
        signers=[root.key_name(keyid) for keyid in proven.manifest.signers],
        root_version=root.version,
        trust_root_sha256=root.digest(),
        files=len(manifest.files),
    )
    return proven


def grant_task(task: Task, policy: Policy, proven: Proven) -> tuple[Grant, ResolvedEnvironment]:
    """2: the policy allows this task, for this combiner and session, with these settings, within the budget; environment
    and data sets are those that policy and manifest expect."""
    task.stage = "authorize"
    room, offer = task.room, task.run.offer
    budget.check_time(policy, task.now)
    runs = budget.runs_so_far(room.runs, offer.session_id, task.now, budget.Uptime.now())
    grant = authorize(policy, proven.manifest, offer, task.now, runs)
    environment = resolve_environment(grant.environment)
    for name, rule in grant.data_sets.items():
        check_data_set(name, rule)
    task.note(
        "task-authorized",
        policy_sha256=grant.policy_sha256,
        manifest_sha256=grant.manifest_sha256,
        budget_left=grant.budget_left,
    )
    return grant, environment


def snapshot_project(task: Task, policy: Policy, proven: Proven) -> Snapshot:
    """3: from here on the run sees bytes of the content store only."""
    task.stage = "snapshot"
    return take_snapshot(proven, task.room.state / "store", read_always=policy.project.reverify == "run")


def make_model_folder(task: Task, grant: Grant) -> Path:
    """Where the step will find the model; with the settings in it, and without the model."""
    task.stage = "receive"
    folder = task.room.state / "in" / secrets.token_hex(12)
    task.cleanup.callback(task.model.close)
    with storage_errors("make the folder of a model"):
        folder.mkdir(mode=0o755)
        folder.chmod(0o755)
        task.model.callback(shutil.rmtree, folder, ignore_errors=True)
        settings = folder / "model.npz-metadata"
        settings.write_text(grant.settings or "{}", encoding="utf-8")
        settings.chmod(0o444)
    return folder


def receive(task: Task, grant: Grant, folder: Path) -> ReceivedModel:
    """4: the model, streamed by the agent into a file of ours, out of its hands, hashed, and linked for the step."""
    room, session = task.room, task.run.offer.session_id
    space = largest_model(room.state, room.scratch, room.last_model[1] if room.last_model[0] == session else 0)
    max_bytes = min(grant.model.max_bytes, space)
    incoming = IncomingModel(room.state / "in")
    task.model.callback(incoming.close)
    is_space = space < grant.model.max_bytes
    writer = incoming.take_writer()
    told = task.link.receive_model(task.run.name, max_bytes, writer, max_is_space=is_space, beside=task.run.settle)
    model = incoming.seal(max_bytes)
    check_told(model, told.size_bytes, told.sha256)
    room.last_model = (session, model.size_bytes)
    incoming.link(folder / "model.npz")
    task.note("model-received", sha256=model.sha256, size_bytes=model.size_bytes)
    return model


def make_plan(
    task: Task, grant: Grant, environment: ResolvedEnvironment, snapshot: Snapshot, folder: Path, slot: int
) -> SandboxPlan:
    """6: a pure function of what was proven and granted."""
    given = planner.inputs_of(grant, environment, place_of(task, environment, snapshot, folder, slot))
    return planner.make_plan(held(task, given))


def inspect(task: Task, grant: Grant, instance: Instance, plan: SandboxPlan, model: ReceivedModel) -> ModelFacts:
    """5: a confined child reads the model; we get a few facts and never its bytes."""
    task.stage = "inspect"
    task.link.stage("inspect")
    facts = instance.inspect(plan, grant.model, model.descriptor)
    task.note(
        "model-inspected",
        format=facts.format,
        arrays=facts.arrays,
        parameters=facts.parameters,
        arrays_sha256=facts.arrays_sha256,
        container=facts.container,
        helper_type=facts.helper_type,
        model_sha256=model.sha256,
    )
    return facts


def record_about_to_run(task: Task, grant: Grant, plan: SandboxPlan, model: ReceivedModel) -> None:
    """7: durable before anything runs: which code, on which model, in which environment, under which policy."""
    task.stage = "record"
    attempt = task.run.attempts + 1
    # Written before the ledger hears of it, durable when that has answered: the two wait for their disks together.
    task.room.enter(task.run, "about-to-run", {"attempt": attempt, **budget.Uptime.now().fields()}, sync=False)
    task.record(
        "run-about-to-start",
        task.run.sync,
        attempt=attempt,
        project=grant.project,
        manifest_sha256=grant.manifest_sha256,
        manifest_version=grant.manifest_version,
        model_sha256=model.sha256,
        environment=grant.environment_id,
        environment_sha256=grant.environment.digest,
        data_sets=sorted(grant.data_sets),
        policy_sha256=grant.policy_sha256,
        command=list(plan.command),
        limits=egress.limit_counts(grant.limits),
        backend=plan.backend,
        slot=plan.slot,
        outcomes=list(plan.outcomes),
        devices=list(plan.devices),
    )


def execute(task: Task, instance: Instance, plan: SandboxPlan) -> StepResult:
    """8: the step runs; its end, its use and what was in force go on record, whatever it was."""
    task.stage = "execute"
    task.link.stage("execute")
    result = run_plan(task, instance, plan)
    task.note("run-ended", **egress.result_body(result))
    error = failure_of(result, plan)
    if error is not None:
        raise error
    return result


@dataclass(frozen=True)
class Outputs:
    """What may leave: the body, the weights as a read-only descriptor (train), and the keys that are withheld."""

    body: bytes
    weights: int | None
    withheld: tuple[str, ...]


def gate(task: Task, grant: Grant, instance: Instance, plan: SandboxPlan, model: ReceivedModel) -> Outputs:
    """9: the outputs, checked in a confined child; then the egress rules say what of them may leave."""
    task.stage = "gate"
    task.link.stage("gate")
    training = grant.task == "train"
    rules = GateRules(
        task=grant.task,
        output_bytes=min(grant.limits.output_bytes, grant.egress.max_update_bytes),
        model=grant.model if training else None,
        same_form=grant.egress.same_form,
        finite=grant.egress.finite,
        max_update_norm=grant.egress.max_update_norm,
    )
    facts, weights = instance.gate(plan, rules, model.descriptor if training else None)
    if weights is not None:
        task.cleanup.callback(os.close, weights)
    if facts.model is not None and facts.model.container != "none":
        raise OutputError(
            "cannot take the update: the step wrote a container, expected raw weights",
            hint="Write the weights themselves to the second argument, as the contract of `train` says.",
        )
    body, withheld = egress.filter_body(grant, _metadata(facts))
    task.note("outputs-accepted", size_bytes=facts.size_bytes, withheld=list(withheld), keys=sorted(json.loads(body)))
    return Outputs(body, weights, withheld)


def _metadata(facts: GateFacts) -> dict[str, Any]:
    value = strictjson.parse(facts.metadata.encode(), max_bytes=64 * 1024, allow_floats=True, what="the step's metadata")
    if not isinstance(value, dict):
        raise OutputError("cannot take the step's metadata: it is not a JSON object", code="metrics-invalid")
    return value


def put_in_outbox(task: Task, facts: ModelFacts, result: StepResult, outputs: Outputs) -> Outgoing:
    """The exact bytes that will leave, durable: from here on nothing is lost."""
    update_id = str(uuid.uuid4()) if outputs.weights is not None else ""
    helper = facts.helper_type or "numpyhelper"
    outgoing = task.room.outbox.put(task.run.name, outputs.body, outputs.weights, model_id=update_id, helper_type=helper)
    fields = {
        "sha256": outgoing.sha256,
        "size_bytes": outgoing.size_bytes,
        "model_update_id": update_id,
        "exec_ms": result.wall_ms,
        "withheld": list(outputs.withheld),
    }
    task.room.enter(task.run, "computed", fields)
    return outgoing


def release(task: Task, outgoing: Outgoing) -> Released:
    """10: on record, with digest, size and destination, before the descriptor leaves the runner."""
    task.stage = "release"
    offer = task.run.offer
    computed = next(line.fields for line in reversed(task.run.history) if line.state == "computed")
    update_id = str(computed["model_update_id"])
    withheld = tuple(computed["withheld"])
    what = {"sha256": outgoing.sha256, "size_bytes": outgoing.size_bytes, "model_update_id": update_id or None}
    body = outgoing.body.decode()
    task.note("computed", kind=KINDS[offer.task], **what)
    task.record(
        "release", kind=KINDS[offer.task], **what, destination=offer.combiner, keys=sorted(json.loads(body)), withheld=withheld
    )
    if task.run.state != "released":
        task.room.enter(task.run, "released")
    return Released(
        run=task.run.name,
        task=offer.task,
        body=body,
        size_bytes=outgoing.size_bytes,
        sha256=outgoing.sha256,
        exec_ms=int(computed["exec_ms"]),
        model_update_id=update_id,
        withheld=withheld,
    )
