# SPDX-License-Identifier: Apache-2.0
"""The policy of a node: what may run, with how much, on what data, and what may leave.

Written by the administrator in YAML (policy/policy.example.yaml), kept and compared as canonical JSON; its SHA-256 is the
policy's digest.  Every default is the closed one: what the policy does not name is not granted.

Sizes may be written with a unit (KiB, MiB, GiB, TiB; kB, MB, GB, TB), durations with s, m, h or d.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from scaleoutd.core import hours, strictjson
from scaleoutd.core.devices import Device
from scaleoutd.core.plan import OUTCOMES, Decimal, HostPath, Limits, ModelFormat, Outcome, Task
from scaleoutd.core.records import Count, Name, Natural, Positive, Range, Sha256Hex, Text, decode, encode
from scaleoutd.core.settings import check_schema
from scaleoutd.core.strictjson import Json
from scaleoutd.core.strictyaml import YamlDocument, decode_yaml, load_yaml, map_scalars
from scaleoutd.errors import ConfigError, FormatError

MAX_POLICY_BYTES = 1024 * 1024
_SOURCE = "_source"
KIB, MIB, GIB = 1024, 1024**2, 1024**3

_UNITS = {"B": 1, "kB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": 1024**4}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

Pattern = Annotated[str, Text(256, r"[^\x00-\x1f\x7f]+", 1)]  # `*` matches any run of characters
Hours = Annotated[str, Text(64, hours.PATTERN, words="be days and hours such as Mon-Fri 18:00-06:00")]
Key = Annotated[str, Text(128, r"[^\x00-\x1f\x7f]+", 1)]


@dataclass(frozen=True)
class ProjectRule:
    """The name that the manifest must have, and the folder where the project lies."""

    name: Name
    path: HostPath
    reverify: Literal["boot", "run"] = "boot"  # when bytes are read again that look unchanged: once per boot, or for each run


@dataclass(frozen=True)
class PolicyLimits:
    """Limits of a run, and `model_bytes`, the largest model that is received, as it comes and unpacked."""

    wall_clock_s: Positive = 3600
    cpu_s: Positive = 4 * 3600
    memory_bytes: Positive = 4 * GIB
    processes: Positive = 256
    open_files: Positive = 1024
    file_size_bytes: Positive = 4 * GIB
    scratch_bytes: Positive = 8 * GIB
    output_bytes: Positive = 2 * GIB
    stdout_bytes: Positive = 16 * MIB
    tmp_bytes: Positive = 256 * MIB
    shm_bytes: Positive = 256 * MIB
    cpus: Positive = 1
    model_bytes: Positive = 2 * GIB

    def of_run(self) -> Limits:
        """The limits in the plan's form."""
        values = encode(self)
        del values["model_bytes"]
        return Limits(**values)


@dataclass(frozen=True)
class EnvironmentRule:
    """An interpreter and the folders it needs; `digest` of what `scaleoutctl verify` prints, None for no proof."""

    python: HostPath
    binds: Annotated[tuple[HostPath, ...], Count(0, 64)] = ()
    digest: Sha256Hex | None = None


@dataclass(frozen=True)
class DataSetRule:
    """A folder or file that a step may read; `mode` says what its digest covers: nothing, names and sizes, or all bytes."""

    path: HostPath
    mode: Literal["none", "listing", "full"] = "none"
    digest: Sha256Hex | None = None


@dataclass(frozen=True)
class NumberRange:
    """A key whose value must be a finite number between the two, both included."""

    key: Key
    minimum: Decimal | None = None
    maximum: Decimal | None = None


@dataclass(frozen=True)
class Egress:
    """What may leave the node.  `metrics` are keys or "*"; `metadata` are keys beside num_examples, which always leaves.

    `ranges` bounds what leaves under a key, num_examples too.  Of an update: names, shapes and types as received (`same_form`),
    no NaN or infinity (`finite`), and no further from the model received than `max_update_norm` (L2 norm of the difference).
    """

    metrics: Annotated[tuple[Key, ...], Count(0, 1024)] = ()
    metadata: Annotated[tuple[Key, ...], Count(0, 1024)] = ()
    max_update_bytes: Positive = 2 * GIB
    telemetry: bool = False
    attributes: Annotated[tuple[Key, ...], Count(0, 1024)] = ()
    failure_detail: bool = False  # the text of a failure, beside its code
    ranges: Annotated[tuple[NumberRange, ...], Count(0, 1024)] = ()
    same_form: bool = True
    finite: bool = True
    max_update_norm: Decimal | None = None


@dataclass(frozen=True)
class Budget:
    """How often the node may be asked, when, and by whose leave.  `combiners` and `sessions` are patterns.

    `hours`: when a run may begin (core/hours.py), in `time_zone`, "" for the host's; none: always.  `approval`: second-person
    demands that somebody else than who installed the node approves each session.  `approvers`: names of users who may, or "*" for
    everybody who reaches the control socket.
    """

    runs_per_day: Natural = 500
    runs_per_session: Natural = 500
    combiners: Annotated[tuple[Pattern, ...], Count(0, 256)] = ("*",)
    sessions: Annotated[tuple[Pattern, ...], Count(0, 256)] = ("*",)
    min_num_examples: Positive = 1
    hours: Annotated[tuple[Hours, ...], Count(0, 64)] = ()
    time_zone: Annotated[str, Text(64, r"[A-Za-z0-9_+/-]*", words="be a time zone such as Europe/Stockholm")] = ""
    approval: Literal["none", "second-person"] = "none"
    approvers: Annotated[tuple[Key, ...], Count(0, 256)] = ("*",)


@dataclass(frozen=True)
class StepOutput:
    """Where the text that a step prints goes besides its own file, and how long that is kept."""

    journal: bool = False
    keep_days: Annotated[int, Range(0, 3650)] = 14


@dataclass(frozen=True)
class Policy:
    """The whole document.  `development` is set by `development_policy` only and cannot be written in YAML."""

    version: Annotated[int, Range(1, 1)]
    project: ProjectRule
    trust_root: HostPath
    client_certificate: Literal["required", "none"] = "required"
    backend: Literal["auto", "namespaces", "systemd", "inner"] = "auto"
    outcomes: Annotated[tuple[Outcome, ...], Count(0, 6)] = OUTCOMES
    limits: PolicyLimits = field(default_factory=PolicyLimits)
    environments: Annotated[Mapping[str, EnvironmentRule], Count(0, 64)] = field(default_factory=dict)
    data_sets: Annotated[Mapping[str, DataSetRule], Count(0, 64)] = field(default_factory=dict)
    devices: Annotated[tuple[Device, ...], Count(0, 8)] = ()  # words of core/devices.py
    model_formats: Annotated[tuple[ModelFormat, ...], Count(1, 8)] = ("npz", "safetensors")
    settings_schema: Mapping[str, Json] | None = None  # None: only empty settings; {}: any
    egress: Egress = field(default_factory=Egress)
    budget: Budget = field(default_factory=Budget)
    step_output: StepOutput = field(default_factory=StepOutput)
    tasks: Annotated[tuple[Task, ...], Count(0, 3)] = ("train", "validate")
    development: bool = False

    def canonical(self) -> bytes:
        """Canonical JSON, defaults written out; of a policy that was read from such bytes, those bytes.

        A later version has more keys.  What an earlier one wrote, and what units, signatures and approvals name by its digest,
        stays the same policy until somebody applies another.
        """
        source: bytes | None = vars(self).get(_SOURCE)
        return strictjson.canonical(encode(self)) if source is None else source

    def digest(self) -> str:
        """`policy_sha256`: SHA-256 of `canonical`."""
        return hashlib.sha256(self.canonical()).hexdigest()


def parse_policy_yaml(data: bytes, *, name: str = "policy.yaml") -> Policy:
    """The administrator's file; ConfigError `yaml-invalid` with line and column."""
    document = load_yaml(data, name=name, root="policy")
    if "development" in document.value:
        raise document.refuse("development is not for a policy file", "policy.development", "Remove the key.")
    value = map_scalars(document.value, "policy", lambda path, key, scalar: _with_unit(document, path, key, scalar))
    policy = decode_yaml(Policy, document, value)
    try:
        _check(policy)
    except FormatError as exc:
        path, _, cause = exc.message.removeprefix("cannot read ").partition(": it ")
        raise document.refuse(f"{path} {cause}", path, exc.hint) from exc
    return policy


def parse_policy(data: bytes) -> Policy:
    """A policy in canonical JSON, as rooms hand it on."""
    policy = decode(Policy, strictjson.parse_canonical(data, max_bytes=MAX_POLICY_BYTES, what="the policy"), "policy")
    _check(policy)
    vars(policy)[_SOURCE] = data  # no field: dataclasses.replace makes a policy that nobody has read
    return policy


def development_policy(
    project_path: str, python: str, data_sets: Mapping[str, str], name: str, *, trust_root: str = "/", cpus: int = 1
) -> Policy:
    """What holds when no policy was written: one interpreter, the named data, all metrics, a development signature.

    `data_sets` by id to path.  Everything that protects the host stays as demanded: outcomes, limits, formats.
    """
    policy = Policy(
        version=1,
        project=ProjectRule(name, project_path),
        trust_root=trust_root,
        client_certificate="none",
        limits=PolicyLimits(cpus=cpus),
        environments={"default": EnvironmentRule(python)},
        data_sets={key: DataSetRule(path) for key, path in data_sets.items()},
        settings_schema={},
        egress=Egress(metrics=("*",), metadata=("*",), failure_detail=True),
        budget=Budget(runs_per_day=100_000, runs_per_session=100_000),
        tasks=("train", "validate", "predict"),
        development=True,
    )
    # Through its own bytes, so that a path or name that no file could hold is refused here too.
    return parse_policy(policy.canonical())


def parse_size(text: str) -> int:
    """Bytes of "4GiB", "512 MB" or "1024"; ConfigError otherwise."""
    return _parse_unit(text, _UNITS, "a size such as 4GiB")


def parse_duration(text: str) -> int:
    """Seconds of "90s", "15m", "2h", "365d" or "60"; ConfigError otherwise."""
    return _parse_unit(text, _SECONDS, "a duration such as 15m or 2h")


def _parse_unit(text: str, units: Mapping[str, int], expected: str) -> int:
    match = re.fullmatch(r"([0-9]{1,12})\s?([A-Za-z]*)", text)
    if match is None or (match[2] and match[2] not in units):
        raise ConfigError(f"cannot read {text[:40]!r}: expected {expected}", hint=f"Units: {', '.join(units)}.")
    return int(match[1]) * (units[match[2]] if match[2] else 1)


def _with_unit(document: YamlDocument, path: str, key: str, scalar: Json) -> Json:
    if path.startswith("policy.settings_schema"):
        return scalar
    if key in ("minimum", "maximum", "max_update_norm") and type(scalar) is int:
        return str(scalar)  # decimals are text: canonical JSON has no floats
    if not isinstance(scalar, str):
        return scalar
    try:
        if key.endswith("_bytes"):
            return parse_size(scalar)
        if key.endswith("_s"):
            return parse_duration(scalar)
    except ConfigError as exc:
        raise document.refuse(exc.message, path, exc.hint) from exc
    return scalar


def _check(policy: Policy) -> None:
    """What the schema cannot say."""
    for kind, names in (("environments", policy.environments), ("data_sets", policy.data_sets)):
        for name in names:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
                raise FormatError(f"cannot read policy.{kind}.{name[:64]}: it is no id (letters, digits, '.', '_', '-')")
    for field_name in ("outcomes", "devices", "tasks", "model_formats"):
        items = getattr(policy, field_name)
        if len(set(items)) != len(items):
            raise FormatError(f"cannot read policy.{field_name}: it names something twice")
    for data_set_id, data_set in policy.data_sets.items():
        if data_set.digest is not None and data_set.mode == "none":
            raise FormatError(
                f"cannot read policy.data_sets.{data_set_id}.digest: it has no effect with mode none",
                hint="Set mode to listing or full.",
            )
    for text in policy.budget.hours:
        try:
            hours.parse_window(text)
        except FormatError as exc:
            raise FormatError(
                f"cannot read policy.budget.hours: it holds {exc.message.removeprefix('cannot read the hours ')}"
            ) from exc
    keys = [item.key for item in policy.egress.ranges]
    if len(set(keys)) != len(keys):
        raise FormatError("cannot read policy.egress.ranges: it has a key twice")
    if policy.egress.max_update_norm is not None and not policy.egress.same_form:
        raise FormatError("cannot read policy.egress.max_update_norm: it needs same_form: true")
    if policy.settings_schema is not None:
        check_schema(policy.settings_schema, "policy.settings_schema")
