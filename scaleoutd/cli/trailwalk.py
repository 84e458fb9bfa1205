# SPDX-License-Identifier: Apache-2.0
"""Verification of a trail's segments on all processors: children read stretches of them, this process puts them together.

A stretch is some 100 whole lines of one segment.  Child i of n reads every n-th stretch and writes what core/trailbatch makes of
it into its pipe, in order; a full pipe makes it wait, so memory does not grow with the trail.  What a child cannot say, or says
no more because it is gone, is read here line by line: that is slower, and never wrong.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NoReturn

from scaleoutd.core import trailbatch
from scaleoutd.core.trail import Batch, Walk
from scaleoutd.durable import storage_errors
from scaleoutd.errors import ScaleoutError

STRETCH_BYTES = 128 * 1024
MAX_CHILDREN = 8
# A smaller trail is read before the children would have begun.
WORTH_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Stretch:
    """Whole lines: `begin` to `end` of a segment."""

    path: Path
    begin: int
    end: int

    def lines(self) -> list[bytes]:
        """Without newlines; fewer when the file became shorter."""
        with storage_errors(f"read {self.path}"), self.path.open("rb") as file:
            file.seek(self.begin)
            data = file.read(self.end - self.begin)
        return data.split(b"\n")[:-1]


def stretches(segments: Sequence[Path], on_torn: Callable[[Path], None]) -> list[Stretch]:
    """All of `segments` up to their last newlines; `on_torn` hears of one that has more."""
    found = []
    for path in segments:
        with storage_errors(f"read {path}"), path.open("rb") as file:
            size, begin = os.fstat(file.fileno()).st_size, 0
            while begin < size:
                file.seek(min(begin + STRETCH_BYTES, size) - 1)
                file.readline()
                end = next_begin = file.tell()
                if end >= size:
                    end, next_begin = _last_newline(file.fileno(), begin, size), size
                    if end < size:
                        on_torn(path)
                if end > begin:
                    found.append(Stretch(path, begin, end))
                begin = next_begin
    return found


def _last_newline(fd: int, begin: int, size: int) -> int:
    """Where the last whole line between the two ends; `begin` when there is none."""
    return begin + os.pread(fd, size - begin, begin).rfind(b"\n") + 1


def walk(over: Walk, parts: Sequence[Stretch], processors: int | None = None) -> None:
    """Takes `over` through all lines.  `processors`: how many may be used [those that this process may run on]."""
    count = min(processors or len(os.sched_getaffinity(0)), MAX_CHILDREN, len(parts))
    if count < 2 or sum(part.end - part.begin for part in parts) < WORTH_BYTES:
        rest = _lines_of(parts)
        for line in rest:
            over.step(line, rest)
        return
    children = _Children(parts, count)
    try:
        for index, part in enumerate(parts):
            batch = children.next(index)
            if batch is None or not over.take(batch):
                rest = _lines_of(parts[index:])
                for line in islice(rest, len(part.lines())):
                    over.step(line, rest)
    finally:
        children.end()


def _lines_of(parts: Sequence[Stretch]) -> Iterator[bytes]:
    for part in parts:
        yield from part.lines()


class _Children:
    """Processes that read stretches, and their pipes."""

    def __init__(self, parts: Sequence[Stretch], count: int) -> None:
        self._pipes: list[int] = []
        self._pids: list[int] = []
        for number in range(count):
            read, write = os.pipe2(os.O_CLOEXEC)
            pid = os.fork()
            if pid == 0:
                for other in (*self._pipes, read):
                    os.close(other)  # else a pipe of a parent that is gone would have a reader still
                _read(parts[number::count], write)
            os.close(write)
            self._pipes.append(read)
            self._pids.append(pid)

    def next(self, index: int) -> Batch | None:
        """What the child says of stretch `index`; call it in order."""
        pipe = self._pipes[index % len(self._pipes)]
        head = _exactly(pipe, trailbatch.HEAD_BYTES)
        if head is None:
            return None
        facts_bytes, leaves_bytes = trailbatch.sizes(head)
        facts, leaves = _exactly(pipe, facts_bytes), _exactly(pipe, leaves_bytes)
        return trailbatch.decode(facts, leaves) if facts and leaves else None

    def end(self) -> None:
        for pipe in self._pipes:
            os.close(pipe)
        for pid in self._pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _read(parts: Sequence[Stretch], write: int) -> NoReturn:
    """A child.  Never returns; a parent that is gone ends it by SIGPIPE, Ctrl-C is the parent's."""
    try:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for part in parts:
            try:
                batch = trailbatch.batch_of(part.lines())
            except ScaleoutError:
                batch = None  # the parent meets it too, and says so
            data = memoryview(trailbatch.encode(batch))
            while data:
                data = data[os.write(write, data) :]
    finally:
        os._exit(0)


def _exactly(fd: int, count: int) -> bytes | None:
    data = b""
    while len(data) < count:
        more = os.read(fd, count - len(data))
        if not more:
            return None
        data += more
    return data
