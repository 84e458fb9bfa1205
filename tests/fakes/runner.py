# SPDX-License-Identifier: Apache-2.0
"""A runner for tests of the agent: speaks the real messages over real packets, keeps results in real files.

    runner = FakeRunner(folder)
    door = FakeDoor(runner)              # door.connect("runner") as the agent does
    runner.crash_at("execute")           # once: the connection ends there, the run-once table stays as it is
    runner.hold("released")              # the run stops there until runner.go("released")
    runner.refuse("train", "file-changed", "train.py differs")

Stages: offer, receive, execute, released, delivered.  The step adds 1 to every number of the model.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from scaleoutd.devcombiner.container import read_container, write_container
from scaleoutd.devcombiner.npz import FlatArray, read_npz, write_npz
from scaleoutd.errors import PeerError, ScaleoutError, from_code
from scaleoutd.ipc.channel import Channel, Refused
from scaleoutd.ipc.messages import (
    CancelTask,
    Delivered,
    Forgotten,
    ModelReceived,
    ReceiveModel,
    Released,
    Stage,
    TaskOffer,
)


@dataclass
class Computed:
    """A line of the run-once table."""

    released: Released | None = None
    container: Path | None = None
    runs: int = 0
    outcome: str = ""


@dataclass
class FakeRunner:
    """See the module.  The table is in memory and outlives every connection, as a file of the real one would."""

    folder: Path
    max_bytes: int = 64 * 1024 * 1024
    table: dict[str, Computed] = field(default_factory=dict)
    offers: list[TaskOffer] = field(default_factory=list)
    reached: list[str] = field(default_factory=list)
    withheld: tuple[str, ...] = ()
    down: bool = False

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._crashes: list[str] = []
        self._refusals: dict[str, tuple[str, str]] = {}
        self._holds: dict[str, threading.Event] = {}
        self._changed = threading.Condition()

    def crash_at(self, *stages: str) -> None:
        self._crashes.extend(stages)

    def refuse(self, task: str, code: str, message: str) -> None:
        self._refusals[task] = (code, message)

    def hold(self, stage: str) -> None:
        self._holds[stage] = threading.Event()

    def go(self, stage: str) -> None:
        self._holds.pop(stage).set()

    def wait_for(self, stage: str, timeout_s: float = 60.0, times: int = 1) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.reached.count(stage) >= times, timeout_s), (stage, self.reached)

    # --- one connection ---------------------------------------------------------------------------------------

    def serve(self, channel: Channel) -> None:
        """A task from hello to Forgotten, in the caller's thread."""
        try:
            channel.greet("runner")
            offer = channel.expect(TaskOffer)
            self._perform(channel, offer)
        except PeerError:
            pass
        except ScaleoutError as exc:
            try:
                channel.tell(Refused.of(exc))
            except PeerError:
                pass
        finally:
            channel.close()

    def _perform(self, channel: Channel, offer: TaskOffer) -> None:
        self.offers.append(offer)
        entry = self.table.setdefault(offer.correlation_id, Computed())
        self._reach("offer", channel)
        if offer.task in self._refusals:
            raise from_code(*self._refusals[offer.task])
        if entry.outcome:
            raise from_code("run-repeated", "cannot run the task: it was run before")
        if entry.released is None:
            self._run(channel, offer, entry)
        released = entry.released
        assert released is not None
        self._hand_over(channel, entry, released)
        self._reach("released", channel)
        delivered = channel.expect(Delivered)
        self._reach("delivered", channel)
        entry.outcome = delivered.outcome
        channel.tell(Forgotten(delivered.run))

    def _run(self, channel: Channel, offer: TaskOffer, entry: Computed) -> None:
        model = self._receive(channel)
        entry.runs += 1
        channel.tell(Stage("execute"))
        self._reach("execute", channel)
        if channel.connection.wait(0):
            cancel = channel.expect(CancelTask)
            raise from_code("step-cancelled", f"cannot finish the task: {cancel.reason}")
        container = read_container(model)
        run = f"run-{hashlib.sha256(offer.correlation_id.encode()).hexdigest()[:12]}"
        if offer.task == "train":
            entry.container = self.folder / run
            update_id = str(uuid.uuid4())
            data = write_container(update_id, _plus_one(container.weights))
            entry.container.write_bytes(data)
            body, sha256, size = {"num_examples": 10, "loss": 0}, hashlib.sha256(data).hexdigest(), len(data)
        else:
            body, sha256, size, update_id = {"accuracy": 1}, hashlib.sha256(b"").hexdigest(), 0, ""
        entry.released = Released(run, offer.task, json.dumps(body), size, sha256, 5, update_id, self.withheld)

    def _receive(self, channel: Channel) -> bytes:
        reader = os.open(self.folder, os.O_TMPFILE | os.O_RDWR, 0o600)
        writer = os.open(f"/proc/self/fd/{reader}", os.O_WRONLY)
        try:
            channel.tell(ReceiveModel("run", self.max_bytes), [writer])
        finally:
            os.close(writer)
        try:
            self._reach("receive", channel)
            told = channel.expect(ModelReceived)
            with os.fdopen(reader, "rb") as file:
                data = file.read()
        except BaseException:
            _close(reader)
            raise
        if hashlib.sha256(data).hexdigest() != told.sha256 or len(data) != told.size_bytes:
            raise from_code("download-corrupt", "cannot use the model: it is not what the agent says")
        return data

    @staticmethod
    def _hand_over(channel: Channel, entry: Computed, released: Released) -> None:
        if entry.container is None:
            channel.tell(released)
            return
        fd = os.open(entry.container, os.O_RDONLY)
        try:
            channel.tell(released, [fd])
        finally:
            os.close(fd)

    def _reach(self, stage: str, channel: Channel) -> None:
        with self._changed:
            self.reached.append(stage)
            self._changed.notify_all()
        hold = self._holds.get(stage)
        if hold is not None:
            while not hold.wait(0.02):
                if channel.connection.wait(0):
                    break  # a cancel, or the agent is gone
        if stage in self._crashes:
            self._crashes.remove(stage)
            raise PeerError("cannot go on: crashed as told", code="peer-closed")


class FakeDoor:
    """A ClientDoor whose other side are threads of this process."""

    def __init__(self, runner: FakeRunner, others: dict[str, Callable[[Channel], None]] | None = None) -> None:
        self._runner = runner
        self._others = others or {}

    def connect(self, room: str, timeout_s: float = 10.0) -> Channel:
        serve = self._runner.serve if room == "runner" else self._others.get(room)
        if serve is None or (room == "runner" and self._runner.down):
            raise PeerError(f"cannot open a connection to {room}: it is down", code="peer-closed")
        ours, theirs = Channel.pair(room, "agent")
        threading.Thread(target=serve, args=(theirs,), name=f"fake {room}", daemon=True).start()
        return ours


def _plus_one(weights: bytes) -> bytes:
    arrays = read_npz(weights)
    for name, old in arrays.items():
        values = old.values[:]
        for index, value in enumerate(values):
            values[index] = value + 1  # type: ignore[call-overload]
        arrays[name] = FlatArray(old.kind, old.shape, values)
    return write_npz(arrays)


def _close(fd: int) -> None:
    try:
        os.close(fd)
    except OSError:
        pass
