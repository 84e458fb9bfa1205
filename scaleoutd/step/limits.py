# SPDX-License-Identifier: Apache-2.0
"""Limits of a run: rlimits for each process, a cgroup for all of it where the launcher can make one.

cgroup v1 (memory, pids) or v2, below the group that the launcher was started in.  Without one the memory of the whole run
is only watched, and the result says "partial".
"""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Mapping

from scaleoutd.core.plan import Enforcement, Limits

MIB = 1 << 20
GROUP_PREFIX = "scaleoutd-step-"
_CPU_GRACE_S = 2
_OWN_MEMORY_BYTES = 24 * MIB  # launcher and pid 1, which are in the group too
_OWN_PROCESSES = 2
_TRIES = 3
# Programs map far more than they touch (thread stacks, arenas, files); the sum of what is touched is watched beside this.
_ADDRESS_SPACE_FACTOR = 4
_ADDRESS_SPACE_FLOOR = 4 * 1024 * MIB


def rlimits_of(limits: Limits, *, address_space: bool, processes: int | None) -> list[tuple[int, int, int]]:
    """(resource, soft, hard) for the step.

    `processes` None: a cgroup holds them.  RLIMIT_NPROC counts all of a uid on the host, so a second node of root on the same
    host, whose slots have the same uids, would eat into it.
    """
    # One file can be no larger than all of them together may be.
    file_size = min(limits.file_size_bytes, limits.scratch_bytes)
    result = [
        # SIGXCPU at the soft limit is what the result reports; SIGKILL at the hard one is for those that ignore it.
        (resource.RLIMIT_CPU, limits.cpu_s, limits.cpu_s + _CPU_GRACE_S),
        (resource.RLIMIT_FSIZE, file_size, file_size),
        (resource.RLIMIT_NOFILE, limits.open_files, limits.open_files),
        # 1, not 0: a core_pattern that is a pipe is only stopped by 1 (core(5)).
        (resource.RLIMIT_CORE, 1, 1),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
        (resource.RLIMIT_NICE, 0, 0),
        (resource.RLIMIT_RTPRIO, 0, 0),
    ]
    if processes is not None:
        result.append((resource.RLIMIT_NPROC, processes, processes))
    if address_space:
        size = max(_ADDRESS_SPACE_FACTOR * limits.memory_bytes, _ADDRESS_SPACE_FLOOR)
        result.append((resource.RLIMIT_AS, size, size))
    return result


def group_name() -> str:
    """Of a new group.  A pid alone is not enough: launchers in two pid namespaces below one group have the same numbers, and the
    second would have no group, so a memory limit that is only watched."""
    return f"{GROUP_PREFIX}{os.getpid()}-{os.urandom(6).hex()}"


class Cgroup:
    """The group of one launcher and all it runs: made and entered at start, its limits written when a run begins.

    Entering a group costs a grace period of RCU (10 to 20 ms on a quiet machine), because the kernel stops every fork for
    it; writing a limit costs nothing.  So the launcher enters while it is warm and its children are born inside.  What the
    launcher itself needs is added to the limits, and oom_score_adj makes the step die first.
    """

    def __init__(self) -> None:
        self.memory: str | None = None
        self.pids: str | None = None
        self.version = 0
        self._fixed = False
        self._homes: dict[str, str] = {}  # group → the group above it
        self._before = (0, 0)

    def enter(self, name: str) -> None:
        """Makes the groups that this host lets the caller make, and moves the caller into them."""
        homes = _own_groups()
        if "memory" in homes:
            self.version = 1
            self.memory = self._make(homes["memory"], name, ("memory.limit_in_bytes",))
            if "pids" in homes:
                self.pids = self._make(homes["pids"], name, ("pids.max",))
        elif "" in homes:
            self.version = 2
            self.memory = self.pids = self._make(homes[""], name, ("memory.max", "pids.max"))

    def adopt(self) -> None:
        """Takes the group that systemd made for the unit and limited: read only, and never left."""
        homes = _own_groups()
        self._fixed = True
        if "" in homes and os.path.exists(f"{homes['']}/memory.max"):
            self.version, self.memory = 2, homes[""]
            self.pids = homes[""] if os.path.exists(f"{homes['']}/pids.max") else None
        elif "memory" in homes and os.path.exists(f"{homes['memory']}/memory.limit_in_bytes"):
            self.version, self.memory = 1, homes["memory"]
            self.pids = homes.get("pids")

    def apply(self, limits: Limits) -> None:
        """Writes the limits of a run; OSError when the kernel refuses one, and then there is no run."""
        self._before = (self._oom_kills(), self._forks_refused())
        if self._fixed:
            return
        memory = limits.memory_bytes + _OWN_MEMORY_BYTES
        if self.memory is not None:
            _write(f"{self.memory}/{'memory.limit_in_bytes' if self.version == 1 else 'memory.max'}", memory)
        if self.memory is not None and self.version == 2 and os.path.exists(f"{self.memory}/memory.swap.max"):
            _write(f"{self.memory}/memory.swap.max", 0)
        if self.pids is not None:
            _write(f"{self.pids}/pids.max", limits.processes + _OWN_PROCESSES)

    @property
    def holds_processes(self) -> bool:
        """Whether the group's bound is the plan's own: that of a unit is the node's, and a plan may ask for less."""
        return self.pids is not None and not self._fixed

    def oom_kills(self) -> int:
        """In this run."""
        return self._oom_kills() - self._before[0]

    def forks_refused(self) -> int:
        return self._forks_refused() - self._before[1]

    def leave(self) -> None:
        """Moves the caller back and removes the groups; what was killed just now may still be leaving."""
        deadline = time.monotonic() + 2.0
        for folder, home in self._homes.items():
            try:
                _write(f"{home}/cgroup.procs", 0)
            except OSError:
                continue
            while not _removed(folder) and time.monotonic() < deadline:
                time.sleep(0.002)
        self._homes.clear()

    def _make(self, home: str, name: str, needed: tuple[str, ...]) -> str | None:
        """Another launcher that removes what was abandoned may take a group away before we are in it: then once more."""
        for _ in range(_TRIES):
            folder = self._try_to_make(home, name, needed)
            if folder is not None:
                return folder
        return None

    def _try_to_make(self, home: str, name: str, needed: tuple[str, ...]) -> str | None:
        folder = f"{home}/{name}"
        try:
            _remove_abandoned(home)
            os.mkdir(folder)
        except OSError:
            return None
        try:
            if not all(os.access(f"{folder}/{file}", os.W_OK) for file in needed):
                raise PermissionError(folder)
            _write(f"{folder}/cgroup.procs", 0)
        except OSError:
            _removed(folder)
            return None
        self._homes[folder] = home
        return folder

    def _oom_kills(self) -> int:
        if self.memory is None:
            return 0
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        return _counter(f"{self.memory}/{name}", "oom_kill")

    def _forks_refused(self) -> int:
        return 0 if self.pids is None else _counter(f"{self.pids}/pids.events", "max")


def _remove_abandoned(home: str) -> None:
    """Groups of launchers that were killed; a group with a process in it cannot be removed."""
    for name in os.listdir(home):
        if name.startswith(GROUP_PREFIX):
            _removed(f"{home}/{name}")


def _removed(folder: str) -> bool:
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _write(path: str, value: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(value).encode())
    finally:
        os.close(fd)


def _own_groups() -> dict[str, str]:
    """Controller → folder of this process's own group; the unified hierarchy has the name "".

    A mount may show a part of a hierarchy: all of it on a host, its own group alone in a unit's view.
    """
    mounts: dict[str, list[tuple[str, str]]] = {}
    with open("/proc/self/mountinfo") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            kind, _, options = after.split(" ", 2)
            root, target = before.split(" ")[3:5]
            if kind in ("cgroup", "cgroup2"):
                for controller in options.strip().split(",") if kind == "cgroup" else ("",):
                    mounts.setdefault(controller, []).append((root.rstrip("/"), target))
    result: dict[str, str] = {}
    with open("/proc/self/cgroup") as file:
        for line in file:
            _, controllers, path = line.strip().split(":", 2)
            for controller in controllers.split(","):
                for root, target in mounts.get(controller, ()):
                    if f"{path}/".startswith(f"{root}/"):
                        result[controller] = target + path.rstrip("/")[len(root) :]
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


def behind(report: Mapping[str, int], bounds: Limits, group: Cgroup) -> str | None:
    """The code of the limit that made the main process fail, as far as the kernel lets us know; `report` is pid 1's."""
    status = report["status"]
    if report["scratch_bytes"] > bounds.scratch_bytes:
        return "limit-scratch"
    if status == 0:
        return None
    if status == -signal.SIGXCPU:
        return "limit-cpu"
    # Before the processor time: SIGKILL comes from both, and only this one leaves an event that says so.
    if group.oom_kills():
        return "limit-memory"
    if status == -signal.SIGKILL and report["cpu_ms"] >= bounds.cpu_s * 1000:
        return "limit-cpu"
    if report["largest_bytes"] >= bounds.scratch_bytes:  # RLIMIT_FSIZE is the smaller of the two
        return "limit-scratch"
    if status == -signal.SIGXFSZ or report["largest_bytes"] >= bounds.file_size_bytes:
        return "limit-file-size"
    if group.forks_refused() or report["fork_refused"] or report["most_tasks"] >= bounds.processes:
        return "limit-processes"
    return None


def enforcement(group: Cgroup, limits: Limits) -> tuple[Enforcement, ...]:
    """How each limit is held in this run."""
    memory = group.memory is not None
    kind = f"cgroup-v{group.version}"
    return (
        Enforcement("wall-clock", "enforced", ("launcher",)),
        Enforcement("cpu", "enforced", ("rlimit", "watcher")),
        Enforcement("memory", "enforced" if memory else "partial", (kind,) if memory else ("rlimit-as", "watcher")),
        Enforcement("processes", "enforced", _process_providers(group, kind)),
        Enforcement("open-files", "enforced", ("rlimit",)),
        Enforcement("file-size", "enforced", ("rlimit",)),
        Enforcement("scratch", "partial", ("watcher",)),
        Enforcement("stdout", "enforced", ("launcher",)),
        Enforcement("tmp", "enforced", ("tmpfs-size",)),
        Enforcement("shm", "enforced", ("tmpfs-size",)),
    )


def _process_providers(group: Cgroup, kind: str) -> tuple[str, ...]:
    if group.holds_processes:
        return (kind,)
    return (kind, "rlimit") if group.pids is not None else ("rlimit",)
