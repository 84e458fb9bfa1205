# SPDX-License-Identifier: Apache-2.0
"""Real numeric programs as steps: run in the sandbox with the plan that the node makes, and what they said."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scaleoutd.core.plan import OUTCOMES, Limits
from scaleoutd.core.policy import EnvironmentRule, PolicyLimits
from scaleoutd.runner.environments import resolve_environment
from scaleoutd.runner.planner import PlanInputs, make_plan
from tests.attack.arena import USER
from tests.step_client import PYTHON, Finished, StepClient

ROOT = os.geteuid() == 0
MODES = ("root", "user") if ROOT else ("user",)
LIMITS = PolicyLimits(wall_clock_s=120, cpu_s=120, memory_bytes=2 << 30, cpus=2).of_run()


@contextmanager
def sandbox(mode: str, program: str) -> Iterator[RealWork]:
    """`mode`: root or user, the launcher's own."""
    folder = Path(tempfile.mkdtemp(prefix="scaleoutd-work-"))
    folder.chmod(0o755)
    try:
        for name in ("project", "in", "home"):
            (folder / name).mkdir(mode=0o755)
        (folder / "project/step.py").write_text(program)
        if ROOT and mode == "user":
            for path in (folder, *folder.rglob("*")):
                os.chown(path, USER, USER)
        with StepClient(uid=USER if ROOT and mode == "user" else None) as client:
            yield RealWork(client, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class RealWork:
    def __init__(self, client: StepClient, folder: Path) -> None:
        self._client, self._folder = client, folder

    def run(self, limits: Limits = LIMITS, python: str = PYTHON) -> Finished:
        environment = resolve_environment(EnvironmentRule(python))
        plan = make_plan(
            PlanInputs(
                run="real-work",
                backend="namespaces",
                slot=0,
                task="train",
                command=("python", "step.py"),
                snapshot=str(self._folder / "project"),
                model_folder=str(self._folder / "in"),
                scratch=str(self._folder / "home/scratch"),
                environment=environment,
                data_sets={},
                limits=limits,
                outcomes=OUTCOMES,
            )
        )
        return self._client.execute(plan)
