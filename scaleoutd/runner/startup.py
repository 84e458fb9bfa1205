# SPDX-License-Identifier: Apache-2.0
"""A dispatcher project's `startup`: what the official client runs once before it connects."""

from __future__ import annotations

import secrets
import shutil
from contextlib import ExitStack
from typing import TYPE_CHECKING

from scaleoutd.core.grant import Grant
from scaleoutd.durable import storage_errors
from scaleoutd.runner import egress, planner
from scaleoutd.runner.environments import ResolvedEnvironment
from scaleoutd.runner.execution import failure_of, held, place_of, run_plan
from scaleoutd.runner.store import Snapshot

if TYPE_CHECKING:
    from scaleoutd.runner.pipeline import Task


def start_up(task: Task, grant: Grant, environment: ResolvedEnvironment, snapshot: Snapshot) -> None:
    """The project's `startup`, in an instance of its own: once after each start of the node, and after each change of what is
    signed or decided.  What it writes is gone when it ends; that it ended well is what counts."""
    key = (grant.manifest_sha256, grant.policy_sha256, grant.environment_id)
    if not grant.startup or task.room.started_up == key:
        return
    task.stage = "startup"
    task.link.stage("startup")
    folder = task.room.state / "in" / secrets.token_hex(12)
    with ExitStack() as cleanup, task.room.instances.take(grant.policy_sha256) as instance:
        with storage_errors("make the folder of a startup"):
            folder.mkdir(mode=0o755)
            folder.chmod(0o755)
        cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        place = place_of(task, environment, snapshot, folder, instance.slot)
        plan = planner.make_plan(held(task, planner.startup_inputs_of(grant, environment, place)))
        task.record(
            "startup-about-to-run",
            project=grant.project,
            manifest_sha256=grant.manifest_sha256,
            manifest_version=grant.manifest_version,
            policy_sha256=grant.policy_sha256,
            command=list(plan.command),
            environment=grant.environment_id,
            environment_sha256=grant.environment.digest,
            data_sets=sorted(grant.data_sets),
            limits=egress.limit_counts(grant.limits),
            backend=plan.backend,
            slot=plan.slot,
            devices=list(plan.devices),
        )
        result = run_plan(task, instance, plan)
    task.note("run-ended", **{**egress.result_body(result), "task": "startup"})
    error = failure_of(result, plan)
    if error is not None:
        raise error
    task.room.started_up = key
