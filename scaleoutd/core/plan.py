# SPDX-License-Identifier: Apache-2.0
"""What a step instance is asked to do and what it reports: plain values, no behaviour.

The runner makes these (a pure function of manifest, policy and facts), `scaleoutctl explain` prints them, the launcher
applies them.  A plan holds no secret: the confined children inherit the launcher's memory.

Standard library and core only: the step's launcher imports this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from scaleoutd.core.devices import Device
from scaleoutd.core.records import Count, Name, Natural, Positive, Range, Sha256Hex, Text

Outcome = Literal[
    "no-socket-out",  # no connection or datagram leaves the step, of any address family
    "no-signal-out",  # no process outside the run can be signalled or traced
    "no-write-outside",  # nothing outside scratch, /tmp and /dev/shm of the run can be changed
    "no-read-outside",  # nothing outside the view can be read
    "no-foreign-device",  # no device but null, zero, full, urandom and what the policy's devices stand for
    "no-survivor",  # no process of the run lives on after it
]
OUTCOMES: tuple[Outcome, ...] = (
    "no-socket-out",
    "no-signal-out",
    "no-write-outside",
    "no-read-outside",
    "no-foreign-device",
    "no-survivor",
)

# As root a step of slot n runs as uid and gid STEP_UID_BASE + n.  Above every range of accounts that distributions,
# systemd (uids.conf: containers end at 1879048191, foreign ids begin at 2147352576), subuid and SSSD's id mapping
# (ends at 2000200000) give out, and below 2^31.
STEP_UID_BASE = 2_100_000_000

# In the environment of a step unit: the digest of the policy that its drop-in was written for.
POLICY_VARIABLE = "SCALEOUTD_POLICY_DIGEST"

Task = Literal["train", "validate", "predict"]  # what a combiner may ask for
Checked = Literal["train", "validate", "predict", "build"]  # what has a result that the gate reads
StepKind = Literal["train", "validate", "predict", "build", "startup"]
Decimal = Annotated[str, Text(40, r"-?[0-9]{1,20}(\.[0-9]{1,18})?", words="be a decimal number such as 0.5")]
HostPath = Annotated[str, Text(4096, r"/[^\x00-\x1f]*", 1, "be an absolute path")]
ViewPath = Annotated[str, Text(4096, r"/[^\x00-\x1f]*", 1, "be an absolute path")]


@dataclass(frozen=True)
class Limits:
    """Per run.  Bytes and seconds; `output_bytes` bounds each output file as it is read."""

    wall_clock_s: Positive
    cpu_s: Positive
    memory_bytes: Positive
    processes: Positive
    open_files: Positive
    file_size_bytes: Positive
    scratch_bytes: Positive
    output_bytes: Positive
    stdout_bytes: Positive
    tmp_bytes: Positive  # size of the run's own /tmp
    shm_bytes: Positive  # size of the run's own /dev/shm
    cpus: Positive = 1  # value of OMP_NUM_THREADS and its kind


@dataclass(frozen=True)
class Bind:
    """A file or folder of the host, read-only at `target` in the step's view."""

    source: HostPath
    target: ViewPath
    executable: bool = False  # may programs and libraries in it be executed


@dataclass(frozen=True)
class Link:
    """A symbolic link in the view: `path` points to `target`."""

    path: ViewPath
    target: Annotated[str, Text(4096, "", 1)]


@dataclass(frozen=True)
class SandboxPlan:
    """One execution.

    The view is exactly: `binds` read-only, `links`, the folder `scratch` (of the host) writable at /scratch, an own
    /tmp and /dev/shm, /proc of an own pid namespace, the four plain devices and the nodes that `devices` stand for.
    `command` is an argument vector, never a shell line of ours.  `environment` is all that the step gets.
    """

    run: Name
    backend: Literal["namespaces", "systemd", "inner"]
    slot: Annotated[int, Range(0, 1023)]
    command: Annotated[tuple[str, ...], Count(1, 256)]
    cwd: ViewPath
    environment: Mapping[str, str]
    binds: Annotated[tuple[Bind, ...], Count(0, 512)]
    scratch: HostPath
    limits: Limits
    outcomes: tuple[Outcome, ...] = OUTCOMES  # demanded: what cannot be proven means no run
    links: Annotated[tuple[Link, ...], Count(0, 64)] = ()
    devices: Annotated[tuple[Device, ...], Count(0, 8)] = ()  # their nodes must be there, or nothing runs
    seccomp_sha256: Sha256Hex | None = None  # digest of the compiled filter that must be in force; None: the packaged one


@dataclass(frozen=True)
class Enforcement:
    """How one outcome or limit is held.  `status`: proven by an act that failed, only watched, or open."""

    name: Name
    status: Literal["proven", "enforced", "partial", "open"]
    providers: tuple[str, ...] = ()


@dataclass(frozen=True)
class StepResult:
    """How an execution ended.  `code` is set when a limit or a cancellation ended it (scaleoutd.errors.CODES)."""

    ended: Literal["exited", "signalled", "limit", "cancelled"]
    exit_status: Annotated[int, Range(0, 255)] | None = None
    signal: Annotated[int, Range(1, 64)] | None = None
    code: Name | None = None
    wall_ms: Natural = 0
    cpu_ms: Natural = 0
    max_rss_bytes: Natural = 0
    stdout_bytes: Natural = 0
    stdout_dropped_bytes: Natural = 0
    scratch_bytes: Natural = 0
    killed_processes: Natural = 0  # still alive when the main process ended
    denied: Mapping[str, int] = field(default_factory=dict)  # surprising calls, by name, that were counted and refused
    enforced: tuple[Enforcement, ...] = ()


ModelFormat = Literal["npz", "safetensors", "torch", "pickle", "raw"]


@dataclass(frozen=True)
class ModelRules:
    """What a model may be.  Sizes are bounds of what the inspector reads, inflated."""

    formats: tuple[ModelFormat, ...]
    max_bytes: Positive
    max_arrays: Positive = 10_000
    max_inflated_bytes: Positive = 64 * 1024**3


@dataclass(frozen=True)
class ModelFacts:
    """What the confined inspector says of a model: claims of a child that read hostile bytes.

    `arrays_sha256` is the SHA-256 of the canonical JSON list of [name, dtype, shape] sorted by name: two models have
    the same form when it is equal.  For format `raw` (opaque bytes) it is None.
    """

    container: Literal["zip", "none"]
    format: ModelFormat
    model_id: Annotated[str, Text(256)] | None = None
    helper_type: Annotated[str, Text(64)] | None = None
    arrays: Natural = 0
    parameters: Natural = 0
    arrays_sha256: Sha256Hex | None = None


@dataclass(frozen=True)
class GateRules:
    """What an output must be before it may leave; `model`: for train and build."""

    task: Checked
    output_bytes: Positive  # bound of the weights file as read
    metadata_bytes: Positive = 32 * 1024  # bound of the JSON that goes with it
    model: ModelRules | None = None
    same_form: bool = True  # names, shapes and dtypes as the model received
    finite: bool = True
    max_update_norm: Decimal | None = None  # L2, of the difference to the model received


@dataclass(frozen=True)
class GateFacts:
    """What the confined gate says of the outputs; `metadata` is the step's JSON object, as canonical-safe text.

    For build it is {"name": …}, the name that the step gave its one file.
    """

    size_bytes: Natural
    metadata: Annotated[str, Text(48 * 1024)]
    model: ModelFacts | None = None
