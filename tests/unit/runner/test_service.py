# SPDX-License-Identifier: Apache-2.0
"""A taken agent against the runner: nothing runs twice, nothing leaves that was not released, and nobody else is harmed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scaleoutd.core.plan import SandboxPlan
from scaleoutd.errors import LedgerError, PeerError, PolicyDeniedError, ScaleoutError
from scaleoutd.ipc.channel import Channel, Hello
from scaleoutd.ipc.doors import Open, Ready
from scaleoutd.ipc.messages import (
    Append,
    AskFloors,
    CancelTask,
    Delivered,
    Entry,
    Forgotten,
    ModelReceived,
    ReceiveModel,
    Released,
    Stage,
    TaskOffer,
)
from scaleoutd.ipc.named import NamedServerDoor
from scaleoutd.ipc.packets import Connection
from scaleoutd.ipc.step import CancelStep
from scaleoutd.runner import planner, receive
from scaleoutd.runner.connections import MAX_CONNECTIONS
from scaleoutd.runner.runs import run_name
from tests.e2e.site import SEED
from tests.living import below
from tests.unit.runner.taken_agent import Bench

DIGEST = hashlib.sha256(b"").hexdigest()
OFFER = TaskOffer("other", "train", "m", "s", "r", "combiner.example:443")
RELEASED = Released("a" * 24, "train", "{}", 1, DIGEST, 1)
MESSAGES: list[Any] = [
    ModelReceived(0, DIGEST),
    ReceiveModel("x", 1),
    RELEASED,
    Stage("release"),
    Forgotten("a" * 24),
    Append((Entry("0" * 32, "release", {}),)),
    AskFloors(),
    Open("step"),
    Ready(),
    CancelStep(),
]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with Bench(tmp_path_factory.mktemp("bench")) as bench:
        yield bench


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Bench]:
    """For what changes the room or the ledger."""
    with Bench(tmp_path) as bench:
        yield bench


def test_control_an_honest_agent_gets_its_update_and_all_of_it_is_on_record(own: Bench) -> None:
    agent = own.agent()
    agent.offer("c1")
    agent.send_model()
    received = agent.answer()
    released: Released = received.message
    (fd,) = received.descriptors
    data = os.pread(fd, released.size_bytes + 1, 0)
    received.close()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (released.size_bytes, released.sha256)
    agent.deliver(released.run)
    assert own.times_run("c1") == 1
    # The order of the way of a task; what is noted goes to the ledger with the next barrier.
    assert own.ledger.types() == [
        "trust-root-accepted", "manifest-verified", "task-authorized", "model-received", "model-inspected", "run-about-to-start",
        "run-ended", "outputs-accepted", "computed", "release", "outbox-forgotten",
    ]  # fmt: skip
    (release,) = own.recorded("release")
    assert (release["sha256"], release["size_bytes"]) == (released.sha256, released.size_bytes)
    assert not any((own.state / "outbox").iterdir())


# --- messages out of place ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message", [*MESSAGES, Delivered("a" * 24, "acknowledged"), CancelTask("x")], ids=lambda m: type(m).__name__
)
def test_anything_but_an_offer_first_ends_the_connection(bench: Bench, message: Any) -> None:
    agent = bench.agent()
    agent.channel.tell(message)
    assert agent.is_hung_up_on()


@pytest.mark.parametrize("message", [*MESSAGES[1:], OFFER, Delivered("a" * 24, "acknowledged")], ids=lambda m: type(m).__name__)
def test_anything_but_the_model_after_an_offer_ends_the_task_before_it_runs(bench: Bench, message: Any) -> None:
    correlation_id = f"instead of the model: {type(message).__name__}"
    agent = bench.agent()
    agent.offer(correlation_id)
    os.close(agent.take_file())
    agent.channel.tell(message)
    assert agent.is_hung_up_on()
    assert bench.times_run(correlation_id) == 0
    assert not (bench.state / "runs" / run_name("other")).exists()


@pytest.mark.parametrize("message", [*MESSAGES, OFFER, Delivered("a" * 24, "acknowledged")], ids=lambda m: type(m).__name__)
def test_anything_but_a_cancellation_while_it_runs_ends_the_run(bench: Bench, message: Any) -> None:
    correlation_id = f"while it runs: {type(message).__name__}"
    agent = bench.agent()
    agent.offer(correlation_id, settings='{"sleep":30}')
    agent.send_model()
    agent.wait_stage("execute")
    agent.channel.tell(message)
    assert agent.is_hung_up_on()
    released = [event for event in bench.recorded("release") if event["correlation_id"] == correlation_id]
    assert not released


def test_a_descriptor_with_an_offer_is_closed_and_the_connection_ends(bench: Bench) -> None:
    agent = bench.agent()
    read, write = os.pipe()
    agent.channel.tell(OFFER, [write])
    os.close(write)
    assert agent.is_hung_up_on()
    assert os.read(read, 1) == b""  # nobody holds the other end
    os.close(read)


def test_a_second_offer_on_a_connection_is_not_answered(bench: Bench) -> None:
    agent = bench.agent()
    agent.offer("first of two")
    agent.send_model()
    agent.deliver(agent.released().run)
    try:
        agent.offer("second of two")
    except PeerError:
        pass  # it hung up already
    assert agent.is_hung_up_on()
    assert not (bench.state / "runs" / run_name("second of two")).exists()


def test_an_offer_that_is_no_offer_ends_the_connection(bench: Bench) -> None:
    good = {"t": "task-offer", "correlation_id": "x", "task": "train", "model_id": "m", "session_id": "s", "round_id": "r",
            "combiner": "c"}  # fmt: skip
    for changed in (
        {"task": "shell"},
        {"correlation_id": ""},
        {"correlation_id": "a\nb"},
        {"correlation_id": "x" * 257},
        {"correlation_id": 7},
        {"settings": "x" * (32 * 1024 + 1)},
        {"settings": {"a": 1}},
        {"combiner": "a\x1b[2J"},
        {"command": "rm"},
        {"t": "no-such-message"},
    ):
        agent = bench.agent()
        agent.channel.connection.send({**good, **changed}, [])
        assert agent.is_hung_up_on(), changed


@pytest.mark.parametrize("settings", ["[" * 30_000, '{"a":1,"a":2}', "{", '{"a":1e999}', "NaN", "\ud800"])
def test_settings_that_are_no_plain_json_run_nothing(bench: Bench, settings: str) -> None:
    correlation_id = f"settings {settings[:20]!r}"
    agent = bench.agent()
    try:
        agent.offer(correlation_id, settings=settings)
    except (ScaleoutError, UnicodeEncodeError):
        return  # it does not even go through the codec
    with pytest.raises(ScaleoutError):
        received = agent.answer()
        received.close()
        assert received.message is None, "the runner asked for the model"
    assert bench.times_run(correlation_id) == 0


@pytest.mark.parametrize("name", ["../../../tmp/x", "/etc/passwd", ".", "..", "a/b", "-rf", "%2e%2e%2f", "x" * 256, "‮txt", "~"])
def test_ids_that_look_like_paths_are_only_ids(bench: Bench, name: str) -> None:
    outside = {*below(bench.folder, leave_out=("runner",))}
    released = bench.complete(name, model_id=name, session_id=name, round_id=name)
    assert released.run == run_name(name)
    assert {*below(bench.folder, leave_out=("runner",))} == outside
    (entry,) = [path for path in (bench.state / "runs").iterdir() if path.name == released.run]
    assert entry.is_dir()


# --- once -----------------------------------------------------------------------------------------------------


def test_a_task_that_was_delivered_does_not_run_again(bench: Bench) -> None:
    bench.complete("delivered")
    agent = bench.agent()
    agent.offer("delivered")
    with pytest.raises(PolicyDeniedError) as caught:
        agent.answer()
    assert caught.value.code == "run-repeated"
    assert bench.times_run("delivered") == 1


def test_a_task_that_failed_does_not_run_again(own: Bench) -> None:
    (own.project.folder / "train.py").write_text("raise SystemExit(3)\n")
    own.project.sign()
    for _ in range(2):
        agent = own.agent()
        agent.offer("failed")
        with pytest.raises(ScaleoutError) as caught:
            if own.recorded("run-about-to-start"):
                agent.answer()
            agent.send_model()
            agent.answer()
        assert caught.value.code == "step-failed"
    assert len(own.recorded("run-about-to-start")) == 1


def test_an_offer_repeated_before_the_delivery_gets_the_same_bytes_and_runs_nothing(bench: Bench) -> None:
    first = bench.agent()
    first.offer("asked twice")
    first.send_model()
    released = first.released()
    first.channel.close()
    again = bench.agent()
    again.offer("asked twice")
    assert again.released() == released
    again.deliver(released.run)
    assert bench.times_run("asked twice") == 1


def test_the_first_offer_of_an_id_counts(bench: Bench) -> None:
    """Another task, model, session, destination or settings under an id that was run: answered from what was run."""
    first = bench.agent()
    first.offer("same id")
    first.send_model()
    released = first.released()
    first.channel.close()
    other = bench.agent()
    other.offer("same id", task="validate", combiner="elsewhere.example:443", session_id="other", settings='{"sleep":1}')
    assert other.released() == released
    destinations = {event["destination"] for event in bench.recorded("release") if event["correlation_id"] == "same id"}
    assert destinations == {"combiner.example:443"}


def test_offers_of_one_id_at_once_run_once(bench: Bench) -> None:
    """One runs; the others wait and get the same bytes, or hear that it is over."""
    answers: list[Any] = []

    def ask() -> None:
        agent = bench.agent()
        agent.offer("at once")
        try:
            received = agent.channel.receive(ReceiveModel, Released, timeout_s=60)
            if isinstance(received.message, ReceiveModel):
                writer = received.take()
                os.write(writer, SEED)
                os.close(writer)
                agent.say_received()
                answers.append(agent.released().sha256)
            else:
                received.close()
                answers.append(received.message.sha256)
        except ScaleoutError as exc:
            answers.append(exc.code)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(answers) == 6
    assert len(set(answers)) == 1, answers
    assert bench.times_run("at once") == 1
    assert len([event for event in bench.recorded("run-about-to-start") if event["correlation_id"] == "at once"]) == 1


def test_an_agent_that_hangs_up_while_it_runs_gets_attempt_two_on_record_and_no_fourth(bench: Bench) -> None:
    for _ in range(3):
        agent = bench.agent()
        agent.offer("hung up", settings='{"sleep":30}')
        agent.send_model()
        agent.wait_stage("execute")
        agent.channel.close()
    agent = bench.agent()
    agent.offer("hung up")
    with pytest.raises(ScaleoutError) as caught:
        agent.answer()
    assert caught.value.code == "launch-failed"
    of_it = [event for event in bench.recorded("run-about-to-start") if event["correlation_id"] == "hung up"]
    assert [event["attempt"] for event in of_it] == [1, 2, 3]
    assert bench.times_run("hung up") <= 3


def test_a_restart_does_not_make_the_runner_forget(own: Bench) -> None:
    own.complete("before the restart")
    pending = own.agent()
    pending.offer("not delivered")
    pending.send_model()
    released = pending.released()
    own.settle()
    own.start()
    own.runner.recover()
    agent = own.agent()
    agent.offer("before the restart")
    with pytest.raises(PolicyDeniedError):
        agent.answer()
    again = own.agent()
    again.offer("not delivered")
    assert again.released() == released
    assert own.times_run("not delivered") == 1


# --- what leaves ----------------------------------------------------------------------------------------------


def test_a_delivery_of_another_run_forgets_neither(bench: Bench) -> None:
    victim, attacker = bench.agent(), bench.agent()
    victim.offer("victim")
    victim.send_model()
    of_victim = victim.released()
    attacker.offer("attacker")
    attacker.send_model()
    of_attacker = attacker.released()
    attacker.channel.tell(Delivered(of_victim.run, "dropped"))
    assert attacker.is_hung_up_on()
    for released in (of_victim, of_attacker):
        assert (bench.state / "outbox" / released.run / "update.zip").exists()
    victim.deliver(of_victim.run)
    again = bench.agent()
    again.offer("attacker")
    again.deliver(again.released().run)


@pytest.mark.parametrize("run", ["..", "../victim", "0" * 24, "x"])
def test_a_delivery_of_a_run_that_never_was_ends_the_connection(bench: Bench, run: str) -> None:
    agent = bench.agent()
    agent.offer(f"delivered as {run}")
    agent.send_model()
    released = agent.released()
    agent.channel.connection.send({"t": "delivered", "run": run, "outcome": "acknowledged"}, [])
    assert agent.is_hung_up_on()
    assert (bench.state / "outbox" / released.run / "update.zip").exists()


def test_the_descriptor_of_a_result_cannot_write(bench: Bench) -> None:
    agent = bench.agent()
    agent.offer("read only")
    agent.send_model()
    received = agent.answer()
    fd = received.take()
    assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    with pytest.raises(OSError):
        os.write(fd, b"x")
    with pytest.raises(OSError):
        os.ftruncate(fd, 0)
    os.close(fd)


def test_a_model_whose_file_is_still_open_does_not_run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receive, "LEASE_WAIT_S", 0.2)
    agent = bench.agent()
    agent.offer("kept open")
    writer = agent.take_file()
    os.write(writer, SEED)
    agent.say_received()
    assert agent.is_hung_up_on()
    os.close(writer)
    assert bench.times_run("kept open") == 0
    bench.complete("kept open")  # nothing was decided about it
    assert bench.times_run("kept open") == 1


@pytest.mark.parametrize("lie", ["size", "digest"])
def test_a_model_that_is_not_what_the_agent_says_does_not_run_and_both_digests_are_on_record(bench: Bench, lie: str) -> None:
    true = hashlib.sha256(SEED).hexdigest()
    agent = bench.agent()
    agent.offer(f"lies about the {lie}")
    writer = agent.take_file()
    os.write(writer, SEED)
    os.close(writer)
    agent.channel.tell(ModelReceived(1, true) if lie == "size" else ModelReceived(len(SEED), DIGEST))
    with pytest.raises(ScaleoutError) as caught:
        agent.released()
    assert caught.value.code == "download-corrupt"
    bench.settle()
    for name in ("model-refused", "run-failed"):
        (event,) = [event for event in bench.recorded(name) if event["correlation_id"] == f"lies about the {lie}"]
        assert event["code"] == "download-corrupt" and true in event["message"]
    assert bench.times_run(f"lies about the {lie}") == 0
    bench.complete(f"tells the truth about the {lie}")
    (event,) = [e for e in bench.recorded("model-received") if e["correlation_id"] == f"tells the truth about the {lie}"]
    assert event["sha256"] == true


def test_a_model_that_is_none_is_refused_before_anything_runs(bench: Bench) -> None:
    for index, data in enumerate((b"", b"not a model", b"\x80\x04K\x01.", SEED[:-30], b"PK\x03\x04" + bytes(1000))):
        agent = bench.agent()
        agent.offer(f"no model {index}")
        agent.send_model(data)
        with pytest.raises(ScaleoutError):
            agent.released()
        assert bench.times_run(f"no model {index}") == 0


def test_a_cancellation_ends_the_step_on_record(bench: Bench) -> None:
    agent = bench.agent()
    agent.offer("cancelled", settings='{"sleep":30}')
    agent.send_model()
    agent.wait_stage("execute")
    agent.channel.tell(CancelTask("round is over"))
    with pytest.raises(ScaleoutError) as caught:
        agent.released()
    assert caught.value.code == "step-cancelled"
    (event,) = [event for event in bench.recorded("run-failed") if event["correlation_id"] == "cancelled"]
    assert event["code"] == "step-cancelled"


def test_the_agent_hears_a_code_and_no_text_of_the_node(bench: Bench) -> None:
    (bench.project.folder / "patients.csv").write_text("name\n")
    try:
        agent = bench.agent()
        agent.offer("told little")
        with pytest.raises(ScaleoutError) as caught:
            agent.answer()
    finally:
        (bench.project.folder / "patients.csv").unlink()
    assert caught.value.code == "file-extra"
    assert "patients" not in caught.value.message + caught.value.hint
    (event,) = [event for event in bench.recorded("manifest-refused") if event["correlation_id"] == "told little"]
    assert event["file"] == "patients.csv"


# --- no record, no work ---------------------------------------------------------------------------------------


def test_without_a_record_of_the_start_nothing_runs(own: Bench) -> None:
    own.ledger.fail_on("run-about-to-start")
    agent = own.agent()
    agent.offer("c1")
    agent.send_model()
    with pytest.raises(LedgerError):
        agent.released()
    assert own.times_run("c1") == 0
    own.ledger.heal()
    own.complete("c1")
    assert own.times_run("c1") == 1


def test_without_a_record_of_the_release_nothing_leaves_and_nothing_is_lost(own: Bench) -> None:
    own.ledger.fail_on("release")
    agent = own.agent()
    agent.offer("c1")
    agent.send_model()
    with pytest.raises(LedgerError):
        agent.released()
    own.ledger.heal()
    again = own.agent()
    again.offer("c1")
    released = again.released()
    assert own.times_run("c1") == 1
    assert [event["sha256"] for event in own.recorded("release")] == [released.sha256]


def test_a_room_that_floods_with_connections_does_not_stop_another_s_task(bench: Bench) -> None:
    idle = [bench.agent() for _ in range(30)]
    assert bench.complete("beside idle ones").task == "train"
    for agent in idle:
        agent.channel.close()


def test_connections_without_end_take_neither_threads_nor_the_door(own: Bench) -> None:
    """The unit has 64 tasks: one thread for each connection, without a bound, ended the whole room."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(str(own.folder / "sock"))
    listening.listen(128)
    door = NamedServerDoor(listening, {os.geteuid(): "agent"}, lambda status: None)
    serving = threading.Thread(target=own.runner.serve, args=[door], daemon=True)
    serving.start()
    idle = [connected(own.folder / "sock") for _ in range(MAX_CONNECTIONS)]
    for one in idle:  # each has its thread, which has said hello
        one.receive(Hello, timeout_s=20).close()
    late = connected(own.folder / "sock")
    with pytest.raises(PeerError) as caught:
        late.receive(Hello, timeout_s=20)
    assert caught.value.code == "peer-closed"
    assert any("are open" in line for line in own.log)
    for one in idle:
        one.close()
    while True:  # control: as soon as there is a place, the next is served
        agent = connected(own.folder / "sock")
        try:
            agent.receive(Hello, timeout_s=20).close()
            break
        except PeerError:
            agent.close()
    agent.close()
    listening.shutdown(socket.SHUT_RDWR)
    serving.join(20)
    assert not serving.is_alive()
    listening.close()


def connected(path: Path) -> Channel:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(str(path))
    return Channel(Connection(sock), "runner")


def test_settings_without_a_schema_in_the_policy_are_refused(tmp_path: Path) -> None:
    with Bench(tmp_path, settings_schema=None) as bench:
        for settings in ('{"epochs":1000000}', "[1]", '"x"'):
            agent = bench.agent()
            agent.offer(settings, settings=settings)
            with pytest.raises(PolicyDeniedError) as caught:
                agent.answer()
            assert caught.value.code == "settings-denied"
        bench.complete("control")


def test_a_budget_is_counted_by_runs_and_not_by_ids(tmp_path: Path) -> None:
    with Bench(tmp_path, budget={"runs_per_day": 2}) as bench:
        bench.complete("one")
        bench.complete("two")
        agent = bench.agent()
        agent.offer("three")
        with pytest.raises(PolicyDeniedError) as caught:
            agent.answer()
        assert caught.value.code == "budget-exhausted"


def test_plans_hold_nothing_that_the_agent_said_but_the_task(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every string of the plan against every string of the offer."""
    seen: list[SandboxPlan] = []
    make = planner.make_plan

    def note(given: planner.PlanInputs) -> SandboxPlan:
        seen.append(make(given))
        return seen[-1]

    monkeypatch.setattr(planner, "make_plan", note)
    marks = {key: f"mark-{key}" for key in ("model_id", "session_id", "round_id", "combiner")}
    bench.complete("mark-correlation", **marks, settings='{"mark":"mark-settings"}')
    assert seen
    assert "mark-" not in repr(seen)
