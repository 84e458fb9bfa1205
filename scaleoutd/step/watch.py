# SPDX-License-Identifier: Apache-2.0
"""What pid 1 of a run measures: processes, memory, processor time, and the size of scratch.

Reads /proc and scratch as the step's own uid, so nothing here needs a privilege.  Everything read was written by the step:
numbers are taken, names are not, and every look at a thing that vanished meanwhile is simply left out.
"""

from __future__ import annotations

import errno
import os
import resource
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass

from scaleoutd.core.plan import Limits

TICK_S = 0.1
SPACE_S = 0.01  # between two looks at the free space of the disk: what a fast disk takes in that time is the overshoot
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")
_PIECE_S = 0.05  # of a walk at a time: the other limits are looked at in between
NAME_BYTES = 4096
MAX_DEPTH = 128
_RESERVE_BYTES = 64 << 20
_RESERVE_NODES = 4096


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


@dataclass(frozen=True)
class Space:
    """Of the file system of a folder, whoever takes it: what changes at once when somebody writes, for the price of one system
    call.  All 0 when it cannot be asked."""

    used_bytes: int = 0
    free_bytes: int = 0
    total_bytes: int = 0
    used_nodes: int = 0
    free_nodes: int = 0
    total_nodes: int = 0  # 0 where the file system makes them as they are needed

    @classmethod
    def of(cls, path: str) -> Space:
        try:
            found = os.statvfs(path)
        except OSError:
            return cls()
        size = found.f_frsize
        return cls(
            (found.f_blocks - found.f_bfree) * size, found.f_bavail * size, found.f_blocks * size,
            found.f_files - found.f_ffree, found.f_favail, found.f_files,
        )  # fmt: skip

    def lacks_bytes(self) -> bool:
        """Less is left than the node needs to go on: for its trail, its tables, what a run leaves in its outbox."""
        return self.free_bytes < min(_RESERVE_BYTES, self.total_bytes // 16)

    def lacks_nodes(self) -> bool:
        return self.free_nodes < min(_RESERVE_NODES, self.total_nodes // 16)


class Walk:
    """A look at everything below a folder, links not followed, that can be taken in pieces.

    Each name counts as `NAME_BYTES` at least: an empty file takes no block and still one of the disk's inodes.  A folder that its
    owner has closed, or that lies deeper than `MAX_DEPTH`, makes the tree `hidden`: it could hold anything.
    """

    def __init__(self, path: str) -> None:
        self.hidden = False
        self._allocated = self._apparent = self._largest = 0
        self._open: list[tuple[int, Iterator[os.DirEntry[str]]]] = []
        self._enter(path, None)

    def go_on(self, until: float) -> bool:
        """Looks until `until` (monotonic seconds), and a moment at least; True when nothing is left to look at."""
        seen = 0
        while self._open:
            folder, items = self._open[-1]
            item = _next(items)
            if item is None:
                self._leave()
            else:
                self._count(folder, item)
            seen += 1
            if not seen % 256 and time.monotonic() >= until:
                break
        return not self._open

    @property
    def tree(self) -> Tree:
        """What was counted so far."""
        return Tree(max(self._allocated, self._apparent), self._largest)

    def close(self) -> None:
        while self._open:
            self._leave()

    def _count(self, folder: int, item: os.DirEntry[str]) -> None:
        try:
            info = item.stat(follow_symlinks=False)
        except OSError:
            return  # vanished meanwhile
        self._allocated += max(info.st_blocks * 512, NAME_BYTES)
        if stat.S_ISREG(info.st_mode):
            self._apparent += info.st_size
            self._largest = max(self._largest, info.st_size)
        elif stat.S_ISDIR(info.st_mode):
            self._enter(item.name, folder)

    def _enter(self, name: str, folder: int | None) -> None:
        if len(self._open) >= MAX_DEPTH:
            self.hidden = True
            return
        try:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        except OSError as exc:
            # Vanished, or no folder any more: the next walk sees what it is then.
            self.hidden |= exc.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
            return
        self._open.append((fd, os.scandir(fd)))

    def _leave(self) -> None:
        fd, items = self._open.pop()
        del items
        os.close(fd)


def _next(items: Iterator[os.DirEntry[str]]) -> os.DirEntry[str] | None:
    try:
        return next(items, None)
    except OSError:
        return None  # the folder was removed meanwhile


def measure_tree(path: str, until: float) -> tuple[Tree, bool]:
    """Size of everything below `path`, and whether that is all of it: nothing hidden, nothing left at `until` (monotonic s)."""
    walk = Walk(path)
    try:
        ended = walk.go_on(until)
        return walk.tree, ended and not walk.hidden
    finally:
        walk.close()


class Watcher:
    """Limits that no kernel object holds for the whole run: total CPU, memory without a cgroup, scratch.

    Scratch is measured by a walk, at regular times and as soon as the disk has taken half of what is left since the last one;
    looking at the disk's free space costs next to nothing, so that is done every `SPACE_S`.  A file that has lost its name is in
    no walk, so a run also ends when the disk is about to be full and has, since the run began, taken more than the run may.
    """

    def __init__(self, scratch: str, limits: Limits, *, memory: bool, root_pid: int | None) -> None:
        """`memory`: no cgroup holds it.  `root_pid`: as of `members`."""
        self.most_tasks = 0
        self.most_cpu_s = 0.0
        self.largest_scratch = 0
        self._scratch, self._limits, self._memory, self._root_pid = scratch, limits, memory, root_pid
        self._next_look = 0.0
        self._next_walk = 0.0
        self._next_piece = 0.0
        self._walk: Walk | None = None
        self._walk_took = 0.0
        self._scratch_bytes = 0
        self._at_start = self._at_walk = Space.of(scratch)

    def look(self) -> str | None:
        """The code of a limit that is exceeded."""
        now = time.monotonic()
        space = Space.of(self._scratch)
        if self._is_disk_taken(space) or self._measure(now, space):
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

    def _is_disk_taken(self, space: Space) -> bool:
        """Somebody took more than this run may and the disk is about to be full: the node goes before the run."""
        most = self._limits.scratch_bytes
        bytes_taken = space.used_bytes - self._at_start.used_bytes > most
        nodes_taken = space.used_nodes - self._at_start.used_nodes > most // NAME_BYTES
        taken = (bytes_taken and space.lacks_bytes()) or (nodes_taken and space.lacks_nodes())
        if taken:
            self.largest_scratch = max(self.largest_scratch, most + 1)
        return taken

    def _measure(self, now: float, space: Space) -> bool:
        """Goes on with the walk, or begins the next; whether the run has more than it may, or hides something."""
        if self._walk is None:
            if not self._must_walk(now, space):
                return False
            self._walk, self._walk_took, self._next_piece, self._at_walk = Walk(self._scratch), 0.0, now, space
        if now < self._next_piece:
            return False
        walk, start = self._walk, time.monotonic()
        ended = walk.go_on(start + _PIECE_S)
        took = time.monotonic() - start
        self._walk_took += took
        self._next_piece = start + 2 * took  # at most half of the time goes into a walk
        found = max(walk.tree.bytes, self._limits.scratch_bytes + 1 if walk.hidden else 0)
        self.largest_scratch = max(self.largest_scratch, found)
        if ended:
            self._walk, self._scratch_bytes = None, found
            self._next_walk = start + took + max(TICK_S, 4 * self._walk_took)
        return found > self._limits.scratch_bytes

    def _must_walk(self, now: float, space: Space) -> bool:
        if now >= self._next_walk:
            return True
        left = self._limits.scratch_bytes - self._scratch_bytes
        taken = space.used_bytes - self._at_walk.used_bytes
        # Others write to the same disk: never more than half of the time goes into walks.
        return taken > left // 2 and now >= self._next_piece
