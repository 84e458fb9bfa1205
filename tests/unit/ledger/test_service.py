# SPDX-License-Identifier: Apache-2.0
"""A real ledger process: who may say what, and what holds when it is killed, full, or spoken to badly."""

from __future__ import annotations

import json
import random
import resource
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scaleoutd.errors import FormatError, LedgerError, PeerError
from scaleoutd.ipc.channel import PROTOCOL, Hello
from scaleoutd.ipc.ledger_client import LedgerClient
from scaleoutd.ipc.messages import Append, AskFloors, Entry, Floors, Recorded
from scaleoutd.ledger.service import MAX_CLIENTS_OF_A_ROOM
from tests.unit.ledger.harness import Door, LedgerProcess, lines_of, verdict_of

RELEASE = {"run": "r1", "kind": "update", "sha256": "ab" * 32, "size_bytes": 10, "destination": "c.example:443"}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[LedgerProcess]:
    process = LedgerProcess(tmp_path / "state").ready()
    yield process
    if process.process.poll() is None:
        process.kill()


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines_of(folder)]


def types(folder: Path) -> list[str]:
    return [str(event["metadata"]["event_code"]) for event in events(folder)]


def test_what_is_acknowledged_is_there_and_verifies_after_an_orderly_end(ledger: LedgerProcess) -> None:
    runner, agent = ledger.client("runner"), ledger.client("agent")
    first = runner.record("computed", run="r1")
    second = agent.record("sending", run="r1")
    assert second.sequences[0] == first.sequences[0] + 1
    assert types(ledger.folder)[first.sequences[0] :] == ["computed", "sending"]
    assert ledger.stop() == (0, "")
    assert types(ledger.folder)[-1] == "ledger-stopped"
    verdict = verdict_of(ledger.folder)
    assert verdict.ok and verdict.signed_size == verdict.size == len(lines_of(ledger.folder))


def test_the_ledger_stamps_room_sequence_time_and_uid_itself(ledger: LedgerProcess) -> None:
    before = time.time_ns() // 1_000_000
    recorded = ledger.client("runner").record("computed", run="r1")
    event = events(ledger.folder)[recorded.sequences[0]]
    assert event["metadata"]["sequence"] == recorded.sequences[0]
    assert before <= event["time"] <= recorded.time_ms
    assert event["unmapped"]["room"] == "runner"


def test_the_door_closing_ends_it_in_order(ledger: LedgerProcess) -> None:
    ledger.close_door()
    status, _ = ledger.end()
    assert status == 0
    assert types(ledger.folder)[-1] == "ledger-stopped"


def test_a_taken_agent_cannot_write_a_release(ledger: LedgerProcess) -> None:
    channel = ledger.connect("agent")
    channel.greet("agent")
    with pytest.raises(FormatError, match="may not send it") as refused:
        channel.ask(Append((Entry(secrets.token_hex(16), "release", RELEASE),)), Recorded, timeout_s=60)
    assert refused.value.code == "event-invalid"
    last = events(ledger.folder)[-1]
    assert last["metadata"]["event_code"] == "event-refused"
    assert last["unmapped"]["event"]["room"] == "agent" and last["unmapped"]["event"]["type"] == "release"
    assert last["unmapped"]["room"] == "ledger"
    ledger.client("runner").record("release", **RELEASE)  # the control: the runner may


def test_a_taken_agent_cannot_write_the_ledgers_own_events(ledger: LedgerProcess) -> None:
    channel = ledger.connect("agent")
    channel.greet("agent")
    for type_ in ("epoch-key-made", "clock-floor-lowered", "floors-noted", "segment-closed", "manifest-verified", "key-made"):
        with pytest.raises(FormatError, match="may not send it"):
            channel.ask(Append((Entry(secrets.token_hex(16), type_, {}),)), Recorded, timeout_s=60)
    assert types(ledger.folder).count("event-refused") == 6


def test_a_hello_of_another_room_ends_the_connection(ledger: LedgerProcess) -> None:
    channel = ledger.connect("agent")
    channel.greet("runner")
    with pytest.raises(PeerError, match="connection is that of room agent"):
        channel.expect(Floors, timeout_s=60)
    with pytest.raises(PeerError):
        channel.ask(AskFloors(), Floors, timeout_s=60)
    assert ledger.client("runner").floors().time_ms > 0


def test_a_room_that_has_no_business_here_is_not_let_in(ledger: LedgerProcess) -> None:
    channel = ledger.connect("step")
    with pytest.raises(PeerError):
        channel.greet("step", timeout_s=60)


def test_a_request_with_one_wrong_event_records_none_of_it(ledger: LedgerProcess) -> None:
    channel = ledger.connect("runner")
    channel.greet("runner")
    good, bad = Entry(secrets.token_hex(16), "computed", {"run": "r"}), Entry(secrets.token_hex(16), "computed", {"token": "x"})
    with pytest.raises(FormatError, match="'token' is unknown"):
        channel.ask(Append((good, bad)), Recorded, timeout_s=60)
    assert types(ledger.folder)[-1] == "event-refused" and "computed" not in types(ledger.folder)
    assert channel.ask(Append((good,)), Recorded, timeout_s=60).sequences  # the connection lives on


def test_silent_slow_and_chattering_peers_do_not_stop_the_others(ledger: LedgerProcess) -> None:
    silent = ledger.connect("agent")  # says no hello
    wrong = ledger.connect("agent")
    wrong.connection.send({"t": "nonsense"})
    unread = ledger.connect("agent")  # asks without end and never reads
    unread.tell(Hello(PROTOCOL, "0", "agent"))
    try:
        for _ in range(3000):
            unread.tell(AskFloors())
    except PeerError:
        pass  # it was thrown out
    assert ledger.client("runner").record("computed", run="r1").sequences
    for channel in (silent, wrong, unread):  # were there all the time
        channel.close()


def test_a_taken_agent_cannot_take_the_runners_places(ledger: LedgerProcess) -> None:
    idle = [ledger.connect("agent") for _ in range(MAX_CLIENTS_OF_A_ROOM)]
    for one in idle:
        one.expect(Hello, timeout_s=20)  # it has its place
    more = [ledger.connect("agent") for _ in range(80)]
    for one in more:
        with pytest.raises(PeerError) as caught:
            one.expect(Hello, timeout_s=20)
        assert caught.value.code == "peer-closed"
    assert ledger.client("runner").record("computed", run="r1").sequences
    for one in (*idle, *more):
        one.close()
    # Control: as soon as one has gone the agent is let in again.
    assert ledger.client("agent", retry_for_s=30.0).record("sending", run="r1").sequences


def test_a_message_of_a_megabyte_is_shortened_not_lost(ledger: LedgerProcess) -> None:
    recorded = ledger.client("runner").record("run-failed", run="r1", code="step-failed", message="x" * 1_000_000)
    event = events(ledger.folder)[recorded.sequences[0]]
    assert event["unmapped"]["event"]["message"].endswith("…[cut 1000000 to 1024]")


def test_a_packet_above_the_bound_is_refused_and_the_ledger_lives(ledger: LedgerProcess) -> None:
    channel = ledger.connect("agent")
    channel.greet("agent")
    with socket.socket(fileno=channel.connection.detach()) as raw:
        raw.send(b"x" * 100_000)
    assert ledger.client("runner").record("computed", run="r1").sequences


def test_two_rooms_at_once_get_each_sequence_once(ledger: LedgerProcess) -> None:
    sequences: dict[str, list[int]] = {"agent": [], "runner": []}

    def work(room: str, type_: str) -> None:
        client = ledger.client(room)
        for number in range(60):
            sequences[room] += client.record(type_, run=f"{room}-{number}").sequences

    threads = [threading.Thread(target=work, args=pair) for pair in (("agent", "sending"), ("runner", "computed"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    both = sorted(sequences["agent"] + sequences["runner"])
    assert len(set(both)) == 120
    assert sequences["agent"] == sorted(sequences["agent"])
    ledger.stop()
    assert verdict_of(ledger.folder).ok


def test_many_events_in_one_request_stand_in_their_order(ledger: LedgerProcess) -> None:
    recorded = ledger.client("runner").record_all([("computed", {"run": f"r{number}"}) for number in range(150)])
    assert list(recorded.sequences) == list(range(recorded.sequences[0], recorded.sequences[0] + 150))
    assert [event["unmapped"]["event"]["run"] for event in events(ledger.folder)[-150:]] == [f"r{n}" for n in range(150)]


def test_the_same_id_is_answered_with_the_same_sequence_also_after_a_restart(tmp_path: Path) -> None:
    first = LedgerProcess(tmp_path / "state").ready()
    entry = Entry(secrets.token_hex(16), "release", RELEASE)
    channel = first.connect("runner")
    channel.greet("runner")
    once = channel.ask(Append((entry,)), Recorded, timeout_s=60)
    assert channel.ask(Append((entry,)), Recorded, timeout_s=60).sequences == once.sequences
    first.kill()
    second = LedgerProcess(tmp_path / "state").ready()
    channel = second.connect("runner")
    channel.greet("runner")
    assert channel.ask(Append((entry,)), Recorded, timeout_s=60).sequences == once.sequences
    # the same id in another room is another event: no room can take an id away from another
    agent = second.connect("agent")
    agent.greet("agent")
    other = agent.ask(Append((Entry(entry.event_id, "sending", {"run": "r1"}),)), Recorded, timeout_s=60)
    assert other.sequences != once.sequences
    second.stop()
    assert types(tmp_path / "state").count("release") == 1
    assert verdict_of(tmp_path / "state").ok


def test_a_client_goes_on_when_the_ledger_was_started_again(tmp_path: Path) -> None:
    current = [LedgerProcess(tmp_path / "state").ready()]
    client = LedgerClient(Door(lambda: current[0], "runner"), "runner")
    client.record("computed", run="r1")
    current[0].kill()
    current[0] = LedgerProcess(tmp_path / "state").ready()
    client.record("computed", run="r2")
    current[0].kill()
    with pytest.raises(LedgerError, match="not reached"):
        LedgerClient(Door(lambda: current[0], "runner"), "runner", retry_for_s=0.3).record("computed", run="r3")


def test_a_release_is_under_a_signature_before_it_is_acknowledged(ledger: LedgerProcess) -> None:
    recorded = ledger.client("runner").record("release", **RELEASE)
    ledger.kill()
    verdict = verdict_of(ledger.folder)
    assert verdict.ok and verdict.signed_size > recorded.sequences[0]


def test_killed_40_times_while_it_appends_every_acknowledged_event_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    chance = random.Random(7)
    acknowledged: dict[int, str] = {}
    for cycle in range(40):
        ledger = LedgerProcess(folder, "--segment-bytes", "60000", "--checkpoint-events", "7").ready()
        timer = threading.Timer(chance.uniform(0.0, 0.06), ledger.process.kill)
        client = ledger.client("runner", retry_for_s=0)
        late = cycle % 2  # else it may be killed before it has acknowledged anything
        if not late:
            timer.start()
        try:
            for number in range(10_000):
                name = f"{cycle}-{number}"
                if late and number == 9:
                    timer.start()
                if number % 9 == 8:
                    (sequence,) = client.record("release", **{**RELEASE, "run": name}).sequences
                    acknowledged[sequence] = name
                else:
                    batch = [("computed", {"run": f"{name}-{part}"}) for part in range(chance.randrange(1, 4))]
                    for part, sequence in enumerate(client.record_all(batch).sequences):
                        acknowledged[sequence] = f"{name}-{part}"
        except LedgerError:
            pass
        timer.join()
        ledger.end()
    # The last kill may have come in the middle of a write; like every other torn tail that is cut off at the next start.
    LedgerProcess(folder, "--segment-bytes", "60000", "--checkpoint-events", "7").ready().stop()
    found = events(folder)
    assert len(acknowledged) > 40
    for sequence, name in acknowledged.items():
        assert found[sequence]["unmapped"]["event"]["run"] == name
    verdict = verdict_of(folder)
    assert verdict.ok, verdict.fault
    assert len(list(folder.glob("*.jsonl"))) > 1 and verdict.epochs > 1


def test_killed_25_times_while_it_starts_it_starts_again(tmp_path: Path) -> None:
    chance = random.Random(11)
    for cycle in range(25):
        folder = tmp_path / f"state{cycle % 5}"  # five trails, each killed at its very first start, too
        ledger = LedgerProcess(folder, "--segment-bytes", "6000")
        time.sleep(chance.uniform(0.04, 0.11))
        ledger.kill()
    for number in range(5):
        ledger = LedgerProcess(tmp_path / f"state{number}").ready()
        ledger.client("runner").record("computed", run="r1")
        ledger.stop()
        verdict = verdict_of(tmp_path / f"state{number}")
        assert verdict.ok, verdict.fault


def test_a_full_disk_acknowledges_nothing_and_heals(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    LedgerProcess(folder).ready().stop()
    size = (folder / "00000001.jsonl").stat().st_size

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then write(2) fails with EFBIG, as a full disk does with ENOSPC
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 12_000, size + 12_000))

    ledger = LedgerProcess(folder, preexec=limit).ready()
    client = ledger.client("runner")
    acknowledged = 0
    with pytest.raises(LedgerError) as refused:
        for number in range(1000):
            client.record("computed", run=f"r{number}", message="x" * 500)
            acknowledged += 1
    assert refused.value.code == "ledger-unavailable" and acknowledged > 0
    assert types(folder).count("computed") == acknowledged  # the half line is gone again
    assert client.floors().time_ms > 0  # it lives and says no
    ledger.stop()
    again = LedgerProcess(folder).ready()
    again.client("runner").record("computed", run="healed")
    again.stop()
    assert verdict_of(folder).ok


def test_two_ledgers_cannot_share_a_trail(ledger: LedgerProcess) -> None:
    status, said = LedgerProcess(ledger.folder).end()
    assert status == 78 and "another ledger has it open" in said


def test_a_changed_trail_is_not_continued(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    first = LedgerProcess(folder).ready()
    first.client("runner").record("computed", run="r1")
    first.stop()
    segment = folder / "00000001.jsonl"
    data = segment.read_bytes()
    LedgerProcess(folder).ready().stop()  # the control: unchanged, it starts
    data = segment.read_bytes()
    segment.write_bytes(data.replace(b'"run":"r1"', b'"run":"r2"'))
    status, said = LedgerProcess(folder).end()
    assert status == 65 and "trail-broken" in said
    segment.write_bytes(data[: data.rfind(b"\n", 0, -1) + 1])  # the last event cut off
    status, said = LedgerProcess(folder).end()
    assert status == 65 and "a signed checkpoint knows" in said


def test_a_torn_last_line_is_set_aside_and_on_record(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    LedgerProcess(folder).ready().kill()
    with (folder / "00000001.jsonl").open("ab") as file:
        file.write(b'{"activity_id":3,"half a li')
    with (folder / "checkpoints").open("ab") as file:
        file.write(b"scaleoutd/0011")
    LedgerProcess(folder).ready().stop()
    cut = [event["unmapped"]["event"] for event in events(folder) if event["metadata"]["event_code"] == "tail-cut"]
    assert [(item["file"], item["torn_bytes"]) for item in cut] == [("00000001.jsonl", 27), ("checkpoints", 14)]
    kept = sorted(path.read_bytes() for path in (folder / "torn").iterdir())
    assert kept == [b"scaleoutd/0011", b'{"activity_id":3,"half a li']
    assert verdict_of(folder).ok


@pytest.mark.parametrize("algorithm", ["ed25519", "ecdsa-p256"])
def test_both_algorithms_sign_and_rotate(tmp_path: Path, algorithm: str) -> None:
    folder = tmp_path / "state"
    ledger = LedgerProcess(folder, "--algorithm", algorithm, "--segment-bytes", "20000").ready()
    client = ledger.client("runner")
    for number in range(60):
        client.record("computed", run=f"r{number}")
    ledger.stop()
    verdict = verdict_of(folder)
    assert verdict.ok and verdict.epochs >= 3
    assert [path.name for path in (folder / "private").iterdir()] == [f"epoch-{verdict.epochs}.pem"]
