# SPDX-License-Identifier: Apache-2.0
"""The agent's tasks on disk: what was asked for, how far it came, what the combiner has heard.

    spool/<first 32 hex digits of SHA-256 of the correlation id>/task.json     as it came, never changed
                                                                 /state         append-only, core/taskstate.AGENT_STATES
    spool/finished                                                              ids that are over, with their last report

Rules:
  1. A task's folder appears under its name by one rename, with both files in it: there is no half a task.
  2. A transition outlives the process when `advance` returns, and the machine too where `sync` is given or `sync` was called.
     Ids are the runner's and the combiner's, so what a power cut takes back leads to the same ids again.
  3. An id that is over is remembered: asked again, it is reported again and not run.
  4. A damaged state fails its task as `state-corrupt`, on record; a damaged task.json is set aside.  Others go on.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from scaleoutd.agent.dialects import Directive, Report, Status
from scaleoutd.agent.interrupt import Interrupt
from scaleoutd.core import records, strictjson, taskstate
from scaleoutd.core.plan import Task
from scaleoutd.core.records import Natural, Text
from scaleoutd.core.strictjson import Json
from scaleoutd.core.taskstate import AGENT_STATES, Line
from scaleoutd.durable import AppendFile, make_private_folder, replace_file, storage_errors, sync_folder
from scaleoutd.errors import FormatError, ScaleoutError, StorageError

MAX_TASK_BYTES = 16 * 1024 * 1024
MAX_REMEMBERED = 4096
MAX_MESSAGE_CHARS = 300
SETTLE_WAIT_S = 5.0
Long = Annotated[str, Text(MAX_TASK_BYTES)]
Id = Annotated[str, Text(1024)]


@dataclass(frozen=True)
class SpooledTask:
    """task.json: the directive, who sent it and when."""

    correlation_id: Id
    type: Id
    model_id: Id
    session_id: Id
    round_id: Id
    combiner: Id
    data: Long
    settings: Long
    received_ms: Natural
    order: Natural
    task: Task | None = None

    @property
    def directive(self) -> Directive:
        return Directive(
            correlation_id=self.correlation_id,
            type=self.type,
            task=self.task,
            model_id=self.model_id,
            session_id=self.session_id,
            round_id=self.round_id,
            data=self.data,
            settings=self.settings,
        )


@dataclass(frozen=True)
class Finished:
    """A line of `finished`."""

    correlation_id: Id
    status: Status
    response: Annotated[str, Text(64 * 1024)] = ""


class Entry:
    """One task of the spool.  Only the worker advances it; others read `state` and `report`."""

    def __init__(self, folder: Path, task: SpooledTask, state: AppendFile, history: list[Line]) -> None:
        self.folder, self.task = folder, task
        self.interrupt = Interrupt()
        self.active = False  # a worker is at it
        self.waits_for = ""  # the code of what it waits for
        self.found_after_restart = False
        self._state, self._history = state, history
        self._settled = threading.Event()

    @property
    def line(self) -> Line:
        return self._history[-1]

    @property
    def state(self) -> str:
        return self.line.state

    @property
    def attempts(self) -> int:
        """How often it was sent."""
        return sum(line.state == "sending" for line in self._history)

    def field(self, state: str, name: str) -> Json:
        """A field of the last line with `state`, None when there is none."""
        lines = [line for line in self._history if line.state == state]
        return lines[-1].fields.get(name) if lines else None

    @property
    def needs_worker(self) -> bool:
        """Whether there is more to do than to report."""
        if self.state == "acknowledged":
            return not self.field("acknowledged", "confirmed")
        return self.state not in ("failed", "reported")

    def advance(self, state: str, *, sync: bool = False, **fields: Json) -> None:
        line = AGENT_STATES.advance(self.line, state, time.time_ns() // 1_000_000, fields)
        self._state.append(taskstate.encode(line), sync=sync)
        self._history.append(line)

    def sync(self) -> None:
        """Makes every transition so far outlive the machine."""
        self._state.sync()

    def fail(self, error: ScaleoutError) -> None:
        """Ends it; the combiner will hear code and message."""
        self.advance("failed", sync=True, code=error.code, message=presentable(error.message))

    def settle(self) -> None:
        """Makes the arrival durable.  It runs beside the offer; `wait_settled` comes before anything that counts."""
        if self._settled.is_set():
            return
        with storage_errors("make the task durable"):
            fd = os.open(self.folder / "task.json", os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            self._state.sync()
            sync_folder(self.folder)
            sync_folder(self.folder.parent)
        self._settled.set()

    def wait_settled(self) -> None:
        """Returns when the arrival is durable."""
        if not self._settled.wait(SETTLE_WAIT_S):
            self.settle()

    def report(self) -> Report:
        """What the combiner is told now."""
        status, done, response = _status_of(self)
        ended = self.line.at_ms if done else 0
        started = self._history[1].at_ms if len(self._history) > 1 else 0
        return Report(self.task.correlation_id, status, done, response, started, ended)

    def close(self) -> None:
        self._state.close()
        self.interrupt.close()


def _status_of(entry: Entry) -> tuple[Status, bool, str]:
    state = entry.state
    if state == "failed" or (state == "reported" and entry.field("failed", "code")):
        code, message = entry.field("failed", "code"), entry.field("failed", "message")
        stopped = code == "step-cancelled"
        return ("INTERRUPTED" if stopped else "FAILED"), True, failure_response(str(code), str(message))
    if state in ("acknowledged", "reported") and not entry.active:
        return "COMPLETED", True, ""
    if state in ("received", "offered") and not entry.active:
        return "PENDING", False, strictjson.canonical({"waits_for": entry.waits_for}).decode() if entry.waits_for else ""
    return "RUNNING", False, ""


def failure_response(code: str, message: str) -> str:
    """JSON text of a FAILED report."""
    return strictjson.canonical({"code": code, "message": presentable(message)}).decode()


def presentable(message: str) -> str:
    """A message without folders of this machine and of bounded length: it leaves the node."""
    plain = re.sub(r"(?<![\w.])(?:/[^\s/:'\",;()]+)+/([^\s/:'\",;()]+)", r"\1", message)
    return plain if len(plain) <= MAX_MESSAGE_CHARS else plain[: MAX_MESSAGE_CHARS - 1] + "…"


class Spool:
    """All tasks under `folder`.  `on_repair(file, torn_bytes, reason)` hears what a crash had left behind."""

    def __init__(self, folder: Path, on_repair: Callable[[str, int, str], None] = lambda file, torn, reason: None) -> None:
        self.folder = make_private_folder(folder)
        self._on_repair = on_repair
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}
        self._finished_file, self._finished = self._load_finished()
        self._load()
        self._order = max((entry.task.order for entry in self._entries.values()), default=0)

    # --- what is there ----------------------------------------------------------------------------------------

    def find(self, correlation_id: str) -> Entry | None:
        with self._lock:
            return self._entries.get(correlation_id)

    def finished(self, correlation_id: str) -> Finished | None:
        """The last report of an id that is over."""
        with self._lock:
            return self._finished.get(correlation_id)

    def entries(self) -> list[Entry]:
        """In the order they arrived."""
        with self._lock:
            return sorted(self._entries.values(), key=lambda entry: entry.task.order)

    # --- life of a task ---------------------------------------------------------------------------------------

    def receive(self, directive: Directive, combiner: str, problem: ScaleoutError | None = None) -> Entry:
        """A new task, written but not yet durable: `Entry.settle`.  With a `problem` it is `failed` from the start."""
        with self._lock:
            self._order += 1
            order = self._order
        task = SpooledTask(
            correlation_id=directive.correlation_id,
            type=directive.type[:256],
            task=directive.task,
            model_id=directive.model_id,
            session_id=directive.session_id,
            round_id=directive.round_id,
            combiner=combiner,
            data=directive.data,
            settings=directive.settings,
            received_ms=time.time_ns() // 1_000_000,
            order=order,
        )
        entry = self._write(task)
        if directive.stop:
            entry.interrupt.set(directive.stop)
        if problem is not None:
            entry.fail(problem)
        with self._lock:  # only now the worker sees it
            self._entries[task.correlation_id] = entry
        return entry

    def finish(self, entry: Entry) -> None:
        """The combiner has heard the end: remember the id, forget the task."""
        report = entry.report()
        if entry.state != "reported":
            entry.advance("reported")
        finished = Finished(report.correlation_id, report.status, report.response)
        self._finished_file.append(strictjson.canonical(records.encode(finished)))
        with self._lock:
            self._finished[finished.correlation_id] = finished
            self._entries.pop(report.correlation_id, None)
        entry.close()
        shutil.rmtree(entry.folder, ignore_errors=True)

    def close(self) -> None:
        for entry in self.entries():
            entry.close()
        self._finished_file.close()

    # --- files ------------------------------------------------------------------------------------------------

    def _write(self, task: SpooledTask) -> Entry:
        name = hashlib.sha256(task.correlation_id.encode()).hexdigest()[:32]
        folder, new = self.folder / name, self.folder / f".{name}.new"
        with storage_errors("keep the task"):
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(mode=0o700)
            _write_new(new / "task.json", strictjson.canonical(records.encode(task)))
            first = AGENT_STATES.advance(None, "received", task.received_ms)
            _write_new(new / "state", taskstate.encode(first) + b"\n")
            new.rename(folder)
        state = AppendFile(folder / "state")
        return Entry(folder, task, state, [first])

    def _load(self) -> None:
        with storage_errors("read the spool"):
            folders = sorted(path for path in self.folder.iterdir() if path.is_dir())
        for folder in folders:
            if folder.name.startswith("."):
                shutil.rmtree(folder, ignore_errors=True)
            elif not folder.name.startswith("damaged-"):
                self._load_one(folder)

    def _load_one(self, folder: Path) -> None:
        try:
            data = (folder / "task.json").read_bytes()
            task = records.decode(SpooledTask, strictjson.parse(data, max_bytes=MAX_TASK_BYTES, what="task.json"))
        except (OSError, FormatError) as exc:
            folder.rename(folder.with_name(f"damaged-{folder.name}"))
            self._on_repair(f"{folder.name}/task.json", 0, str(exc))
            return
        entry = self._open_entry(folder, task)
        entry.found_after_restart = True
        entry.settle()
        self._entries[task.correlation_id] = entry
        if entry.state == "reported":
            self.finish(entry)

    def _open_entry(self, folder: Path, task: SpooledTask) -> Entry:
        state = AppendFile(folder / "state")
        if state.torn:
            self._on_repair(f"{folder.name}/state", len(state.torn), "the unacknowledged rest of a crash")
        try:
            history = AGENT_STATES.parse(state.lines)
            if history:
                return Entry(folder, task, state, history)
            cause = StorageError("cannot go on with the task: its state file is empty", code="state-corrupt")
        except StorageError as exc:
            cause = exc
        state.close()
        (folder / "state").rename(folder / "state.damaged")
        self._on_repair(f"{folder.name}/state", 0, cause.message)
        first = AGENT_STATES.advance(None, "received", task.received_ms)
        state = AppendFile(folder / "state")
        state.append(taskstate.encode(first))
        entry = Entry(folder, task, state, [first])
        entry.fail(cause)
        return entry

    def _load_finished(self) -> tuple[AppendFile, dict[str, Finished]]:
        path = self.folder / "finished"
        file = AppendFile(path)
        found: dict[str, Finished] = {}
        for line in file.lines:
            try:
                one = records.decode(Finished, strictjson.parse(line, max_bytes=128 * 1024, what="finished"))
            except FormatError as exc:
                self._on_repair("finished", len(line), exc.message)
                continue
            found.pop(one.correlation_id, None)
            found[one.correlation_id] = one
        if len(file.lines) > 2 * MAX_REMEMBERED:
            found = dict(list(found.items())[-MAX_REMEMBERED:])
            file.close()
            replace_file(path, b"".join(strictjson.canonical(records.encode(one)) + b"\n" for one in found.values()))
            file = AppendFile(path)
        return file, found


def _write_new(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
