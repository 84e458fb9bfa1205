# SPDX-License-Identifier: Apache-2.0
"""An agent under test: in a thread with fakes around it, or as a real process that can be killed.

node = Node(combiner, tmp_path)          # certificate and enrollment token of this combiner
with node: ...                           # runs; `with` again starts it anew over the same state
with ProcessNode(combiner, tmp_path) as node: node.kill()
"""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from scaleoutd.agent.config import AgentConfig
from scaleoutd.agent.log import open_log
from scaleoutd.agent.service import run
from scaleoutd.core import records
from scaleoutd.devcombiner.npz import flat, write_npz
from scaleoutd.devcombiner.server import DevCombiner
from scaleoutd.errors import PeerError, ScaleoutError
from scaleoutd.ipc.channel import Channel, Refused
from scaleoutd.ipc.doors import Open, Opened
from scaleoutd.ipc.messages import Append, Recorded
from scaleoutd.ipc.packets import Connection
from tests.fakes.ledger import FakeLedger
from tests.fakes.runner import FakeDoor, FakeRunner

TRAIN, VALIDATE = "Scaleout_ModelUpdate", "Scaleout_Validation"
SEED = write_npz({"w": flat("f4", (3,), [1.0, 2.0, 3.0])})
ROOT = Path(__file__).resolve().parents[3]
CLIENT = "ward-7"


def wait_until(predicate: Callable[[], bool], timeout_s: float = 90.0, what: object = "") -> None:
    deadline_s = time.monotonic() + timeout_s
    while not predicate():
        assert time.monotonic() < deadline_s, f"not within {timeout_s} s: {what() if callable(what) else what}"
        time.sleep(0.01)


def config_for(combiner: DevCombiner, folder: Path, **changes: Any) -> AgentConfig:
    """A configuration that works; `changes` break it."""
    certificate, key = combiner.issue_client_certificate(CLIENT)
    config = AgentConfig(
        api_url=combiner.api_url,
        state_dir=str(folder / "agent"),
        token=combiner.mint_enrollment(),
        client_id=CLIENT,
        name=CLIENT,
        ca=str(combiner.ca_file),
        cert=str(certificate),
        key=str(key),
        poll_interval_ms=100,
        heartbeat_interval_ms=100,
        backoff_ms=50,
        backoff_limit_ms=200,
    )
    return replace(config, **changes)


class Node:
    """The service in a thread, with a fake runner and a fake ledger that outlive it."""

    def __init__(self, combiner: DevCombiner, folder: Path, **changes: Any) -> None:
        self.combiner = combiner
        self.config = config_for(combiner, folder, **changes)
        self.runner = FakeRunner(folder / "runner")
        self.ledger = FakeLedger("agent")
        self.output = io.StringIO()
        self.control = folder / "agent.control"
        self.status: int | None = None

    def __enter__(self) -> Self:
        self.stop = threading.Event()
        self.status = None
        log = open_log(self.output, "json", "DEBUG")

        def serve() -> None:
            self.status = run(self.config, FakeDoor(self.runner), log, self.stop, self.ledger, self._listen())

        self.thread = threading.Thread(target=serve, name="agent")
        self.thread.start()
        return self

    def _listen(self) -> socket.socket:
        self.control.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(str(self.control))
        listener.listen()
        return listener

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop.set()
        self.thread.join(90)
        if kind is not None:
            sys.stderr.write(self.output.getvalue())
        assert not self.thread.is_alive(), "the agent did not stop"
        assert not [line for line in self.log_lines() if "traceback" in line], self.output.getvalue()

    def log_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.output.getvalue().splitlines()]

    def codes(self) -> list[str]:
        """Codes of the log, without repetitions."""
        return list(dict.fromkeys(line["code"] for line in self.log_lines() if line["code"]))

    def events(self, name: str) -> list[dict[str, Any]]:
        return self.ledger.bodies(name)

    def wait_event(self, name: str, timeout_s: float = 90.0, times: int = 1) -> dict[str, Any]:
        def what() -> object:
            return name, self.ledger.types(), self.output.getvalue()

        wait_until(lambda: len(self.events(name)) >= times, timeout_s, what)
        return self.events(name)[-1]

    def wait_connected(self) -> None:
        wait_until(lambda: CLIENT in self.combiner.board.connected(), what=self.output.getvalue)

    def offer(self, task_type: str = TRAIN, **more: Any) -> str:
        return offer(self.combiner, task_type, **more)

    def wait_done(self, correlation_id: str, timeout_s: float = 90.0) -> Any:
        return wait_done(self.combiner, correlation_id, timeout_s, self.output.getvalue)


def offer(combiner: DevCombiner, task_type: str = TRAIN, **more: Any) -> str:
    model_id = more.pop("model_id", None) or combiner.put_model(SEED)
    return combiner.offer_task(CLIENT, task_type, model_id, session_id="session-1", round_id="round-1", **more)


def wait_done(combiner: DevCombiner, correlation_id: str, timeout_s: float = 90.0, what: object = "") -> Any:
    offered = combiner.board.offers[correlation_id]
    wait_until(lambda: offered.done, timeout_s, what)
    return offered


def _told(parent: Channel, answer: Opened | Refused, descriptors: Sequence[int] = ()) -> bool:
    """False when the agent was killed meanwhile, as many tests do."""
    try:
        parent.tell(answer, descriptors)
    except PeerError:
        return False
    return True


class ProcessNode:
    """The agent as a process of its own; this process plays the parent, the runner and the ledger."""

    def __init__(self, combiner: DevCombiner, folder: Path, prelude: str = "", **changes: Any) -> None:
        self.combiner = combiner
        self._prelude = prelude  # statements that the process begins with
        self.config = config_for(combiner, folder, **changes)
        self.runner = FakeRunner(folder / "runner")
        self.ledger = FakeLedger("agent")
        self.door = FakeDoor(self.runner, {"ledger": self._serve_ledger})
        self.process: subprocess.Popen[bytes] | None = None
        self._errors = folder / "stderr"

    def start(self) -> None:
        ours, theirs = Connection.pair()
        read, write = os.pipe()
        with os.fdopen(write, "wb") as file:
            file.write(json.dumps(records.encode(self.config)).encode())
        path = f"import sys; sys.path.insert(0, {str(ROOT)!r})"
        start = f"{path}\n{self._prelude}\nfrom scaleoutd.agent.__main__ import main; sys.exit(main())"
        with self._errors.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-B", "-c", start, "--config", str(read), "--door", str(theirs.fileno())],
                pass_fds=[read, theirs.fileno()],
                stderr=errors,
                cwd="/",
            )
        os.close(read)
        theirs.close()
        self._parent = ours
        threading.Thread(target=self._serve_door, args=(Channel(ours, "agent"),), daemon=True).start()

    def _serve_door(self, parent: Channel) -> None:
        while True:
            try:
                room = parent.expect(Open).room
            except (PeerError, OSError, ValueError):
                return
            try:
                channel = self.door.connect(room)
            except PeerError as exc:
                if not _told(parent, Refused.of(exc)):
                    return
                continue
            told = _told(parent, Opened(room), [channel.fileno()])
            channel.close()
            if not told:
                return

    def _serve_ledger(self, channel: Channel) -> None:
        try:
            channel.greet("ledger")
            while True:
                entries = channel.expect(Append).entries
                try:
                    recorded = self.ledger.record_all([(entry.type, dict(entry.body)) for entry in entries])
                except ScaleoutError as exc:
                    channel.tell(Refused.of(exc))
                    continue
                channel.tell(Recorded(recorded.sequences, recorded.time_ms))
        except PeerError:
            channel.close()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self._parent.close()

    def terminate(self, timeout_s: float = 60.0) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout_s)
        self._parent.close()
        return status

    def errors(self) -> str:
        return self._errors.read_text() if self._errors.exists() else ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            sys.stderr.write(self.errors())
        if self.process is not None and self.process.poll() is None:
            self.kill()
