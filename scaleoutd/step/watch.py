# SPDX-License-Identifier: Apache-2.0
"""What pid 1 of a run measures: processes, memory, processor time, and the size of scratch.

Reads /proc and scratch as the step's own uid, so nothing here needs a privilege.  Everything read was written by the step:
numbers are taken, names are not, and every look at a thing that vanished meanwhile is simply left out.
"""

from __future__ import annotations

import os
import resource
import stat
import time
from dataclasses import dataclass

from scaleoutd.core.plan import Limits

TICK_S = 0.1
SPACE_S = 0.01  # between two looks at the free space of the disk: what a fast disk takes in that time is the overshoot
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")
_MAX_ENTRIES = 1_000_000


@dataclass(frozen=True)
class Sample:
    """`tasks` counts threads too, as RLIMIT_NPROC and the pids cgroup do."""

    processes: int
    tasks: int
    memory_bytes: int
    cpu_s: float


@dataclass(frozen=True)
class Tree:
    """`largest_bytes`: apparent size of the largest file; `bytes`: the larger of apparent and allocated size of all."""

    bytes: int
    largest_bytes: int


def _stat_fields(pid: int) -> list[bytes] | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name in parentheses is the step's to choose: fields are counted from the last parenthesis (proc(5)).
            return file.read(4096).rpartition(b")")[2].split()
    except OSError:
        return None


def members(root_pid: int | None) -> list[int]:
    """All processes but pid 1, or with `root_pid` the descendants of that process."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    if root_pid is None:
        return [pid for pid in pids if pid != 1]
    parents: dict[int, int] = {}
    for pid in pids:
        fields = _stat_fields(pid)
        if fields:
            parents[pid] = int(fields[1])
    found: set[int] = {root_pid}
    grew = True
    while grew:
        new = {pid for pid, parent in parents.items() if parent in found and pid not in found}
        grew = bool(new)
        found |= new
    return sorted(found - {root_pid})


def sample(pids: list[int]) -> Sample:
    """Sums over `pids`; memory without what is shared with files.  Children that pid 1 reaped count as well."""
    reaped = resource.getrusage(resource.RUSAGE_CHILDREN)
    memory, ticks, alive, tasks = 0, 0, 0, 0
    for pid in pids:
        fields = _stat_fields(pid)
        if not fields or len(fields) < 18:
            continue
        alive += fields[0] != b"Z"
        tasks += int(fields[17])  # num_threads
        ticks += sum(int(value) for value in fields[11:15])  # utime, stime, cutime, cstime
        try:
            with open(f"/proc/{pid}/statm", "rb") as file:
                _, resident, shared = file.read(256).split()[:3]
                memory += max(0, int(resident) - int(shared)) * _PAGE
        except (OSError, ValueError):
            continue
    return Sample(alive, tasks, memory, reaped.ru_utime + reaped.ru_stime + ticks / _TICKS)


def space_used(path: str) -> int:
    """Bytes in use on the file system of `path`, whoever uses them: what changes at once when somebody writes, for the price of
    one system call.  0 when it cannot be asked."""
    try:
        found = os.statvfs(path)
    except OSError:
        return 0
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def measure_tree(path: str, deadline: float | None = None) -> Tree:
    """Size of everything below `path`, links not followed; stops counting at `deadline` (monotonic seconds)."""
    allocated = apparent = largest = entries = 0
    try:
        pending = [os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)]
    except OSError:
        return Tree(0, 0)
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(folder) as items:
                for item in items:
                    entries += 1
                    if entries > _MAX_ENTRIES or (deadline is not None and not entries % 512 and time.monotonic() > deadline):
                        break
                    info = item.stat(follow_symlinks=False)
                    allocated += info.st_blocks * 512
                    if stat.S_ISREG(info.st_mode):
                        apparent += info.st_size
                        largest = max(largest, info.st_size)
                    elif stat.S_ISDIR(info.st_mode) and len(pending) < 256:
                        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                        pending.append(os.open(item.name, flags, dir_fd=folder))
        except OSError:
            pass  # vanished, or made unreadable by the step: what was counted so far stands
        os.close(folder)
    return Tree(max(allocated, apparent), largest)


class Watcher:
    """Limits that no kernel object holds for the whole run: total CPU, memory without a cgroup, scratch.

    Scratch is measured by a walk, at regular times and as soon as the disk has taken half of what is left since the last one;
    looking at the disk's free space costs next to nothing, so that is done every `SPACE_S`.
    """

    def __init__(self, scratch: str, limits: Limits, *, memory: bool, root_pid: int | None) -> None:
        """`memory`: no cgroup holds it.  `root_pid`: as of `members`."""
        self.most_tasks = 0
        self.most_cpu_s = 0.0
        self.largest_scratch = 0
        self._scratch, self._limits, self._memory, self._root_pid = scratch, limits, memory, root_pid
        self._next_look = 0.0
        self._next_walk = 0.0
        self._walk_took = 0.0
        self._walk_ended = 0.0
        self._scratch_bytes = 0
        self._space_then = space_used(scratch)

    def look(self) -> str | None:
        """The code of a limit that is exceeded."""
        now = time.monotonic()
        if self._must_walk(now) and self._walk() > self._limits.scratch_bytes:
            return "limit-scratch"
        if now < self._next_look:
            return None
        found = self.look_at_processes()
        code = None
        if found.cpu_s >= self._limits.cpu_s:
            code = "limit-cpu"
        elif self._memory and found.memory_bytes > self._limits.memory_bytes:
            code = "limit-memory"
        # A look at many processes may take long: at most a fifth of the time goes into looking.
        self._next_look = time.monotonic() + max(TICK_S / 2, 4 * (time.monotonic() - now))
        return code

    def look_at_processes(self) -> Sample:
        """All that live now; the highest figures are kept."""
        found = sample(members(self._root_pid))
        self.most_tasks = max(self.most_tasks, found.tasks)
        self.most_cpu_s = max(self.most_cpu_s, found.cpu_s)
        return found

    def _must_walk(self, now: float) -> bool:
        if now >= self._next_walk:
            return True
        left = self._limits.scratch_bytes - self._scratch_bytes
        taken = space_used(self._scratch) - self._space_then
        # Others write to the same disk: never more than half of the time goes into walks.
        return taken > left // 2 and now - self._walk_ended >= self._walk_took

    def _walk(self) -> int:
        start = time.monotonic()
        self._space_then = space_used(self._scratch)
        self._scratch_bytes = measure_tree(self._scratch, start + 2.0).bytes
        self.largest_scratch = max(self.largest_scratch, self._scratch_bytes)
        self._walk_ended = time.monotonic()
        self._walk_took = self._walk_ended - start
        self._next_walk = self._walk_ended + max(TICK_S, 4 * self._walk_took)
        return self._scratch_bytes
