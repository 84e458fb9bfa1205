# SPDX-License-Identifier: Apache-2.0
"""Marks at the borders of stages, in every process of a node, put there from outside: the product knows nothing of them.

    python -m benchmarks.stages.marks FOLDER client start …      a node whose rooms write marks to FOLDER

Each process maps one file, shared, and writes into it without a system call, so a child keeps marking when it may do nothing
any more (a confined reader, pid 1 of a run).  Times are CLOCK_MONOTONIC, one for all.  Standard library only: the launcher
takes this module too.
"""

from __future__ import annotations

import functools
import importlib
import mmap
import os
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = os.path.abspath(__file__).rsplit("/", 3)[0]
_RECORD = struct.Struct("<qq48s")  # begin, end, name
_PER_PROCESS = 2048  # records of one process; a child begins behind its parent's
_PROCESSES = 96

# What is marked: room → module → names in it.  A name that another module has imported is marked there.
PLACES: dict[str, dict[str, str]] = {
    "agent": {
        "scaleoutd.agent.dialects.edge": "Edge.poll Edge.download Edge.upload Edge.send_update",
        "scaleoutd.agent.intake": "Intake.take",
        "scaleoutd.agent.spool": "Spool.receive Entry.settle Entry.wait_settled Entry.advance",
        "scaleoutd.agent.trail": "Trail.must",
        "scaleoutd.agent.pipeline": "Pipeline.carry Pipeline._offer Pipeline._receive Pipeline._wait"
        " Pipeline._deliver Pipeline._forget",
    },
    "runner": {
        "scaleoutd.runner.service": "Runner.handle",
        "scaleoutd.runner.runs": "Runs.open Runs.counts",
        "scaleoutd.runner.room": "Room.enter Room.floors Room.accept",
        "scaleoutd.ipc.ledger_client": "LedgerClient.record_all LedgerClient.floors",
        "scaleoutd.runner.pipeline": "perform read_policy verify grant_task snapshot_project receive make_plan inspect"
        " record_about_to_run execute gate put_in_outbox release resolve_environment make_model_folder",
        "scaleoutd.runner.receive": "IncomingModel.seal IncomingModel.link",
        "scaleoutd.runner.instances": "Instances.take Instance.execute Instance.ended Instances._release Instances.refill",
        "scaleoutd.runner.link": "Link.receive_model",
    },
    "ledger": {
        "scaleoutd.ledger.recorder": "Recorder.commit Recorder._checkpoint Recorder.settle",
        "scaleoutd.ledger.journal": "Journal.append",
        "scaleoutd.ledger.signer": "Signer.sign",
    },
    "step": {
        "scaleoutd.step.launcher": "Launcher._inspect Launcher._execute Launcher._gate Launcher.order_of"
        " Launcher._prepare Launcher._run_of Launcher._clean_up",
        "scaleoutd.step.children": "call reap _settle _limit_child",
        "scaleoutd.step.execute": "Execution.prepare Execution._await_exec Execution._serve Execution._kill Execution._drain",
        "scaleoutd.step.init": "_settle_descriptors _kill_rest",
        "scaleoutd.step.namespaces": "fill fork_in_pid_namespace",
        "scaleoutd.step.confine": "become restrict",
        "scaleoutd.step.limits": "Cgroup.leave Cgroup.apply",
        "scaleoutd.step.inspect": "inspect_model",
        "scaleoutd.step.gate": "check_train",
    },
}
BARRIERS = ("fsync", "fdatasync")


@dataclass(frozen=True)
class Span:
    """Monotonic seconds."""

    room: str
    process: int
    name: str
    begin_s: float
    end_s: float


def install(room: str, folder: str) -> None:
    """Marks the places of `room` in this process and those it forks."""
    book = _Book(os.path.join(folder, f"{room}.{os.getpid()}"))
    if room != "step":
        for name in BARRIERS:
            setattr(os, name, _marked(book, name, getattr(os, name)))
    for module_name, names in PLACES[room].items():
        for name in names.split():
            owner: Any = importlib.import_module(module_name)
            *path, last = name.split(".")
            for part in path:
                owner = getattr(owner, part)
            setattr(owner, last, _marked(book, last, getattr(owner, last)))


def _marked(book: _Book, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def marked(*arguments: Any, **named: Any) -> Any:
        where = book.begin(name)
        try:
            return function(*arguments, **named)
        finally:
            book.end(where)

    return marked


class _Book:
    """The mapped file."""

    def __init__(self, path: str) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.ftruncate(fd, _RECORD.size * _PER_PROCESS * _PROCESSES)
        self._map = mmap.mmap(fd, 0)
        os.close(fd)
        self._next = self._own = self._children = 0
        os.register_at_fork(before=self._before_fork, after_in_child=self._in_child)

    def _before_fork(self) -> None:
        self._children += 1

    def _in_child(self) -> None:
        """A child's number is 1 to 31, that of its own children 32 and up."""
        self._own = self._children % 32 if not self._own else 32 + (2 * self._own + self._children) % 64
        self._next, self._children = self._own * _PER_PROCESS, 0

    def begin(self, name: str) -> int:
        where, self._next = self._next * _RECORD.size, self._next + 1
        if where + _RECORD.size <= len(self._map):
            _RECORD.pack_into(self._map, where, time.monotonic_ns(), 0, name.encode()[:48])
        return where

    def end(self, where: int) -> None:
        if where + _RECORD.size <= len(self._map):
            struct.pack_into("<q", self._map, where + 8, time.monotonic_ns())


def read(folder: Path) -> Iterator[Span]:
    """All spans that have an end."""
    for path in sorted(folder.iterdir()):
        room, _, process = path.name.partition(".")
        for number, (begin, end, name) in enumerate(_RECORD.iter_unpack(path.read_bytes())):
            if begin and end:
                yield Span(room, int(process) + number // _PER_PROCESS, name.rstrip(b"\0").decode(), begin / 1e9, end / 1e9)


def main() -> int:
    """Starts the node; a launcher that takes this module must not load what is imported here."""
    rooms: Any = importlib.import_module("scaleoutd.cli.rooms")
    launchers: Any = importlib.import_module("scaleoutd.cli.launchers")
    folder, *arguments = sys.argv[1:]
    start_room, start_template = rooms.room_command, launchers.template_command

    def with_marks(command: list[str], room: str) -> list[str]:
        load = f"import sys; sys.path.insert(0, {ROOT!r}); from benchmarks.stages.marks import install"
        before = f"{load}; install({room!r}, {folder!r}); "
        place = command.index("-c") + 1
        return [*command[:place], before + command[place], *command[place + 1 :]]

    rooms.room_command = lambda room, given: with_marks(start_room(room, given), room)
    launchers.template_command = lambda python: with_marks(start_template(python), "step")
    sys.argv[1:] = arguments
    importlib.import_module("scaleoutd.cli.scaleoutd").main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
