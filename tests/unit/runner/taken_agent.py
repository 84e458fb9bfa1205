# SPDX-License-Identifier: Apache-2.0
"""A real runner in this process, with real step instances and a ledger that can be told to fail, and an agent that may lie.

with Bench(tmp_path) as bench:
    agent = bench.agent()
    agent.offer("c1"); agent.send_model(); released = agent.released(); agent.deliver(released)
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from scaleoutd.core.policy import parse_policy_yaml
from scaleoutd.errors import PeerError
from scaleoutd.ipc.channel import Channel, Received
from scaleoutd.ipc.messages import Delivered, Forgotten, ModelReceived, ReceiveModel, Released, Stage, TaskOffer
from scaleoutd.ipc.packets import Connection
from scaleoutd.runner.instances import Instances
from scaleoutd.runner.room import Room
from scaleoutd.runner.runs import run_name
from scaleoutd.runner.service import Runner
from scaleoutd.step.start import launcher_command
from tests.e2e.site import SEED, Project, write_policy
from tests.fakes.ledger import FakeLedger

TIMEOUT_S = 60.0
# What the step does is the settings' choice; what it printed shows how often it ran.
TRAIN = """
import time
settings = json.load(open(source + "-metadata"))
print("ran", flush=True)
time.sleep(settings.get("sleep", 0))
"""


class StepDoor:
    """Starts a launcher for each connection, as the parent of the rooms does."""

    def __init__(self) -> None:
        self.pids: list[int] = []

    def connect(self, room: str, timeout_s: float = 10.0) -> Channel:
        assert room == "step"
        ours, theirs = Connection.pair()
        actions = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0), (os.POSIX_SPAWN_DUP2, theirs.fileno(), 3)]
        command = launcher_command(sys.executable)
        self.pids.append(os.posix_spawn(command[0], command, {"PATH": os.defpath}, file_actions=actions, setpgroup=0))
        theirs.close()
        return Channel(ours, "step")


class Bench:
    """The runner's room below `folder`; `policy` replaces keys of policy.yaml."""

    def __init__(self, folder: Path, **policy: Any) -> None:
        self.project = Project(folder / "project")
        self.project.write(TRAIN)
        self.project.sign()
        root = self.project.write_trust_root(folder / "root.json")
        written = write_policy(folder / "policy.yaml", self.project, root, **policy)
        lock = folder / "policy.lock"
        lock.write_bytes(parse_policy_yaml(written.read_bytes()).canonical())
        self.folder, self.state = folder, folder / "runner"
        self.ledger = FakeLedger("runner", time_ms=0)
        self.log: list[str] = []
        self._door = StepDoor()
        self._threads: list[threading.Thread] = []
        self._agents: list[Agent] = []
        self._lock = lock
        self.start()

    def start(self) -> None:
        """Also again, over the same state: what a restart would find."""
        room = Room(self.state, self._lock, self.ledger, Instances(self._door, spares=0))  # type: ignore[arg-type]  # has its methods
        self.runner = Runner(room, self.log.append)

    def agent(self) -> Agent:
        ours, theirs = Channel.pair("runner", "agent")
        thread = threading.Thread(target=self.runner.handle, args=[theirs], daemon=True)
        self._threads.append(thread)
        thread.start()
        agent = Agent(ours)
        self._agents.append(agent)
        return agent

    def complete(self, correlation_id: str, **offer: Any) -> Released:
        """A whole task of an honest agent."""
        agent = self.agent()
        agent.offer(correlation_id, **offer)
        agent.send_model()
        released = agent.released()
        agent.deliver(released.run)
        return released

    def times_run(self, correlation_id: str) -> int:
        """How often the step itself began, by what it printed."""
        output = self.state / "output" / f"{run_name(correlation_id)}.log"
        return output.read_text().count("ran\n") if output.exists() else 0

    def recorded(self, name: str) -> list[dict[str, Any]]:
        return self.ledger.bodies(name)

    def settle(self) -> None:
        """Waits until every connection is over; agents hang up first."""
        for agent in self._agents:
            agent.channel.close()
        for thread in self._threads:
            thread.join(TIMEOUT_S)
            assert not thread.is_alive()
        self._threads.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.settle()
        finally:
            self.runner.room.instances.close()
            for pid in self._door.pids:
                os.waitpid(pid, 0)
        assert not [line for line in self.log if line.startswith("bug")], self.log


class Agent:
    """The agent's end of one connection."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.channel.greet("agent")

    def offer(self, correlation_id: str, **changes: Any) -> None:
        values = {
            "task": "train", "model_id": "m", "session_id": "s", "round_id": "r", "combiner": "combiner.example:443", **changes,
        }  # fmt: skip
        self.channel.tell(TaskOffer(correlation_id, **values))

    def take_file(self) -> int:
        """The write-only descriptor for the model."""
        received = self.channel.receive(ReceiveModel, timeout_s=TIMEOUT_S)
        return received.take()

    def send_model(self, data: bytes = SEED) -> None:
        writer = self.take_file()
        os.write(writer, data)
        os.close(writer)
        self.say_received(data)

    def say_received(self, data: bytes = SEED) -> None:
        self.channel.tell(ModelReceived(len(data), hashlib.sha256(data).hexdigest()))

    def wait_stage(self, name: str) -> None:
        while self.channel.expect(Stage, timeout_s=TIMEOUT_S).name != name:
            pass

    def answer(self) -> Received:
        """Released, or the error of a refusal."""
        while True:
            received = self.channel.receive(Released, Stage, ReceiveModel, timeout_s=TIMEOUT_S)
            if not isinstance(received.message, Stage):
                return received

    def released(self) -> Released:
        received = self.answer()
        received.close()
        assert isinstance(received.message, Released), received.message
        return received.message

    def deliver(self, run: str, outcome: Any = "acknowledged") -> None:
        self.channel.tell(Delivered(run, outcome))
        assert self.channel.expect(Forgotten, timeout_s=TIMEOUT_S).run == run

    def is_hung_up_on(self) -> bool:
        """The runner closed without another word."""
        try:
            message = self.channel.receive(Released, ReceiveModel, Stage, Forgotten, timeout_s=TIMEOUT_S).message
        except PeerError as exc:
            return exc.code == "peer-closed"
        raise AssertionError(f"the runner answered {message}")
