# SPDX-License-Identifier: Apache-2.0
"""What a step will see and may do, as one value, before anything runs.

Made by the same pure planner that the runner uses (runner.planner, core.grant, core.policy) and the same view that the
launcher builds (step.view); nothing is started, written or signed.  explain.py says it in words.

A project that would be refused is explained all the same where that is possible: `refusals` says so and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from scaleoutd.cli.measures import size
from scaleoutd.core.clock import Now
from scaleoutd.core.devices import lacking
from scaleoutd.core.grant import Grant, RunsSoFar, authorize
from scaleoutd.core.manifest import VerifiedManifest
from scaleoutd.core.plan import OUTCOMES, SandboxPlan, Task
from scaleoutd.core.policy import Policy
from scaleoutd.core.strictjson import Json
from scaleoutd.errors import ScaleoutError
from scaleoutd.runner.environments import ResolvedEnvironment
from scaleoutd.runner.planner import MODEL_IN, OUTPUTS, Place, inputs_of, make_plan
from scaleoutd.step import devices, outcomes, view

SLOT = 0
BY_MODE = {
    "none": "its content is not proven",
    "listing": "names and sizes are proven",
    "full": "every byte is proven",
}


@dataclass(frozen=True)
class HostFacts:
    """What of the host decides who provides an outcome.  `filter_calls`: the calls that are refused and counted."""

    root: bool
    landlock_abi: int
    filter_sha256: str
    filter_instructions: int
    filter_calls: tuple[str, ...]


@dataclass(frozen=True)
class Seen:
    """A path of the view: where, what it is of the host, what the step may do with it, and why it is there."""

    path: str
    source: str
    access: Literal["read", "read and execute", "write", "device"]
    why: str


@dataclass(frozen=True)
class Held:
    """An outcome: whether the policy demands it, and who would provide it on this host."""

    name: str
    demanded: bool
    providers: tuple[str, ...]


@dataclass(frozen=True)
class Explanation:
    """All of it; `as_json` is the stable form (docs/command-line.md)."""

    task: str
    project: Mapping[str, Any]
    policy: Mapping[str, Any]
    refusals: tuple[Mapping[str, str], ...]
    run: Mapping[str, Any] | None
    sees: tuple[Seen, ...]
    outcomes: tuple[Held, ...]
    system_calls: Mapping[str, Any]
    limits: Mapping[str, int]
    model: Mapping[str, Any]
    leaves: Mapping[str, Any]
    budget: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Offer:
    """The task that is asked about: of a combiner and session that the policy allows, so that the rest can be judged."""

    task: Task
    session_id: str
    combiner: str
    settings: str = ""


@dataclass(frozen=True)
class Subject:
    """What is explained: one task of one project under one policy."""

    policy: Policy
    verified: VerifiedManifest
    task: Task
    proven: bool
    now: Now


def offer_for(policy: Policy, task: Task) -> _Offer:
    """An offer that passes the policy's patterns, if any can: a pattern matches itself."""
    return _Offer(task, next(iter(policy.budget.sessions), ""), next(iter(policy.budget.combiners), ""))


def grant_for(subject: Subject) -> Grant | ScaleoutError:
    """The grant such an offer would get, or the error it would be refused with."""
    try:
        return authorize(subject.policy, subject.verified, offer_for(subject.policy, subject.task), subject.now, RunsSoFar())
    except ScaleoutError as exc:
        return exc


def plan_of(grant: Grant, environment: ResolvedEnvironment, state: str) -> SandboxPlan:
    """The plan of the first run, with the runner's folders below `state`."""
    place = Place(
        run="RUN",
        backend="namespaces" if grant.backend == "auto" else grant.backend,  # type: ignore[arg-type]  # no "auto" is left
        slot=SLOT,
        snapshot=f"{state}/runner/store/{grant.manifest_sha256}",
        model_folder=f"{state}/runner/in/MODEL",
        scratch=f"{state}/runner/scratch/{SLOT}",
    )
    return make_plan(inputs_of(grant, environment, place))


def explanation_of(
    subject: Subject, plan: SandboxPlan | None, grant: Grant | None, refusals: tuple[ScaleoutError, ...], host: HostFacts
) -> Explanation:
    """Pure: the same values give the same explanation."""
    policy, manifest = subject.policy, subject.verified.manifest
    namespaces = policy.backend in ("auto", "namespaces")
    return Explanation(
        task=subject.task,
        project={
            "name": manifest.project,
            "version": manifest.version,
            "manifest_sha256": subject.verified.sha256,
            "proven": subject.proven,
            "development": manifest.development,
            "files": len(manifest.files),
            "size_bytes": manifest.size_bytes,
            "expires_ms": manifest.expires_ms,
        },
        policy={
            "sha256": policy.digest(),
            "development": policy.development,
            "tasks": list(policy.tasks),
            "client_certificate": policy.client_certificate,
        },
        refusals=tuple({"code": error.code, "message": error.message, "hint": error.hint} for error in refusals),
        run=_run(plan, grant),
        sees=_sees(plan, grant) if plan and grant else (),
        outcomes=tuple(
            Held(
                name,
                name in policy.outcomes,
                outcomes.providers(name, own_namespaces=namespaces, own_uid=host.root, landlock_abi=host.landlock_abi),
            )
            for name in OUTCOMES
        ),
        system_calls={
            "filter_sha256": host.filter_sha256,
            "instructions": host.filter_instructions,
            "refused_and_counted": list(host.filter_calls),
        },
        limits=asdict(policy.limits),
        model={"formats": list(policy.model_formats), "max_bytes": policy.limits.model_bytes},
        leaves=_leaves(policy, subject.task),
        budget=asdict(policy.budget),
    )


def _run(plan: SandboxPlan | None, grant: Grant | None) -> dict[str, Any] | None:
    if plan is None or grant is None:
        return None
    return {
        "command": list(plan.command),
        "folder": plan.cwd,
        "startup": list(grant.startup),
        "backend": plan.backend,
        "environment": grant.environment_id,
        "environment_sha256": grant.environment.digest,
        "interpreter": grant.environment.python,
        "devices": list(plan.devices),
        "variables": dict(plan.environment),
        "data_sets": {
            name: {"path": rule.path, "mode": rule.mode, "sha256": rule.digest} for name, rule in grant.data_sets.items()
        },
    }


def _sees(plan: SandboxPlan, grant: Grant) -> tuple[Seen, ...]:
    """Every path, in the order of the view; for the backend inner the host's own paths."""
    granted = _granted(plan)
    if plan.backend == "inner":
        binds = [Seen(bind.source, bind.source, _access(bind.executable), _why(bind.target, grant)) for bind in plan.binds]
        plain = [Seen(path, path, "device", "a plain device that carries no data of the host") for path in view.DEVICES]
        return (*binds, *plain, *granted, Seen(plan.scratch, plan.scratch, "write", "the run's own folder"))
    sight = view.of_plan(plan, 0, 0)
    seen = [Seen(bind.target, bind.source, _access(bind.executable), _why(bind.target, grant)) for bind in plan.binds]
    seen.append(Seen(view.SCRATCH, plan.scratch, "write", "the run's own folder, emptied before and after; results go there"))
    for tmpfs in sight.tmpfs:
        seen.append(Seen(tmpfs.target, "", "write", f"the run's own, in memory, at most {size(tmpfs.size_bytes)}"))
    for file in sight.files:
        seen.append(Seen(file.path, "", "read", "made for the run; holds nothing of the host"))
    for path, target in sight.links:
        seen.append(Seen(path, target, "read", "a link"))
    for attach in sight.attach:
        if attach.target in view.DEVICES:
            seen.append(Seen(attach.target, attach.source, "device", "a plain device that carries no data of the host"))
        elif attach.optional:
            seen.append(Seen(attach.target, attach.source, "read", "how many processors there are"))
    seen.append(Seen("/proc", "", "read", "the run's own processes only"))
    return (*seen, *granted)


def _granted(plan: SandboxPlan) -> list[Seen]:
    """Nodes of the policy's devices; of a word whose nodes are not all there, that it is so: such a run is refused."""
    seen = []
    for word in plan.devices:
        nodes = devices.present((word,))
        seen += [Seen(node, node, "device", f"devices: {word}, a driver of this computer") for node in nodes]
        names = [node.removeprefix("/dev/") for node in nodes]
        seen += [Seen(path, "", "device", f"devices: {word}, NOT HERE: no run") for path in lacking((word,), names)]
    return seen


def _access(executable: bool) -> Literal["read", "read and execute"]:
    return "read and execute" if executable else "read"


def _why(target: str, grant: Grant) -> str:
    if target == "/project":
        return f"the signed project {grant.project}, as it was proven"
    if target == "/in":
        return f"the model that came ({MODEL_IN}) and its settings"
    if target.startswith("/data/"):
        rule = grant.data_sets.get(target.removeprefix("/data/"))
        return f"data set {target.removeprefix('/data/')}: {BY_MODE[rule.mode if rule else 'none']}"
    return f"environment {grant.environment_id}: interpreter, libraries, system programs"


def _leaves(policy: Policy, task: Task) -> dict[str, Any]:
    egress = policy.egress
    return {
        "output": OUTPUTS[task],
        "update": task == "train",
        "max_update_bytes": egress.max_update_bytes,
        "metrics": list(egress.metrics),
        "metadata": list(egress.metadata),
        "num_examples": task == "train",
        "telemetry": egress.telemetry,
        "attributes": list(egress.attributes),
        "failure_detail": egress.failure_detail,
        "ranges": [asdict(item) for item in egress.ranges],
        "same_form": egress.same_form,
        "finite": egress.finite,
        "max_update_norm": egress.max_update_norm,
    }


def differences(old: Mapping[str, Json], new: Mapping[str, Json]) -> list[tuple[str, Json, Json]]:
    """(dotted key, old, new) of every leaf that is not the same; None where there is none."""
    before, after = _flat(old), _flat(new)
    keys = sorted(before.keys() | after.keys())
    return [(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]


def _flat(value: Json, path: str = "") -> dict[str, Json]:
    if isinstance(value, Mapping):
        found: dict[str, Json] = {}
        for key, item in value.items():
            found.update(_flat(item, f"{path}.{key}" if path else str(key)))
        return found
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        named = {str(item.get("path") or item.get("name") or item.get("code") or index): item for index, item in enumerate(value)}
        return _flat(named, path)
    return {path: list(value) if isinstance(value, tuple) else value}
