# SPDX-License-Identifier: Apache-2.0
"""What a taken agent does: a program that runs in a guest as user scaleoutd, `taken_agent CASE [argument]`, and prints one word.

It has what the agent's user has, the sockets and arbitrary packets, and nothing else.  Words: what a room answered ("released",
"hung-up", the code of a refusal) or what the kernel said ("EACCES").
"""

from __future__ import annotations

import array
import errno
import hashlib
import json
import os
import secrets
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scaleoutd.errors import PeerError, ScaleoutError
from scaleoutd.ipc.channel import Channel
from scaleoutd.ipc.doors import Open, Ready
from scaleoutd.ipc.messages import (
    Append,
    AskFloors,
    Delivered,
    Entry,
    Floors,
    Forgotten,
    ModelReceived,
    ReceiveModel,
    Recorded,
    Released,
    Stage,
    TaskOffer,
)
from scaleoutd.ipc.packets import Connection
from scaleoutd.ipc.step import CancelStep

RUN = "/run/scaleoutd"
MODEL = "/run/taken-agent-model"  # a model that the project takes; the test puts it there
DIGEST = hashlib.sha256(b"").hexdigest()
TIMEOUT_S = 90.0
ANSWERS = (Released, ReceiveModel, Stage, Forgotten, Recorded, Floors)
# What a room that trusted its peer might act upon.
MESSAGES: dict[str, Any] = {
    "model-received": ModelReceived(0, DIGEST),
    "receive-model": ReceiveModel("x", 1),
    "released": Released("a" * 24, "train", "{}", 1, DIGEST, 1),
    "stage": Stage("release"),
    "forgotten": Forgotten("a" * 24),
    "append": Append((Entry("0" * 32, "release", {}),)),
    "ask-floors": AskFloors(),
    "open": Open("step"),
    "ready": Ready(),
    "cancel-step": CancelStep(),
    "delivered": Delivered("a" * 24, "acknowledged"),
    "offer": TaskOffer("another", "train", "m", "s", "r", "combiner.example:443"),
}


def dial(name: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(f"{RUN}/{name}")
    return sock


class Liar:
    """One connection to a room."""

    def __init__(self, name: str, room: str = "agent") -> None:
        self.socket = dial(name)
        self.channel = Channel(Connection(self.socket), name)
        self.channel.greet(room)

    def offer(self, correlation_id: str, **changes: Any) -> None:
        values = {"task": "train", "model_id": "m", "session_id": "s", "round_id": "r", "combiner": "combiner.example:443"}
        self.channel.tell(TaskOffer(correlation_id, **{**values, **changes}))

    def take_file(self) -> int:
        return self.channel.receive(ReceiveModel, timeout_s=TIMEOUT_S).take()

    def send_model(self, data: bytes | None = None, told: bytes | None = None) -> None:
        data = Path(MODEL).read_bytes() if data is None else data
        told = data if told is None else told
        writer = self.take_file()
        os.write(writer, data)
        os.close(writer)
        self.channel.tell(ModelReceived(len(told), hashlib.sha256(told).hexdigest()))

    def wait_stage(self, name: str) -> None:
        while self.channel.expect(Stage, timeout_s=TIMEOUT_S).name != name:
            pass

    def released(self) -> Released:
        """With the descriptor, the bytes are what was released."""
        while True:
            received = self.channel.receive(Released, Stage, timeout_s=TIMEOUT_S)
            if isinstance(received.message, Released):
                break
        told: Released = received.message
        (fd,) = received.descriptors
        data = os.pread(fd, told.size_bytes + 1, 0)
        assert hashlib.sha256(data).hexdigest() == told.sha256
        for change in (
            lambda: os.write(fd, b"x"),
            lambda: os.ftruncate(fd, 0),
            lambda: os.open(f"/proc/self/fd/{fd}", os.O_RDWR),
        ):
            try:
                change()
            except OSError:
                continue
            raise AssertionError("what was released can be changed")
        received.close()
        return told

    def deliver(self, run: str) -> None:
        self.channel.tell(Delivered(run, "acknowledged"))
        self.channel.expect(Forgotten, timeout_s=TIMEOUT_S)

    def say(self, message: Any) -> None:
        """Perhaps to one who has hung up already; `end` has what it said."""
        try:
            self.channel.tell(message)
        except PeerError:
            pass

    def end(self) -> str:
        """What the room says last."""
        try:
            told = self.channel.receive(*ANSWERS, timeout_s=TIMEOUT_S).message
        except ScaleoutError as exc:
            return "hung-up" if exc.code == "peer-closed" else exc.code
        return f"answered {type(told).__name__}"


CASES: dict[str, Callable[..., str]] = {}


def case(function: Callable[..., str]) -> Callable[..., str]:
    CASES[function.__name__] = function
    return function


@case
def connect(name: str) -> str:
    dial(name).close()
    return "connected"


@case
def open_file(path: str) -> str:
    os.close(os.open(path, os.O_RDONLY))
    return "opened"


@case
def honest(correlation_id: str) -> str:
    """The control of all the others."""
    agent = Liar("runner.sock")
    agent.offer(correlation_id)
    agent.send_model()
    told = agent.released()
    agent.deliver(told.run)
    return "released"


@case
def offer(correlation_id: str, changes: str = "{}") -> str:
    """The first answer to an offer."""
    agent = Liar("runner.sock")
    agent.offer(correlation_id, **json.loads(changes))
    return agent.end()


@case
def bare_offer(changes: str) -> str:
    """An offer that this build's own codec would not write."""
    good = {"t": "task-offer", "correlation_id": "x", "task": "train", "model_id": "m", "session_id": "s", "round_id": "r",
            "combiner": "c"}  # fmt: skip
    agent = Liar("runner.sock")
    agent.channel.connection.send({**good, **json.loads(changes)})
    return agent.end()


@case
def hello_of(name: str, room: str) -> str:
    """Says that it is another room, and asks what only the ledger answers."""
    agent = Liar(name, room)
    agent.say(AskFloors())
    return agent.end()


@case
def too_large(name: str) -> str:
    agent = Liar(name)
    agent.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    agent.socket.send(b'{"t":"task-offer","settings":"' + b"x" * 70_000 + b'"}')
    return agent.end()


@case
def descriptors(name: str, count: str) -> str:
    """With a good message; each descriptor is the end of a pipe, and the room must have closed them all."""
    agent = Liar(name)
    read, write = os.pipe()
    body = b'{"t":"ask-floors"}' if name == "ledger.sock" else json.dumps(
        {"t": "task-offer", "correlation_id": "descriptors", "task": "train", "model_id": "m", "session_id": "s",
         "round_id": "r", "combiner": "c"}).encode()  # fmt: skip
    agent.socket.sendmsg([body], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [write] * int(count)))])
    os.close(write)
    answer = agent.end()
    assert os.read(read, 1) == b"", "somebody holds the other end"
    return answer


@case
def instead_of_an_offer(name: str) -> str:
    agent = Liar("runner.sock")
    agent.channel.tell(MESSAGES[name])
    return agent.end()


@case
def instead_of_the_model(correlation_id: str, name: str) -> str:
    agent = Liar("runner.sock")
    agent.offer(correlation_id)
    os.close(agent.take_file())
    agent.channel.tell(MESSAGES[name])
    return agent.end()


@case
def while_it_runs(correlation_id: str, name: str) -> str:
    agent = Liar("runner.sock")
    agent.offer(correlation_id)
    agent.send_model()
    agent.wait_stage("execute")
    agent.channel.tell(MESSAGES[name])
    return agent.end()


@case
def lies_about_the_model(correlation_id: str) -> str:
    agent = Liar("runner.sock")
    agent.offer(correlation_id)
    agent.send_model(told=b"")
    return _failure(agent)


@case
def no_model(correlation_id: str) -> str:
    agent = Liar("runner.sock")
    agent.offer(correlation_id)
    agent.send_model(b"\x80\x04K\x01.")
    return _failure(agent)


@case
def keeps_the_model_open(correlation_id: str) -> str:
    """So it could be changed after it was hashed."""
    agent = Liar("runner.sock")
    agent.offer(correlation_id)
    writer = agent.take_file()
    data = Path(MODEL).read_bytes()
    os.write(writer, data)
    agent.channel.tell(ModelReceived(len(data), hashlib.sha256(data).hexdigest()))
    return _failure(agent)


@case
def delivers_anothers(mine: str, anothers: str) -> str:
    """Two results that wait; the connection of one says that the other has arrived.  Then both are delivered as they should."""
    agents = []
    for correlation_id in (mine, anothers):
        agent = Liar("runner.sock")
        agent.offer(correlation_id)
        agent.send_model()
        agents.append((agent, agent.released()))
    (attacker, _), (victim, of_victim) = agents
    attacker.channel.tell(Delivered(of_victim.run, "dropped"))
    answer = attacker.end()
    victim.deliver(of_victim.run)  # it is still there
    again = Liar("runner.sock")
    again.offer(mine)
    again.deliver(again.released().run)
    return answer


@case
def record(kind: str, body: str, room: str = "agent") -> str:
    """An event to the ledger."""
    agent = Liar("ledger.sock", room)
    agent.say(Append((Entry(secrets.token_hex(16), kind, json.loads(body)),)))
    return agent.end()


def _failure(agent: Liar) -> str:
    try:
        return f"released {agent.released()}"
    except ScaleoutError as exc:
        return "hung-up" if exc.code == "peer-closed" else exc.code


def main() -> None:
    told = []
    for name, arguments in json.loads(sys.argv[1]):
        try:
            told.append(CASES[name](*arguments))
        except OSError as exc:
            told.append(errno.errorcode[exc.errno or 0])
        except PeerError as exc:
            told.append("hung-up" if exc.code == "peer-closed" else exc.code)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
