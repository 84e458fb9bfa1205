# SPDX-License-Identifier: Apache-2.0
"""Policy and proven manifest and a task that was offered: may it run, and with what?  A pure function.

Nothing in an offer is trusted: it comes from the combiner through the agent.  What is granted comes from the policy and
the manifest alone; the offer only chooses among it.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from scaleoutd.core.clock import Now
from scaleoutd.core.devices import Device
from scaleoutd.core.manifest import Expected, Manifest, VerifiedManifest, check_dates
from scaleoutd.core.plan import Limits, ModelRules, Outcome, Task
from scaleoutd.core.policy import Budget, DataSetRule, Egress, EnvironmentRule, Policy
from scaleoutd.core.project import importer_refusal
from scaleoutd.core.settings import check_settings
from scaleoutd.errors import PolicyDeniedError, VerificationError


class Offer(Protocol):
    """What of a TaskOffer matters here."""

    @property
    def task(self) -> Task: ...

    @property
    def session_id(self) -> str: ...

    @property
    def combiner(self) -> str: ...

    @property
    def settings(self) -> str: ...


@dataclass(frozen=True)
class RunsSoFar:
    """Runs on record in the last 24 hours and in this session."""

    day: int = 0
    session: int = 0


@dataclass(frozen=True)
class Grant:
    """All that the next stages need to know of policy and manifest.

    `environment` and `data_sets` are the policy's rules with the digest that must be found: the policy's, or the manifest's
    where the policy has none.
    """

    task: Task
    command: tuple[str, ...]
    project: str
    manifest_sha256: str
    manifest_version: int
    policy_sha256: str
    backend: str
    outcomes: tuple[Outcome, ...]
    limits: Limits
    model: ModelRules
    environment_id: str
    environment: EnvironmentRule
    data_sets: Mapping[str, DataSetRule]
    settings: str
    egress: Egress
    min_num_examples: int
    startup_file: str | None = None
    startup: tuple[str, ...] = ()  # to be run once before the first task
    devices: tuple[Device, ...] = ()
    budget_left: int = 0  # runs that may follow this one, in this day and session


@dataclass(frozen=True)
class BuildGrant:
    """What the seed model may be built with.  No data set and no model: a seed that depends on data would carry it away."""

    command: tuple[str, ...]
    files: frozenset[str]  # of the project: words of `command` that name one
    project: str
    manifest_sha256: str
    backend: str
    outcomes: tuple[Outcome, ...]
    limits: Limits
    model: ModelRules
    environment: EnvironmentRule
    devices: tuple[Device, ...] = ()


def authorize(policy: Policy, verified: VerifiedManifest, offer: Offer, now: Now, runs: RunsSoFar) -> Grant:
    """PolicyDeniedError or VerificationError with its own code for each thing that is not allowed."""
    manifest = verified.manifest
    policy_sha256 = policy.digest()
    _check_binding(policy, policy_sha256, verified)
    check_dates(manifest, now)
    _check_task(policy, manifest, offer.task)
    _check_budget(policy, offer, runs)
    settings = check_settings(offer.settings, policy.settings_schema)
    environment_id, environment = _environment(policy, manifest)
    return Grant(
        task=offer.task,
        command=manifest.steps.get(offer.task, ()),
        project=manifest.project,
        manifest_sha256=verified.sha256,
        manifest_version=manifest.version,
        policy_sha256=policy_sha256,
        backend=policy.backend,
        outcomes=policy.outcomes,
        devices=policy.devices,
        limits=policy.limits.of_run(),
        model=_model_rules(policy),
        environment_id=environment_id,
        environment=environment,
        data_sets=_data_sets(policy, manifest),
        settings=settings,
        egress=policy.egress,
        min_num_examples=policy.budget.min_num_examples,
        budget_left=min(policy.budget.runs_per_day - runs.day, policy.budget.runs_per_session - runs.session) - 1,
        startup_file=manifest.startup_file,
        startup=manifest.steps.get("startup", ()),
    )


def authorize_build(policy: Policy, verified: VerifiedManifest, now: Now) -> BuildGrant:
    """As `authorize`, for the command that makes the seed model.  It is no task: no combiner, session or budget is asked."""
    manifest = verified.manifest
    _check_binding(policy, policy.digest(), verified)
    check_dates(manifest, now)
    command = manifest.steps.get("build")
    if command is None:
        raise PolicyDeniedError(
            f"cannot build a seed model: project {manifest.project} has {', '.join(sorted(manifest.steps)) or 'no step'}",
            code="task-type-denied",
            hint="Add `build: {command: python build.py}` to entry_points in scaleout.yaml, then sign again.",
        )
    return BuildGrant(
        command=command,
        files=frozenset(command) & {entry.path for entry in manifest.files},
        project=manifest.project,
        manifest_sha256=verified.sha256,
        backend=policy.backend,
        outcomes=policy.outcomes,
        devices=policy.devices,
        limits=policy.limits.of_run(),
        model=_model_rules(policy),
        environment=_environment(policy, manifest)[1],
    )


def _model_rules(policy: Policy) -> ModelRules:
    """A model may be as large packed as unpacked: what a step reads is what counts, and nobody packs weights a hundredfold."""
    most = policy.limits.model_bytes
    return ModelRules(formats=policy.model_formats, max_bytes=most, max_inflated_bytes=most)


def _check_binding(policy: Policy, policy_sha256: str, verified: VerifiedManifest) -> None:
    manifest = verified.manifest
    if manifest.project != policy.project.name:
        raise VerificationError(
            f"cannot run project {manifest.project}: expected project {policy.project.name}, as the policy says",
            code="project-mismatch",
            hint="Install the project that the policy names.",
        )
    if manifest.policy_sha256 is not None and manifest.policy_sha256 != policy_sha256:
        raise VerificationError(
            f"cannot run {manifest.project}: it was signed for policy {manifest.policy_sha256}, found {policy_sha256}",
            code="policy-mismatch",
            hint="Install the policy that was signed, or sign again with `scaleoutctl sign --policy`.",
        )
    if verified.development and not policy.development:
        raise VerificationError(
            f"cannot run {manifest.project}: it was signed with a development key, and this node has a policy",
            code="trust-root-invalid",
            hint="Sign it with a key of the node's trust root: `scaleoutctl sign`.",
        )


def _check_task(policy: Policy, manifest: Manifest, task: Task) -> None:
    if task not in policy.tasks:
        raise PolicyDeniedError(
            f"cannot run {task}: the policy allows {', '.join(policy.tasks) or 'no task'}",
            code="task-type-denied",
            hint="Add it to tasks: in the policy.",
        )
    if task not in manifest.steps and manifest.startup_file is not None:
        raise importer_refusal(manifest.startup_file)
    if task not in manifest.steps:
        raise PolicyDeniedError(
            f"cannot run {task}: project {manifest.project} has {', '.join(sorted(manifest.steps)) or 'no step'}",
            code="task-type-denied",
            hint="Add the step to entry_points in scaleout.yaml, then sign again.",
        )


def _check_budget(policy: Policy, offer: Offer, runs: RunsSoFar) -> None:
    budget = policy.budget
    for what, found, patterns in (("combiner", offer.combiner, budget.combiners), ("session", offer.session_id, budget.sessions)):
        if not _matches(found, patterns):
            raise PolicyDeniedError(
                f"cannot run for {what} {found[:80]!r}: the policy allows {', '.join(patterns) or 'none'}",
                code="session-denied",
                hint=f"Add it to budget.{what}s in the policy.",
            )
    for what, used, allowed in (("day", runs.day, budget.runs_per_day), ("session", runs.session, budget.runs_per_session)):
        if used >= allowed:
            raise PolicyDeniedError(
                f"cannot run again: {used} runs this {what}, the budget is {allowed}",
                code="budget-exhausted",
                hint=f"Raise budget.runs_per_{what} in the policy, if that many is right.",
            )


def is_allowed(budget: Budget, session_id: str, combiner: str) -> bool:
    """Whether the patterns let this session of this combiner ask at all."""
    return _matches(combiner, budget.combiners) and _matches(session_id, budget.sessions)


def _matches(text: str, patterns: Sequence[str]) -> bool:
    # Only `*` is special: brackets and question marks of a host name or id mean themselves.
    return any(fnmatch.fnmatchcase(text, pattern.replace("[", "[[]").replace("?", "[?]")) for pattern in patterns)


def _environment(policy: Policy, manifest: Manifest) -> tuple[str, EnvironmentRule]:
    wanted = manifest.environments or {name: Expected() for name in policy.environments}
    usable = sorted(set(wanted) & set(policy.environments))
    if len(usable) != 1:
        raise VerificationError(
            f"cannot choose an environment: the project expects {', '.join(sorted(manifest.environments)) or 'any'}, the policy"
            f" has {', '.join(sorted(policy.environments)) or 'none'}; expected exactly one in common",
            code="environment-mismatch",
            hint="Name one with `scaleoutctl sign --environment ID`, or under environments: in the policy.",
        )
    name = usable[0]
    rule = policy.environments[name]
    return name, EnvironmentRule(rule.python, rule.binds, _one_digest(name, rule, wanted[name], "environment-mismatch"))


def _data_sets(policy: Policy, manifest: Manifest) -> dict[str, DataSetRule]:
    """Those that the project names; in development, where one person is both, those of the command line."""
    expected = dict(manifest.data_sets)
    if manifest.development and policy.development:
        expected = {name: Expected() for name in policy.data_sets} | expected
    return {name: _data_set(policy, name, item) for name, item in sorted(expected.items())}


def _data_set(policy: Policy, name: str, expected: Expected) -> DataSetRule:
    rule = policy.data_sets.get(name)
    if rule is None:
        raise VerificationError(
            f"cannot use data set {name}: the project expects it, the policy has {', '.join(sorted(policy.data_sets)) or 'none'}",
            code="data-set-mismatch",
            hint=f"Name it under data_sets: in the policy, or start with --data {name}=PATH.",
        )
    digest = _one_digest(name, rule, expected, "data-set-mismatch")
    if digest is not None and rule.mode == "none":
        raise VerificationError(
            f"cannot use data set {name}: the manifest expects the digest {digest}, the policy's mode is none",
            code="data-set-mismatch",
            hint="Set its mode to listing or full, as it was signed.",
        )
    return DataSetRule(rule.path, rule.mode, digest)


def _one_digest(name: str, rule: EnvironmentRule | DataSetRule, expected: Expected, code: str) -> str | None:
    if rule.digest is not None and expected.sha256 is not None and rule.digest != expected.sha256:
        raise VerificationError(
            f"cannot use {name}: the manifest expects the digest {expected.sha256}, the policy has {rule.digest}",
            code=code,
            hint="Bring policy and manifest together: one of them is of another version.",
        )
    return rule.digest if rule.digest is not None else expected.sha256
