# SPDX-License-Identifier: Apache-2.0
"""The run-once table: which correlation ids were run, how far each came, and what became of it.

    RUNS/<run>/task.json   the offer, canonical JSON
    RUNS/<run>/state       one line for each transition (core.taskstate.RUN_STATES)

What must survive a crash of the machine is durable when `enter` returns: every state but two.  `accepted` says only that
somebody asked; `settle` makes an entry durable while its model arrives, so that the first state that matters costs one barrier.
`released` is entered after the trail has it, durably: a power cut takes it back to `computed`, and the same bytes are released
once more, on record.

The name of a run is drawn from its correlation id, so the same id always meets the same entry: a taken agent cannot run a
task twice by asking twice, nor by making the runner forget (only `forgotten` entries end, and they stay).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from scaleoutd.core import records, strictjson
from scaleoutd.core.strictjson import Json
from scaleoutd.core.taskstate import RUN_STATES, Line, encode
from scaleoutd.durable import AppendFile, make_private_folder, storage_errors, sync_file, sync_folder
from scaleoutd.ipc.messages import TaskOffer

MAX_OFFER_BYTES = 64 * 1024
# `found` of an `interrupted` run that could not be recorded, so that it did not begin.
UNRECORDED = "unrecorded"
NOT_DURABLE = ("accepted", "released")


class _Time(NamedTuple):
    """When a run began: by the wall clock, and in milliseconds since the boot `boot`."""

    at_ms: int
    boot: str
    up_ms: int


_Begun = tuple[str, tuple[_Time, ...]]  # session, and when


def run_name(correlation_id: str) -> str:
    """The run's name: 24 hex digits of the SHA-256 of its correlation id."""
    return hashlib.sha256(correlation_id.encode()).hexdigest()[:24]


@dataclass
class Run:
    """One entry of the table, open."""

    name: str
    offer: TaskOffer
    history: list[Line]
    torn_bytes: int
    _file: AppendFile
    _fresh: bool = False  # its folder is not durable yet
    _begun: dict[str, _Begun] | None = None  # the table's

    @property
    def state(self) -> str:
        return self.history[-1].state if self.history else ""

    @property
    def fields(self) -> Mapping[str, Json]:
        """Fields of the latest line."""
        return self.history[-1].fields if self.history else {}

    def field(self, state: str, name: str) -> Json:
        """A field of the latest line that entered `state`; None when there is none."""
        for line in reversed(self.history):
            if line.state == state:
                return line.fields.get(name)
        return None

    @property
    def attempts(self) -> int:
        """How often it was about to run."""
        return sum(1 for line in self.history if line.state == "about-to-run")

    @property
    def begun(self) -> int:
        """How often it may have run: where the trail did not take the record, it has not."""
        return sum(1 for _ in _begun(self.history))

    def enter(self, state: str, at_ms: int, fields: Mapping[str, Json] | None = None, *, sync: bool = True) -> None:
        """Goes on to `state`; durable when this returns, but for NOT_DURABLE.  Without `sync` the caller calls `sync` itself."""
        line = RUN_STATES.advance(self.history[-1] if self.history else None, state, at_ms, fields)
        durable = state not in NOT_DURABLE
        if durable:
            self._settle_task()  # before the line: a durable state without its task could not be read
        self._file.append(encode(line), sync=durable and sync)
        self.history.append(line)
        self.count()

    def sync(self) -> None:
        """Makes what was entered durable."""
        self._file.sync()

    def settle(self) -> None:
        """Makes the entry durable, if it is not."""
        if self._fresh:
            self._settle_task()
            self._file.sync()

    def _settle_task(self) -> None:
        if self._fresh:
            with storage_errors(f"make the entry of run {self.name} durable"):
                sync_file(self._file.path.with_name("task.json"))
                sync_folder(self._file.path.parent.parent)
            self._fresh = False

    def count(self) -> None:
        """Tells the table how often it began."""
        if self._begun is not None:
            self._begun[self.name] = (self.offer.session_id, tuple(map(_time_of, _begun(self.history))))

    def close(self) -> None:
        self._file.close()


class Runs:
    """The table in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = make_private_folder(folder)
        self._begun: dict[str, _Begun] = {}
        self._counted = False  # every entry is in it

    def open(self, offer: TaskOffer) -> Run:
        """The entry of the offer's correlation id, made when there is none."""
        name = run_name(offer.correlation_id)
        folder = self.folder / name
        fresh = not self._is_entry(folder)
        if fresh:
            with storage_errors(f"make the entry of run {name}"):
                folder.mkdir(mode=0o700, exist_ok=True)
                temporary = folder / ".task.json"
                temporary.write_bytes(strictjson.canonical(records.encode(offer)))
                temporary.rename(folder / "task.json")
        run = self._open(name)
        run._fresh = fresh
        return run

    def find(self, name: str) -> Run | None:
        return self._open(name) if self._is_entry(self.folder / name) else None

    def _open(self, name: str) -> Run:
        folder = self.folder / name
        with storage_errors(f"read the entry of run {name}"):
            data = (folder / "task.json").read_bytes()
        offer = records.decode(TaskOffer, strictjson.parse(data, max_bytes=MAX_OFFER_BYTES, what="a task offer"))
        file = AppendFile(folder / "state")
        run = Run(name, offer, RUN_STATES.parse(file.lines), len(file.torn), file, _begun=self._begun)
        run.count()
        return run

    def all(self) -> Iterator[Run]:
        """Every entry; the caller closes each."""
        for path in sorted(self.folder.iterdir()):
            if self._is_entry(path):
                yield self._open(path.name)
        self._counted = True

    @staticmethod
    def _is_entry(folder: Path) -> bool:
        """False for what a crash left of an offer that came to nothing: no task, or with the power the bytes of it were lost.

        Only before the first durable state can that be; with one, an unreadable task is damage, and `_open` says so.
        """
        try:
            data = (folder / "task.json").read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return False
        if data.strip(b"\0"):
            return True
        state = folder / "state"
        return state.exists() and any(b'"state":"accepted"' not in line for line in state.read_bytes().split(b"\n")[:-1])

    def counts(self, since_ms: int, session_id: str, boot: str = "", since_up_ms: int = 0) -> tuple[int, int]:
        """How many runs began at or after `since_ms`, and how many ever for `session_id`.  The table is read once.

        Those of the boot `boot` count too when they began at or after `since_up_ms` of it, whatever the wall clock says.
        """
        if not self._counted:
            for run in self.all():
                run.close()
        recent = of_session = 0
        for session, begun in self._begun.values():
            recent += sum(at.at_ms >= since_ms or (at.boot == boot != "" and at.up_ms >= since_up_ms) for at in begun)
            of_session += len(begun) if session == session_id else 0
        return recent, of_session


def _time_of(line: Line) -> _Time:
    boot, up_ms = line.fields.get("boot"), line.fields.get("up_ms")
    return _Time(line.at_ms, boot if isinstance(boot, str) else "", up_ms if isinstance(up_ms, int) else 0)


def _begun(history: Sequence[Line]) -> Iterator[Line]:
    for line, after in zip_longest(history, history[1:]):
        if line.state == "about-to-run" and not (after and after.fields.get("found") == UNRECORDED):
            yield line
