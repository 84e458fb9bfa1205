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
