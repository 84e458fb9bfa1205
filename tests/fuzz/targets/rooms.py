# SPDX-License-Identifier: Apache-2.0
"""What rooms say to one another and keep for themselves: packets, messages, configuration, states."""

from __future__ import annotations

import socket
from typing import Any

from scaleoutd.agent.config import parse_config
from scaleoutd.agent.spool import SpooledTask
from scaleoutd.core import catalogue, chain, event, records, strictjson, taskstate, trail
from scaleoutd.core.plan import Bind, GateRules, Limits, Link, ModelRules, SandboxPlan, StepResult
from scaleoutd.core.taskstate import AGENT_STATES, RUN_STATES
from scaleoutd.errors import FormatError
from scaleoutd.ipc import channel, control, ledger_client, messages, named, step
from scaleoutd.ipc.channel import Channel
from scaleoutd.ipc.packets import MAX_PACKET_BYTES, Connection
from scaleoutd.step.children import result_of
from tests.fuzz.target import Target, same
from tests.unit.core.audit_samples import body_of, stamp

_KNOWN = (channel, control, ledger_client, messages, named, step)  # imported, so that their messages are registered
_TYPES: tuple[type[Any], ...] = tuple(channel._CLASS_OF.values())
_SIDES: list[socket.socket] = []


def _packet(data: bytes) -> None:
    """Through a real socket: the kernel's own framing, a packet of nothing and one that is too large."""
    left, right = _pair()
    left.send(data[: MAX_PACKET_BYTES + 2] or b"{}")
    body = right.receive(0).body
    same(strictjson.parse(strictjson.canonical(body), max_bytes=1 << 20), body, "the packet written and read")


def _message(data: bytes) -> None:
    left, right = _pair()
    left.send(data or b"{}")
    received = Channel(right, "fuzz").receive(*_TYPES, timeout_s=0)
    body = {"t": channel._NAME_OF[type(received.message)], **records.encode(received.message)}
    if len(strictjson.canonical(body)) > MAX_PACKET_BYTES:
        return  # defaults written out; the sender refuses it
    back, again = Connection.pair()
    try:
        Channel(back).tell(received.message)
        same(Channel(again).receive(*_TYPES, timeout_s=0).message, received.message, "the message written and read")
    finally:
        back.close()
        again.close()


def _pair() -> tuple[socket.socket, Connection]:
    while _SIDES:
        _SIDES.pop().close()
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection = Connection(right)
    _SIDES.extend((left, connection._socket))
    return left, connection


def _append(data: bytes) -> None:
    """What the ledger does with a request: each entry is refused, or is a line that reads back as what was sent."""
    value = strictjson.parse(data, max_bytes=MAX_PACKET_BYTES)
    request = records.decode(messages.Append, value)
    for number, entry in enumerate(request.entries):
        for room in ("agent", "runner", "ledger"):
            try:
                body = catalogue.normalise(entry.type, entry.body, room)
                line, tip = event.build(entry.type, entry.body, stamp(number, room))
            except FormatError as exc:
                assert exc.code == "event-invalid", exc
                continue
            read = event.parse(line)
            same((read.type, read.room, read.tip), (entry.type, room, tip), "the event read back")
            same(set(read.body), set(body), "the keys of the event read back")
            seal = chain.unseal(line)
            assert seal is not None and seal[0] == seal[1] and trail.read_line(line) is not None, line


def _agent_config(data: bytes) -> None:
    config = parse_config(data)
    same(parse_config(strictjson.canonical(records.encode(config))), config, "the configuration written and read")


def _states(data: bytes) -> None:
    for table in (AGENT_STATES, RUN_STATES):
        try:
            lines = table.parse(data.split(b"\n"))
        except Exception as exc:
            if table is RUN_STATES:
                raise
            assert getattr(exc, "code", "") == "state-corrupt", exc
            continue
        same(b"\n".join(taskstate.encode(line) for line in lines), data, "the states written again")


def _spooled_task(data: bytes) -> None:
    task = records.decode(SpooledTask, strictjson.parse(data, max_bytes=1 << 20, what="task.json"))
    assert task.directive.correlation_id == task.correlation_id
    same(records.decode(SpooledTask, records.encode(task)), task, "the task written and read")


def _reader_answer(data: bytes) -> None:
    """What a confined child says, which has read hostile bytes."""
    assert isinstance(result_of(data), dict)


def _message_seeds() -> list[bytes]:
    limits = Limits(1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1)
    plan = SandboxPlan(
        "r1", "namespaces", 0, ("python", "x"), "/project", {"A": "b"}, (Bind("/usr", "/usr", True),), "/s", limits,
        links=(Link("/bin", "usr/bin"),),
    )  # fmt: skip
    rules = ModelRules(("npz",), 10)
    bodies: list[Any] = [
        channel.Hello(1, "0.1.0", "runner", {"policy": "ab" * 32}), channel.Refused("paused", "m", "h"),
        messages.TaskOffer("c", "train", "m", "s", "r", "h:1", "{}"), messages.ReceiveModel("r1", 5, True),
        messages.ModelReceived(3, "ab" * 32), messages.Released("r1", "train", "{}", 3, "ab" * 32, 4, "u", ("k",)),
        messages.Delivered("r1", "unknown"), messages.Append((messages.Entry("ab" * 16, "computed", {"run": "r1"}),)),
        messages.Recorded((1, 2), 3), messages.Floors(1, 2, {"p": 3}), control.Pause("why"), control.Reload(("token",)),
        control.StatusReport("agent", "0.1.0", 1, 2, "serving", facts={"a": [1]}), control.Done(True, "x"), control.Status(),
        step.Prepare(plan), step.Inspect(plan, rules), step.Gate(plan, GateRules("train", 5, model=rules)),
        step.Ended(StepResult("exited", 0, denied={"ptrace": 2})),
    ]  # fmt: skip
    return [strictjson.canonical({"t": channel._NAME_OF[type(body)], **records.encode(body)}) for body in bodies]


def _append_seeds() -> list[bytes]:
    seeds = []
    for kind in catalogue.EVENTS[::3]:
        entry = messages.Entry("ab" * 16, kind.name, body_of(kind, full=True))
        seeds.append(strictjson.canonical(records.encode(messages.Append((entry,)))))
    return seeds


def _state_seeds() -> list[bytes]:
    seeds = []
    for table, ways in (
        (AGENT_STATES, ("received", "offered", "failed", "reported")),
        (RUN_STATES, ("accepted", "about-to-run")),
    ):
        lines = []
        before = None
        for state in ways:
            before = table.advance(before, state, 5, {"code": "x"})
            lines.append(taskstate.encode(before))
        seeds.append(b"\n".join(lines))
    return seeds


def _task_seeds() -> list[bytes]:
    return [strictjson.canonical(records.encode(SpooledTask("c", "x", "m", "s", "r", "h:1", "{}", "", 1, 2, "train")))]


_CONFIG = b'{"api_url":"https://a","cert":"/c","client_id":"x","key":"/k","poll_interval_ms":50,"state_dir":"/s","token":"a.b.c"}'
_ANSWERS = [b'{"arrays":1,"format":"npz"}', b'{"failed":{"code":"container-invalid","hint":"h","message":"m"}}']
_PEER = frozenset({"peer-protocol", "peer-closed"})
_RECORD = frozenset({"json-invalid", "record-invalid"})
_NAMES = tuple(f'"{name}"'.encode() for name in sorted(channel._CLASS_OF))
_KINDS = tuple(f'"{kind.name}"'.encode() for kind in catalogue.EVENTS)

TARGETS = (
    Target("packet", _packet, lambda: [b'{"t":"hello","x":[1,{"y":"z"}]}'], _PEER, json=True),
    Target("message", _message, _message_seeds, _PEER, _NAMES, json=True),
    Target("ledger-append", _append, _append_seeds, _RECORD, _KINDS, json=True),
    Target("agent-config", _agent_config, lambda: [_CONFIG], frozenset({"config-invalid"}), json=True),
    Target("task-states", _states, _state_seeds, frozenset({"state-corrupt"}), (b'"offered"', b'"state"'), json=True),
    Target("spooled-task", _spooled_task, _task_seeds, _RECORD, json=True),
    Target(
        "reader-answer",
        _reader_answer,
        lambda: _ANSWERS,
        frozenset({"json-invalid", "launch-failed", "container-invalid", "internal"}),
        json=True,
    ),
)
