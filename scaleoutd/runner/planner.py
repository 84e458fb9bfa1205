# SPDX-License-Identifier: Apache-2.0
"""From what was proven and granted to one SandboxPlan: a pure function, so that `explain` can print what will happen.

The step's view, beside the system's own folders and the interpreter's:

    /project              the snapshot of the signed project, read-only, the working folder
    /in/model.npz         the model as it came, read-only; beside it /in/model.npz-metadata with the settings
                          (nothing for build and startup)
    /data/<id>            a data set of the policy, read-only; its path is also in SCALEOUTD_DATA_<ID>
    /scratch              writable, on disk; the results are expected in /scratch/out, where `build` also works
    /env/bin              `python` and `python3` of the policy's environment, on PATH (backend inner: <model folder>/bin)
    /tmp, /dev/shm        own, of the policy's size
    /dev                  null, zero, full, urandom, and the nodes that the policy's `devices` stand for (core/devices.py)

Backend systemd: the view is the step unit's, the same for every task.  The snapshot is /store/NAME, the model's folder /in/NAME,
scratch /scratch/SLOT; the runner gives a Place with those paths, and Landlock shows a task its own part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from scaleoutd.core.devices import Device
from scaleoutd.core.grant import BuildGrant, Grant
from scaleoutd.core.plan import Bind, Limits, Link, Outcome, SandboxPlan, StepKind, Task
from scaleoutd.runner.environments import ResolvedEnvironment

Backend = Literal["namespaces", "systemd", "inner"]
MODEL_IN = "/in/model.npz"
OUTPUTS: Mapping[Task, str] = {
    "train": "/scratch/out/model.npz",
    "validate": "/scratch/out/result.json",
    "predict": "/scratch/out/result.json",
}


@dataclass(frozen=True)
class PlanInputs:
    """All that a plan depends on.  Paths are the host's.

    `signed_words`: words of the command that name a file of the project; `build` works in the folder of its output, so there
    they are made absolute.
    """

    run: str
    backend: Backend
    slot: int
    task: StepKind
    command: Sequence[str]
    snapshot: str  # folder of the content store
    model_folder: str  # holds model.npz and model.npz-metadata; nothing for build and startup
    scratch: str
    environment: ResolvedEnvironment
    data_sets: Mapping[str, str]
    limits: Limits
    outcomes: Sequence[Outcome]
    signed_words: frozenset[str] = frozenset()
    devices: Sequence[Device] = ()


@dataclass(frozen=True)
class Place:
    """Where a run happens: paths of the host, with the backend systemd those of the step unit's view."""

    run: str
    backend: Backend
    slot: int
    snapshot: str
    model_folder: str
    scratch: str


def inputs_of(grant: Grant, environment: ResolvedEnvironment, place: Place) -> PlanInputs:
    """Of a task."""
    return PlanInputs(
        **vars(place),
        task=grant.task,
        command=grant.command,
        environment=environment,
        data_sets={name: rule.path for name, rule in grant.data_sets.items()},
        limits=grant.limits,
        outcomes=grant.outcomes,
        devices=grant.devices,
    )


def startup_inputs_of(grant: Grant, environment: ResolvedEnvironment, place: Place) -> PlanInputs:
    """Of the command that comes before the first task: as the task, without a model."""
    return replace(inputs_of(grant, environment, place), task="startup", command=grant.startup)


def build_inputs_of(grant: BuildGrant, environment: ResolvedEnvironment, place: Place) -> PlanInputs:
    """Of the command that makes the seed model."""
    return PlanInputs(
        **vars(place),
        task="build",
        command=grant.command,
        environment=environment,
        data_sets={},
        limits=grant.limits,
        outcomes=grant.outcomes,
        devices=grant.devices,
        signed_words=grant.files,
    )


def make_plan(given: PlanInputs) -> SandboxPlan:
    """The plan of one run."""
    inner = given.backend != "namespaces"
    project = given.snapshot if inner else "/project"
    python = given.environment.python
    binds = [
        *given.environment.binds,
        Bind(given.snapshot, "/project", executable=True),
        Bind(given.model_folder, "/in"),
        *(Bind(_data_source(given, name), f"/data/{name}") for name in sorted(given.data_sets)),
    ]
    return SandboxPlan(
        run=given.run,
        backend=given.backend,
        slot=given.slot,
        command=(*_command(given, project), *arguments(given, inner)),
        cwd=_scratch(given, inner) + "/out" if given.task == "build" else project,
        environment=_environment(given, inner, project),
        binds=tuple(binds),
        scratch=given.scratch,
        limits=given.limits,
        outcomes=tuple(given.outcomes),
        devices=tuple(given.devices),
        links=() if inner else (Link("/env/bin/python", python), Link("/env/bin/python3", python)),
    )


def arguments(given: PlanInputs, inner: bool) -> tuple[str, ...]:
    """`<in>` and `<out>` of the step contract, without an own mount view the host's paths; none for build and startup."""
    if given.task == "build" or given.task == "startup":
        return ()
    if not inner:
        return MODEL_IN, OUTPUTS[given.task]
    return f"{given.model_folder}/model.npz", given.scratch + OUTPUTS[given.task].removeprefix("/scratch")


def _command(given: PlanInputs, project: str) -> tuple[str, ...]:
    return tuple(f"{project}/{word}" if word in given.signed_words else word for word in given.command)


def _data_source(given: PlanInputs, name: str) -> str:
    """Where a data set is found: a unit's view has it at its target already."""
    return f"/data/{name}" if given.backend == "systemd" else given.data_sets[name]


def _scratch(given: PlanInputs, inner: bool) -> str:
    return given.scratch if inner else "/scratch"


def _environment(given: PlanInputs, inner: bool, project: str) -> dict[str, str]:
    scratch = _scratch(given, inner)
    # An interpreter knows that it is a venv's by the path it was called by, so the link must not come first there; the
    # system's own folder may hold another version under the name python3, so there it must.
    links = [f"{given.model_folder}/bin"] if inner else ["/env/bin"]
    search_path = given.environment.search_path
    path = [*search_path, *links] if given.environment.is_venv else [*links, *search_path]
    threads = str(given.limits.cpus)
    environment = {
        "PATH": ":".join([*path, "/usr/local/bin", "/usr/bin", "/bin"]),
        "HOME": f"{scratch}/home",
        "USER": "step",
        "LOGNAME": "step",
        "LANG": "C.UTF-8",
        "TMPDIR": f"{scratch}/home" if given.backend == "inner" else "/tmp",  # noqa: S108  # the run's own /tmp
        # Output reaches the terminal line by line, and nothing is written beside the code.
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONNOUSERSITE": "1",
        # Libraries count processors, not quotas (a step sees no cgroup); more threads than the quota only thrash.
        "OMP_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "NUMEXPR_NUM_THREADS": threads,
        "LOKY_MAX_CPU_COUNT": threads,
        "PYTHON_CPU_COUNT": threads,
        "SCALEOUTD_TASK": given.task,
        "SCALEOUTD_RUN": given.run,
    }
    for name in ("XDG_CACHE_HOME", "MPLCONFIGDIR", "NUMBA_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        environment[name] = f"{scratch}/home/.cache"
    if given.task == "build":
        # The official client's variable; modules of the project are found though the working folder is another.
        environment |= {"SCALEOUT_BUILD_OUTPUT_DIR": f"{scratch}/out", "PYTHONPATH": project}
    for name in given.data_sets:
        environment["SCALEOUTD_DATA_" + _variable(name)] = _data_source(given, name) if inner else f"/data/{name}"
    return environment


def _variable(name: str) -> str:
    return "".join(char if char.isalnum() else "_" for char in name.upper())
