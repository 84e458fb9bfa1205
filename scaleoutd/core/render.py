# SPDX-License-Identifier: Apache-2.0
"""From a policy to what systemd and the rooms read: policy.lock and the units' drop-ins.  Pure: the same in, the same bytes out.

    etc/scaleoutd/policy.lock                                          the policy, canonical; its SHA-256 is the policy's digest
    etc/systemd/system/scaleoutd-step@.service.d/50-policy.conf        limits, view, digest
    etc/systemd/system/scaleoutd-step.slice.d/50-policy.conf           the ceiling of all instances together
    etc/systemd/system/scaleoutd-runner.service.d/50-policy.conf       what the runner must see to prove it
    etc/systemd/system/scaleoutd.service.d/50-policy.conf              whether the agent may go without a client certificate

Rules (systemd.exec(5), systemd.resource-control(5); measured on 252 and 257):
  1. `TemporaryFileSystem=` is reset and written whole: the same path twice is two mounts, and which one is on top is not said.
  2. Environments and data sets are bound without "-": a step that starts without its data is worse than one that does not
     start.  Paths that systemd would read otherwise are refused here.
  3. /tmp and /dev/shm count as memory of the run: full they must answer ENOSPC, and not call the OOM killer.
  4. What changes for a run in progress is only MemoryMax=, TasksMax= and CPUQuota=; all else counts from the next instance on,
     which carries the digest so that the runner can tell old ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from scaleoutd.core.devices import NodePath, chosen, lacking
from scaleoutd.core.plan import POLICY_VARIABLE, Bind
from scaleoutd.core.policy import Policy
from scaleoutd.core.records import Count
from scaleoutd.errors import ConfigError

MIB = 1 << 20
CERTIFICATE_VARIABLE = "SCALEOUTD_CLIENT_CERTIFICATE"
LOCK = "etc/scaleoutd/policy.lock"
UNITS = "etc/systemd/system"
STEP = f"{UNITS}/scaleoutd-step@.service.d/50-policy.conf"
SLICE = f"{UNITS}/scaleoutd-step.slice.d/50-policy.conf"
RUNNER = f"{UNITS}/scaleoutd-runner.service.d/50-policy.conf"
AGENT = f"{UNITS}/scaleoutd.service.d/50-policy.conf"

# What the step unit shows by itself (systemd/scaleoutd-step@.service).
SHOWN_BY_THE_UNIT = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/alternatives",
    "/etc/localtime",
)
# Private to each unit or not a place for files.
_NOT_FOR_FILES = ("/tmp", "/var/tmp", "/dev", "/proc", "/sys", "/run")  # noqa: S108
# Names in the step's view; an environment is seen at its own path, a data set below /data.
_OF_THE_VIEW = ("/project", "/env", "/scratch", "/store", "/in", "/data")
_HOMES = ("/home", "/root")
_OWN_MEMORY_BYTES = 24 * MIB  # the launcher and its children that wait
_OWN_TASKS = 8  # and so many of them
_ROOM_BESIDE_TMPFS = 48 * MIB
_SPARES_BYTES = 256 * MIB  # instances that wait or clean
_SPARES_TASKS = 64
_PLAIN_PATH = re.compile(r"/[^\x00-\x1f\x7f:\"'\\]*")


@dataclass(frozen=True)
class Facts:
    """What only the host knows: what an environment of the policy consists of (runner/environments.py), by its id,
    and which nodes its devices stand for (step/devices.py)."""

    environments: Annotated[Mapping[str, tuple[Bind, ...]], Count(0, 64)] = field(default_factory=dict)
    nodes: Annotated[tuple[NodePath, ...], Count(0, 512)] = ()


@dataclass(frozen=True)
class Rendered:
    """`files` by path below the root; `bound` are host paths that must be there, with what asks for each."""

    digest: str
    files: Mapping[str, bytes]
    bound: Mapping[str, str]


def render(policy: Policy, facts: Facts) -> Rendered:
    """ConfigError when the policy cannot be held by units."""
    check_memory(policy)
    digest = policy.digest()
    bound = _bound(policy, facts)
    for path, use in bound.items():
        _check_path(path, use)
        if use.startswith("environments.") and _within(path, _OF_THE_VIEW):
            raise ConfigError(
                f"cannot bind {path} for {use}: the step has that folder of its own", hint="Move it, to /opt for example."
            )
    files = {
        STEP: _step(policy, facts, digest),
        SLICE: _slice(policy),
        RUNNER: _runner(bound),
        # The agent does not read the policy; without this it demands a certificate (agent/nodefile.py).
        AGENT: _text("Service", [f"Environment={CERTIFICATE_VARIABLE}={policy.client_certificate}"], ""),
        LOCK: policy.canonical(),  # last: it is what the digests of the others are compared with
    }
    return Rendered(digest, files, bound)


def check_memory(policy: Policy) -> None:
    """ConfigError when a full /tmp would be an OOM kill."""
    limits = policy.limits
    needed, limit = limits.tmp_bytes + limits.shm_bytes + _ROOM_BESIDE_TMPFS, limits.memory_bytes + _OWN_MEMORY_BYTES
    if needed > limit:
        raise ConfigError(
            "cannot hold limits.memory_bytes: /tmp and /dev/shm count as memory, expected at most"
            f" {_mib(limit - _ROOM_BESIDE_TMPFS)} in tmp_bytes and shm_bytes, found {_mib(limits.tmp_bytes + limits.shm_bytes)}",
            hint="Raise limits.memory_bytes, or lower tmp_bytes or shm_bytes.",
        )


def _bound(policy: Policy, facts: Facts) -> dict[str, str]:
    result: dict[str, str] = {}
    for name, binds in sorted(facts.environments.items()):
        for bind in _own(binds):
            result.setdefault(bind.source, f"environments.{name}")
    for name, rule in sorted(policy.data_sets.items()):
        result.setdefault(rule.path, f"data_sets.{name}")
    return result


def _own(binds: Sequence[Bind]) -> list[Bind]:
    """What the unit does not show already."""
    return [bind for bind in binds if not _within(bind.target, SHOWN_BY_THE_UNIT)]


def _step(policy: Policy, facts: Facts, digest: str) -> bytes:
    limits = policy.limits
    lines = [
        f"Environment={POLICY_VARIABLE}={digest}",
        *_memory(limits.memory_bytes + _OWN_MEMORY_BYTES),
        f"TasksMax={limits.processes + _OWN_TASKS}",
        f"CPUQuota={100 * limits.cpus}%",
        # The launcher lowers these for the step; it cannot raise them.
        f"LimitNOFILE={max(limits.open_files, 1024)}",
        f"LimitFSIZE={max(limits.file_size_bytes, limits.stdout_bytes)}",
        "LimitCORE=0",
        "TemporaryFileSystem=",
        "TemporaryFileSystem=/:ro,mode=755,size=1M",
        "TemporaryFileSystem=/run:ro,mode=755,size=1M",
        *(f"TemporaryFileSystem={path}:ro,mode=755,size=64k" for path in ("/home", "/root", "/run/user")),
        f"TemporaryFileSystem=/tmp:mode=1777,size={limits.tmp_bytes},nr_inodes=16k,nosuid,nodev,noexec",
        f"TemporaryFileSystem=/dev/shm:mode=1777,size={limits.shm_bytes},nr_inodes=16k,nosuid,nodev,noexec",
    ]
    lines += _devices(policy, facts)
    shown: set[str] = set()
    for name, binds in sorted(facts.environments.items()):
        for bind in _own(binds):
            if bind.target not in shown:
                shown.add(bind.target)
                lines += [f"# environments.{name}", f"BindReadOnlyPaths={_word(bind.source, bind.target)}"]
                lines += [f"ExecPaths={_word(bind.target)}"] if bind.executable else []
    for name, rule in sorted(policy.data_sets.items()):
        lines += [f"# data_sets.{name}", f"BindReadOnlyPaths={_word(rule.path, f'/data/{name}')}"]
    return _text("Service", lines, digest)


def _devices(policy: Policy, facts: Facts) -> list[str]:
    """The unit's own /dev stays (PrivateDevices=, DevicePolicy=closed); the nodes are laid into it, and nothing else is.

    Written out, so that the drop-in says what holds.  With "-": where a card is gone the unit starts all the same, and its
    launcher refuses the run by name (step/devices.py); without it the unit would only fail.
    """
    if not policy.devices:
        return []
    names = [path.removeprefix("/dev/") for path in facts.nodes]
    missing = lacking(policy.devices, names)
    if missing or tuple(names) != chosen(policy.devices, names):
        raise ConfigError(
            f"cannot grant devices {', '.join(policy.devices)}: expected {', '.join(missing) or 'its nodes and no other'},"
            f" found {', '.join(names) or 'none'}",
            code="device-missing",
            hint="Apply the policy on the host that has the device, with its driver loaded.",
        )
    lines = [f"# devices: {', '.join(policy.devices)}", "PrivateDevices=yes", "DevicePolicy=closed"]
    for path in facts.nodes:
        lines += [f"DeviceAllow={path} rw", f"BindPaths=-{path}"]
    return lines


def _slice(policy: Policy) -> bytes:
    limits = policy.limits
    return _text(
        "Slice",
        [
            *_memory(limits.memory_bytes + _OWN_MEMORY_BYTES + _SPARES_BYTES),
            f"TasksMax={limits.processes + _OWN_TASKS + _SPARES_TASKS}",
            f"CPUQuota={100 * limits.cpus + 100}%",
        ],
        policy.digest(),
    )


def _runner(bound: Mapping[str, str]) -> bytes:
    """The runner hashes environments and data sets; those in a home folder its own unit would hide."""
    homes = [path for path in sorted(bound) if _within(path, _HOMES)]
    lines = ["ProtectHome=tmpfs", *(f"BindReadOnlyPaths={_word(path)}" for path in homes)] if homes else []
    return _text("Service", lines, "")


def _memory(limit_bytes: int) -> list[str]:
    return [f"MemoryMax={limit_bytes}", "MemorySwapMax=0"]


def _text(section: str, lines: Sequence[str], digest: str) -> bytes:
    head = ["# Written by `scaleoutctl policy apply`: change /etc/scaleoutd/policy.yaml, not this file."]
    head += [f"# Policy {digest}"] if digest else []
    return ("\n".join([*head, f"[{section}]", *lines]) + "\n").encode()


def _word(*paths: str) -> str:
    """SOURCE:TARGET as one word of a list; `_check_path` has refused what could be read otherwise."""
    text = ":".join(dict.fromkeys(path.replace("%", "%%") for path in paths))
    return f'"{text}"' if " " in text else text


def _check_path(path: str, use: str) -> None:
    if not _PLAIN_PATH.fullmatch(path):
        raise ConfigError(
            f"cannot bind {path!r} for {use}: a path with ':', quotes or a backslash is not for units", hint="Rename it."
        )
    if "/../" in f"{path}/" or "/./" in f"{path}/" or "//" in path or (path.endswith("/") and path != "/"):
        raise ConfigError(f"cannot bind {path} for {use}: expected a path without '.', '..' and double or last '/'")
    if path in ("/", "/home", "/root", "/etc", "/var", "/var/lib", "/var/lib/scaleoutd"):
        raise ConfigError(
            f"cannot bind {path} for {use}: it is far more than one environment or data set", hint="Name the folder."
        )
    if _within(path, _NOT_FOR_FILES):
        raise ConfigError(
            f"cannot bind {path} for {use}: units have that folder of their own", hint="Move it, to /srv for example."
        )
    if path.startswith("/var/lib/scaleoutd/") and not path.startswith("/var/lib/scaleoutd/data/"):
        raise ConfigError(f"cannot bind {path} for {use}: it is a room's own folder", hint="Move it, to /srv for example.")


def _within(path: str, folders: Sequence[str]) -> bool:
    return any(path == folder or path.startswith(folder + "/") for folder in folders)


def _mib(size: int) -> str:
    return f"{size // MIB} MiB"
