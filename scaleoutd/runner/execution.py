# SPDX-License-Identifier: Apache-2.0
"""One plan carried out by an instance, for a task: where it happens, its run, and what its end means."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from scaleoutd.core.plan import SandboxPlan, StepResult
from scaleoutd.errors import ScaleoutError, from_code
from scaleoutd.runner import egress, planner
from scaleoutd.runner.computelock import computing
from scaleoutd.runner.environments import ResolvedEnvironment, link_interpreter
from scaleoutd.runner.instances import GRACE_S, Instance
from scaleoutd.runner.sharing import share_with_slot, unshare
from scaleoutd.runner.store import Snapshot

if TYPE_CHECKING:
    from scaleoutd.runner.pipeline import Task


def place_of(task: Task, environment: ResolvedEnvironment, snapshot: Snapshot, folder: Path, slot: int) -> planner.Place:
    """Where the run happens, with what it needs there made ready for the slot."""
    if task.room.backend != "namespaces":
        link_interpreter(folder, environment.python)
    if task.room.backend == "systemd":
        share_with_slot(folder, slot)
        share_with_slot(snapshot.path, slot)
        task.cleanup.callback(unshare, snapshot.path)
    return planner.Place(
        run=task.run.name,
        backend=task.room.backend,
        slot=slot,
        snapshot=task.room.seen_by_step(snapshot.path),
        model_folder=task.room.seen_by_step(folder),
        scratch=task.room.seen_by_step(task.room.scratch / str(slot)),
    )


def held(task: Task, given: planner.PlanInputs) -> planner.PlanInputs:
    """Without the outcomes that a development node runs without."""
    return replace(given, outcomes=tuple(name for name in given.outcomes if name not in task.room.left_open))


def run_plan(task: Task, instance: Instance, plan: SandboxPlan) -> StepResult:
    with task.room.output_file(task.run.name) as log, computing(task.room.compute_lock, task.link):
        instance.execute(plan, log, task.room.terminal)
        task.link.watch(instance)
        result = instance.ended(plan.limits.wall_clock_s + GRACE_S)
    task.link.denied = result.denied
    return result


def failure_of(result: StepResult, plan: SandboxPlan) -> ScaleoutError | None:
    """The error that a result stands for; None for a step that ended well."""
    if result.ended == "exited" and result.exit_status == 0:
        return None
    task = plan.environment.get("SCALEOUTD_TASK", "the step")
    if result.code is not None:
        return from_code(result.code, f"cannot finish {task}: {egress.CAUSES.get(result.code, result.code)}")
    if result.ended == "signalled":
        return from_code("step-killed", f"cannot finish {task}: it was ended by signal {_named(result.signal)}")
    return from_code(
        "step-failed",
        f"cannot finish {task}: `{' '.join(plan.command[:2])}` ended with status {result.exit_status}",
        "What it printed is in the output file of this run.",
    )


def _named(number: int | None) -> str:
    """`11 (SIGSEGV)`."""
    try:
        return f"{number} ({signal.Signals(number or 0).name})"
    except ValueError:  # a real-time signal
        return str(number)
