# SPDX-License-Identifier: Apache-2.0
"""Limits of a run: rlimits for each process, a cgroup for all of it where the launcher can make one.

cgroup v1 (memory, pids) or v2; below the launcher's own group, made before the run and removed after it.  Without one the
memory of the whole run is only watched, and the result says "partial".
"""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass, field

from scaleoutd.core.plan import Enforcement, Limits

MIB = 1 << 20
_CPU_GRACE_S = 2
# Programs map far more than they touch (thread stacks, arenas, files); the sum of what is touched is watched beside this.
_ADDRESS_SPACE_FACTOR = 4
_ADDRESS_SPACE_FLOOR = 4 * 1024 * MIB


def rlimits_of(limits: Limits, *, others: int, address_space: bool) -> list[tuple[int, int, int]]:
    """(resource, soft, hard) for the step.  `others`: processes of ours that count as the step's uid."""
    processes = limits.processes + others
    result = [
        # SIGXCPU at the soft limit is what the result reports; SIGKILL at the hard one is for those that ignore it.
        (resource.RLIMIT_CPU, limits.cpu_s, limits.cpu_s + _CPU_GRACE_S),
        (resource.RLIMIT_FSIZE, limits.file_size_bytes, limits.file_size_bytes),
        (resource.RLIMIT_NOFILE, limits.open_files, limits.open_files),
        (resource.RLIMIT_NPROC, processes, processes),
        # 1, not 0: a core_pattern that is a pipe is only stopped by 1 (core(5)).
        (resource.RLIMIT_CORE, 1, 1),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
        (resource.RLIMIT_NICE, 0, 0),
        (resource.RLIMIT_RTPRIO, 0, 0),
    ]
    if address_space:
        size = max(_ADDRESS_SPACE_FACTOR * limits.memory_bytes, _ADDRESS_SPACE_FLOOR)
        result.append((resource.RLIMIT_AS, size, size))
    return result


@dataclass
class Cgroup:
    """The group of one run.  `memory` and `pids` are folders, the same one on v2; None where it could not be made."""

    memory: str | None = None
    pids: str | None = None
    version: int = 0
    folders: list[str] = field(default_factory=list)

    def entrances(self) -> list[str]:
        """Files into which a process writes 0 to enter."""
        return [f"{folder}/cgroup.procs" for folder in self.folders]

    def oom_kills(self) -> int:
        if self.memory is None:
            return 0
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        return _counter(f"{self.memory}/{name}", "oom_kill")

    def forks_refused(self) -> int:
        return 0 if self.pids is None else _counter(f"{self.pids}/pids.events", "max")

    def remove(self) -> None:
        """Removes the groups; a process that was killed just now may still be leaving."""
        deadline = time.monotonic() + 2.0
        for folder in self.folders:
            while True:
                try:
                    os.rmdir(folder)
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        break
                    time.sleep(0.002)
        self.folders.clear()


def make_cgroup(limits: Limits, name: str, others: int) -> Cgroup:
    """A group for the run, with as many controllers as this host lets the caller use.  `others`: processes of ours in it."""
    group = Cgroup()
    homes = _own_groups()
    memory = [("memory.limit_in_bytes", limits.memory_bytes)]
    if "memory" in homes:
        group.version = 1
        group.memory = _make(group, f"{homes['memory']}/{name}", memory)
        if "pids" in homes:
            group.pids = _make(group, f"{homes['pids']}/{name}", [("pids.max", limits.processes + others)])
        return group
    if "" in homes:
        group.version = 2
        both = [("memory.max", limits.memory_bytes), ("memory.swap.max", 0), ("pids.max", limits.processes + others)]
        group.memory = group.pids = _make(group, f"{homes['']}/{name}", both)
    return group


def _make(group: Cgroup, folder: str, settings: list[tuple[str, int]]) -> str | None:
    try:
        os.mkdir(folder)
    except OSError:
        return None
    try:
        for name, value in settings:
            fd = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, str(value).encode())
            finally:
                os.close(fd)
    except OSError:
        os.rmdir(folder)
        return None
    group.folders.append(folder)
    return folder


def _own_groups() -> dict[str, str]:
    """Controller → folder of this process's own group; the unified hierarchy has the name ""."""
    mounts: dict[str, str] = {}
    with open("/proc/self/mountinfo") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            kind, _, options = after.split(" ", 2)
            fields = before.split(" ")
            if kind == "cgroup" and fields[3] == "/":
                mounts.update(dict.fromkeys(options.strip().split(","), fields[4]))
            elif kind == "cgroup2" and fields[3] == "/":
                mounts[""] = fields[4]
    result: dict[str, str] = {}
    with open("/proc/self/cgroup") as file:
        for line in file:
            _, controllers, path = line.strip().split(":", 2)
            for controller in controllers.split(","):
                if controller in mounts:
                    result[controller] = mounts[controller] + path.rstrip("/")
    return result


def _counter(path: str, name: str) -> int:
    try:
        with open(path) as file:
            for line in file:
                key, _, value = line.partition(" ")
                if key == name:
                    return int(value)
    except OSError:
        return 0
    return 0


def enforcement(group: Cgroup, limits: Limits) -> tuple[Enforcement, ...]:
    """How each limit is held in this run."""
    memory = group.memory is not None
    kind = f"cgroup-v{group.version}"
    return (
        Enforcement("wall-clock", "enforced", ("launcher",)),
        Enforcement("cpu", "enforced", ("rlimit", "watcher")),
        Enforcement("memory", "enforced" if memory else "partial", (kind,) if memory else ("rlimit-as", "watcher")),
        Enforcement("processes", "enforced", (kind, "rlimit") if group.pids else ("rlimit",)),
        Enforcement("open-files", "enforced", ("rlimit",)),
        Enforcement("file-size", "enforced", ("rlimit",)),
        Enforcement("scratch", "partial", ("watcher",)),
        Enforcement("stdout", "enforced", ("launcher",)),
        Enforcement("tmp", "enforced", ("tmpfs-size",)),
        Enforcement("shm", "enforced", ("tmpfs-size",)),
    )
