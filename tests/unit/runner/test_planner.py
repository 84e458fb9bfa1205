# SPDX-License-Identifier: Apache-2.0
"""The plan of a run, word for word, and what may never be in one."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from scaleoutd.core import records
from scaleoutd.core.plan import OUTCOMES, Bind, Limits, SandboxPlan, StepResult
from scaleoutd.errors import CODES
from scaleoutd.runner.environments import ResolvedEnvironment
from scaleoutd.runner.execution import failure_of
from scaleoutd.runner.planner import PlanInputs, make_plan

LIMITS = Limits(60, 61, 62_000_000, 63, 64, 65_000_000, 66_000_000, 67_000_000, 68_000, 69_000, 70_000, cpus=3)
GIVEN = PlanInputs(
    run="0123456789ab",
    backend="namespaces",
    slot=5,
    task="train",
    command=("python", "train.py", "--fast"),
    snapshot="/state/store/abc",
    model_folder="/state/in/def",
    scratch="/state/scratch/5",
    environment=ResolvedEnvironment(
        "/usr/bin/python3.11", (Bind("/usr", "/usr", executable=True),), ("/usr/bin",), is_venv=False
    ),
    data_sets={"ward-7.scans": "/data/w7", "labels": "/data/labels.csv"},
    limits=LIMITS,
    outcomes=OUTCOMES,
)
CACHE = "/scratch/home/.cache"


def test_golden() -> None:
    assert asdict(make_plan(GIVEN)) == {
        "run": "0123456789ab",
        "backend": "namespaces",
        "slot": 5,
        "command": ("python", "train.py", "--fast", "/in/model.npz", "/scratch/out/model.npz"),
        "cwd": "/project",
        "environment": {
            "PATH": "/env/bin:/usr/bin:/usr/local/bin:/usr/bin:/bin",
            "HOME": "/scratch/home",
            "USER": "step",
            "LOGNAME": "step",
            "LANG": "C.UTF-8",
            "TMPDIR": "/tmp",
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONNOUSERSITE": "1",
            "OMP_NUM_THREADS": "3",
            "OPENBLAS_NUM_THREADS": "3",
            "MKL_NUM_THREADS": "3",
            "NUMEXPR_NUM_THREADS": "3",
            "LOKY_MAX_CPU_COUNT": "3",
            "PYTHON_CPU_COUNT": "3",
            "SCALEOUTD_TASK": "train",
            "SCALEOUTD_RUN": "0123456789ab",
            "XDG_CACHE_HOME": CACHE,
            "MPLCONFIGDIR": CACHE,
            "NUMBA_CACHE_DIR": CACHE,
            "TORCHINDUCTOR_CACHE_DIR": CACHE,
            "TRITON_CACHE_DIR": CACHE,
            "SCALEOUTD_DATA_WARD_7_SCANS": "/data/ward-7.scans",
            "SCALEOUTD_DATA_LABELS": "/data/labels",
        },
        "binds": (
            {"source": "/usr", "target": "/usr", "executable": True},
            {"source": "/state/store/abc", "target": "/project", "executable": True},
            {"source": "/state/in/def", "target": "/in", "executable": False},
            {"source": "/data/labels.csv", "target": "/data/labels", "executable": False},
            {"source": "/data/w7", "target": "/data/ward-7.scans", "executable": False},
        ),
        "scratch": "/state/scratch/5",
        "limits": asdict(LIMITS),
        "outcomes": OUTCOMES,
        "devices": (),
        "links": (
            {"path": "/env/bin/python", "target": "/usr/bin/python3.11"},
            {"path": "/env/bin/python3", "target": "/usr/bin/python3.11"},
        ),
        "seccomp_sha256": None,
    }


def test_the_plan_is_a_function_of_its_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_plan(GIVEN)
    for name in ("PATH", "HOME", "SCALEOUT_AUTH_TOKEN", "PYTHONPATH", "LD_PRELOAD", "http_proxy"):
        monkeypatch.setenv(name, "from-outside")
    assert make_plan(GIVEN) == first
    assert "from-outside" not in repr(first)


@pytest.mark.parametrize("task", ["validate", "predict"])
def test_other_tasks_write_a_result(task: str) -> None:
    plan = make_plan(replace(GIVEN, task=task))  # type: ignore[arg-type]  # a literal of the list above
    assert plan.command[-2:] == ("/in/model.npz", "/scratch/out/result.json")
    assert plan.environment["SCALEOUTD_TASK"] == task


def test_without_a_view_of_its_own_a_step_gets_the_hosts_paths() -> None:
    plan = make_plan(replace(GIVEN, backend="inner"))
    assert plan.command[-2:] == ("/state/in/def/model.npz", "/state/scratch/5/out/model.npz")
    assert plan.cwd == "/state/store/abc"
    assert plan.environment["HOME"] == plan.environment["TMPDIR"] == "/state/scratch/5/home"
    assert plan.environment["SCALEOUTD_DATA_LABELS"] == "/data/labels.csv"
    assert "/env/bin" not in plan.environment["PATH"]


def test_an_interpreter_of_a_venv_is_found_by_its_own_path_first() -> None:
    venv = replace(GIVEN.environment, is_venv=True, search_path=("/srv/venv/bin",))
    plan = make_plan(replace(GIVEN, environment=venv))
    assert plan.environment["PATH"].split(":")[:2] == ["/srv/venv/bin", "/env/bin"]


def test_nothing_that_a_step_may_write_may_be_executed_and_only_scratch_is_written() -> None:
    plan = make_plan(GIVEN)
    assert {bind.target for bind in plan.binds if bind.executable} == {"/usr", "/project"}
    assert not any(bind.source.startswith(plan.scratch) for bind in plan.binds)


def test_a_plan_survives_the_wire() -> None:
    plan = make_plan(GIVEN)
    assert records.decode(SandboxPlan, records.encode(plan), "plan") == plan


@pytest.mark.parametrize(
    ("result", "code"),
    [
        (StepResult("exited", exit_status=0), None),
        (StepResult("exited", exit_status=3), "step-failed"),
        (StepResult("signalled", signal=11), "step-killed"),
        (StepResult("limit", code="limit-memory"), "limit-memory"),
        (StepResult("limit", code="limit-processes", exit_status=1), "limit-processes"),
        (StepResult("cancelled", code="step-cancelled"), "step-cancelled"),
        # A launcher of another build may name what this one does not know: it fails and is no success.
        (StepResult("limit", code="limit-of-tomorrow"), "internal"),
        (StepResult("limit"), "step-failed"),
        (StepResult("cancelled", exit_status=0), "step-failed"),
        (StepResult("exited"), "step-failed"),
    ],
)
def test_only_an_exit_with_0_is_a_success(result: StepResult, code: str | None) -> None:
    error = failure_of(result, make_plan(GIVEN))
    assert (error.code if error else None) == code
    if error:
        assert error.code in CODES
        assert error.message.startswith("cannot finish train: ")
