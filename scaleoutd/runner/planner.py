# SPDX-License-Identifier: Apache-2.0
"""From what was proven and granted to one SandboxPlan: a pure function, so that `explain` can print what will happen.

The step's view, beside the system's own folders and the interpreter's:

    /project              the snapshot of the signed project, read-only, the working folder
    /in/model.npz         the model as it came, read-only; beside it /in/model.npz-metadata with the settings
    /data/<id>            a data set of the policy, read-only; its path is also in SCALEOUTD_DATA_<ID>
    /scratch              writable, on disk; the results are expected in /scratch/out
    /env/bin              `python` and `python3` of the policy's environment, on PATH (backend inner: <model folder>/bin)
    /tmp, /dev/shm        own, of the policy's size
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scaleoutd.core.plan import Bind, Limits, Link, Outcome, SandboxPlan, Task

MODEL_IN = "/in/model.npz"
OUTPUTS: Mapping[Task, str] = {
    "train": "/scratch/out/model.npz",
    "validate": "/scratch/out/result.json",
    "predict": "/scratch/out/result.json",
}


@dataclass(frozen=True)
class PlanInputs:
    """All that a plan depends on.  Paths are the host's."""

    run: str
    backend: Literal["namespaces", "systemd", "inner"]
    slot: int
    task: Task
    command: Sequence[str]
    snapshot: str  # folder of the content store
    model_folder: str  # holds model.npz and model.npz-metadata
    scratch: str
    python: str  # interpreter
    search_path: Sequence[str]  # its folders, for PATH
    is_venv: bool
    environment_binds: Sequence[Bind]
    data_sets: Mapping[str, str]
    limits: Limits
    outcomes: Sequence[Outcome]


def make_plan(given: PlanInputs) -> SandboxPlan:
    """The plan of one run."""
    inner = given.backend == "inner"
    binds = [
        *given.environment_binds,
        Bind(given.snapshot, "/project", executable=True),
        Bind(given.model_folder, "/in"),
        *(Bind(path, f"/data/{name}") for name, path in sorted(given.data_sets.items())),
    ]
    return SandboxPlan(
        run=given.run,
        backend=given.backend,
        slot=given.slot,
        command=(*given.command, *arguments(given, inner)),
        cwd=given.snapshot if inner else "/project",
        environment=_environment(given, inner),
        binds=tuple(binds),
        scratch=given.scratch,
        limits=given.limits,
        outcomes=tuple(given.outcomes),
        links=() if inner else (Link("/env/bin/python", given.python), Link("/env/bin/python3", given.python)),
    )


def arguments(given: PlanInputs, inner: bool) -> tuple[str, str]:
    """`<in>` and `<out>` of the step contract; without an own mount view they are the host's paths."""
    if not inner:
        return MODEL_IN, OUTPUTS[given.task]
    return f"{given.model_folder}/model.npz", given.scratch + OUTPUTS[given.task].removeprefix("/scratch")


def _environment(given: PlanInputs, inner: bool) -> dict[str, str]:
    scratch = given.scratch if inner else "/scratch"
    # An interpreter knows that it is a venv's by the path it was called by, so the link must not come first there; the
    # system's own folder may hold another version under the name python3, so there it must.
    links = [f"{given.model_folder}/bin"] if inner else ["/env/bin"]
    path = [*given.search_path, *links] if given.is_venv else [*links, *given.search_path]
    threads = str(given.limits.cpus)
    environment = {
        "PATH": ":".join([*path, "/usr/local/bin", "/usr/bin", "/bin"]),
        "HOME": f"{scratch}/home",
        "USER": "step",
        "LOGNAME": "step",
        "LANG": "C.UTF-8",
        "TMPDIR": f"{scratch}/home" if inner else "/tmp",  # noqa: S108  # the run's own /tmp
        # Output reaches the terminal line by line, and nothing is written beside the code.
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONNOUSERSITE": "1",
        # Libraries count processors, not quotas; more threads than the quota only thrash.
        "OMP_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "NUMEXPR_NUM_THREADS": threads,
        "SCALEOUTD_TASK": given.task,
        "SCALEOUTD_RUN": given.run,
    }
    for name in ("XDG_CACHE_HOME", "MPLCONFIGDIR", "NUMBA_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        environment[name] = f"{scratch}/home/.cache"
    for name, source in given.data_sets.items():
        environment["SCALEOUTD_DATA_" + _variable(name)] = source if inner else f"/data/{name}"
    return environment


def _variable(name: str) -> str:
    return "".join(char if char.isalnum() else "_" for char in name.upper())
