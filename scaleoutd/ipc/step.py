# SPDX-License-Identifier: Apache-2.0
"""The messages between the runner and a step instance.

One connection is one instance is one task: hello, then in this order
    Probe → Probed                          at start-up, on an instance of its own
    Clean → Cleaned                         on an instance of its own: what a killed instance left in its slot's scratch
    Prepare                                 unanswered: the sandbox is built while the model arrives and is inspected
    Inspect + [model] → Inspected
    Execute + [log, terminal?] → Started, then Ended       (Cancel may come in between)
    Gate + [model?] → Gated + [weights?]    files opened by a child of the step's uid, read-only
and each may be answered by Refused, after which the instance is of no more use.  The end of the connection, for any reason,
kills what runs.  `scratch` outputs of a task are /scratch/out/model.npz and /scratch/out/model.npz-metadata for train,
/scratch/out/result.json for validate and predict; the one file of a build has the name that the step gave it.
"""

from __future__ import annotations

from dataclasses import dataclass

from scaleoutd.core.plan import Enforcement, GateFacts, GateRules, ModelFacts, ModelRules, SandboxPlan, StepResult
from scaleoutd.core.records import Natural
from scaleoutd.ipc.channel import message

TRAIN_OUTPUT = "out/model.npz"  # below the scratch folder
TRAIN_METADATA = "out/model.npz-metadata"
RESULT_OUTPUT = "out/result.json"


@message("launch")
@dataclass(frozen=True)
class Launch:
    """To a template, from the parent of the rooms, with one descriptor: be a launcher for this connection.  Unanswered."""


@message("probe")
@dataclass(frozen=True)
class Probe:
    """Prove each outcome that `plan` demands by an act that must fail inside, with a control that succeeds outside."""

    plan: SandboxPlan


@message("probed")
@dataclass(frozen=True)
class Probed:
    """What was proven, and with which filter and Landlock ABI."""

    outcomes: tuple[Enforcement, ...]
    filter_sha256: str = ""
    landlock_abi: Natural = 0


@message("clean")
@dataclass(frozen=True)
class Clean:
    """Empty the scratch folder of the plan's slot, as the slot's user: its instance was killed before it could."""

    plan: SandboxPlan


@message("cleaned")
@dataclass(frozen=True)
class Cleaned:
    """Nothing is left in the scratch folder."""


@message("inspect")
@dataclass(frozen=True)
class Inspect:
    """With one descriptor: the model, read-only."""

    plan: SandboxPlan  # its slot and limits
    rules: ModelRules


@message("inspected")
@dataclass(frozen=True)
class Inspected:
    """What the confined child says of the model."""

    facts: ModelFacts


@message("prepare")
@dataclass(frozen=True)
class Prepare:
    """Build the sandbox of `plan` up to its exec, which only `Execute` with the same plan brings; a failure shows there."""

    plan: SandboxPlan


@message("execute")
@dataclass(frozen=True)
class Execute:
    """With one or two descriptors: the log file (append) and, with `terminal`, a pipe for the same bytes at once.

    With `person` one more, the last: standard input, output and error of the step, instead of the log (run --shell).
    """

    plan: SandboxPlan
    terminal: bool = False
    person: bool = False


@message("started")
@dataclass(frozen=True)
class Started:
    """The exec has happened.  `pid`: of the run's pid 1, as the launcher sees it."""

    pid: Natural


@message("ended")
@dataclass(frozen=True)
class Ended:
    """The run is over, and nothing of it is alive."""

    result: StepResult


@message("cancel-step")
@dataclass(frozen=True)
class CancelStep:
    """End the run now, and report."""


@message("gate")
@dataclass(frozen=True)
class Gate:
    """With one descriptor for train: the model that was received, to compare with."""

    plan: SandboxPlan
    rules: GateRules


@message("gated")
@dataclass(frozen=True)
class Gated:
    """With one descriptor for train and build: the weights that the step wrote, read-only."""

    facts: GateFacts
