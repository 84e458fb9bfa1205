# SPDX-License-Identifier: Apache-2.0
"""A taken agent on an installed node: as user scaleoutd, with arbitrary packets, against runner, step and ledger.

Nothing runs that was not signed, nothing leaves that was not released, no event is forged in another room's name.  The program
is taken_agent.py; the same cases on the room alone, and more of them, are in tests/unit/runner and tests/unit/ledger.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scaleoutd.runner.runs import run_name
from tests.e2e.site import SEED
from tests.system.guest import Guest
from tests.system.hospital import GATE, PROJECT, Hospital
from tests.system.image import TREE
from tests.system.taken_agent import MESSAGES, MODEL

PROGRAM = "/opt/taken_agent.py"
STATE = "/var/lib/scaleoutd"
# Shows that it ran, and goes on for as long as a file of its data set is there.
COUNTED = """
import os, time
print("ran", flush=True)
while os.path.exists(os.environ["SCALEOUTD_DATA_GATE"] + "/slow"):
    time.sleep(0.05)
"""
RUNNERS = ("release", "run-about-to-start", "manifest-verified", "computed", "outputs-accepted", "run-ended", "policy-loaded")
LEDGERS = ("epoch-key-made", "clock-floor-lowered", "floors-noted", "segment-closed", "operator-command", "event-refused")
# The refusal is lost where a packet was still on its way when the ledger closed: ECONNRESET comes first (unix(7)).
TURNED_AWAY = ("peer-denied", "hung-up")
SENDING = {"run": "r1", "kind": "update"}


class Taken:
    """The node, and the attacker in it."""

    def __init__(self, hospital: Hospital) -> None:
        self.hospital, self.guest = hospital, hospital.guest
        self.guest.write(PROGRAM, Path(TREE, "tests/system/taken_agent.py").read_bytes())
        self.guest.write(MODEL, SEED)

    def does(self, *cases: tuple[str, ...], user: str = "scaleoutd", check: bool = True) -> list[str]:
        """The words for these cases, each with its arguments."""
        environment = {"PYTHONPATH": "/usr/lib/scaleoutd"}
        command = ["/usr/bin/python3", "-B", PROGRAM, json.dumps([(name, rest) for name, *rest in cases])]
        return [str(word) for word in json.loads(self.guest.run(command, user=user, env=environment, timeout_s=120).text)]

    def times_run(self, correlation_id: str) -> int:
        """How often the step itself began, by what it printed."""
        printed = self.guest.run(["cat", f"{STATE}/runner/output/{run_name(correlation_id)}.log"], check=False).stdout
        return printed.count("ran\n")

    def about(self, correlation_id: str, *names: str) -> list[dict[str, Any]]:
        return [event for event in self.hospital.trail(*names) if event.get("correlation_id") == correlation_id]

    def events(self) -> list[tuple[str, str]]:
        """(room, type) of all that the ledger stamped."""
        text = self.guest.run("cat /var/lib/scaleoutd/audit/*.jsonl").stdout
        found = [json.loads(line) for line in text.splitlines()]
        return [(event["unmapped"]["room"], event["metadata"]["event_code"]) for event in found]


@pytest.fixture(scope="module")
def taken(node: Guest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Taken]:
    with Hospital(node, tmp_path_factory.mktemp("site"), train_body=COUNTED) as site:
        site.bring()
        site.start()
        yield Taken(site)


def test_control_an_honest_agent_gets_its_result_and_all_of_it_is_on_record(taken: Taken) -> None:
    assert taken.does(("honest", "c1")) == ["released"]
    assert taken.times_run("c1") == 1
    assert len(taken.about("c1", "run-about-to-start")) == len(taken.about("c1", "release")) == 1


# --- what it cannot even reach --------------------------------------------------------------------------------


def test_the_step_and_the_control_sockets_are_closed_to_it(taken: Taken) -> None:
    closed = [("connect", name) for name in ("step.sock", "agent.control", "runner.control", "ledger.control")]
    assert taken.does(*closed) == ["EACCES"] * 4
    assert taken.does(("connect", "step.sock"), user="scaleoutd-runner") == ["connected"]  # the controls
    assert taken.does(*closed[1:], user="root") == ["connected"] * 3


def test_project_policy_store_outbox_and_trail_are_closed_to_it(taken: Taken) -> None:
    kept = [f"{STATE}/runner/{name}" for name in ("outbox", "store", "in", "output", "runs")]
    kept += [f"{PROJECT}/current/train.py", f"{STATE}/audit"]
    for user, word in (("scaleoutd", "EACCES"), ("root", "opened")):
        assert taken.does(*(("open_file", path) for path in kept), user=user) == [word] * len(kept)


# --- nothing runs that was not signed, and nothing twice ------------------------------------------------------


@pytest.mark.parametrize(
    "change", ["echo >>train.py", "touch added.py", "rm train.py", "chmod +x train.py", "ln -sf /etc/passwd train.py"]
)
def test_a_project_that_is_not_what_was_signed_never_runs(taken: Taken, change: str) -> None:
    """Its own user cannot change it; this is what would be if something could."""
    correlation_id = f"unsigned: {change}"
    taken.guest.run(f"cp -a $(readlink -f {PROJECT}/current) /root/kept && cd {PROJECT}/current/ && {change}")
    try:
        (word,) = taken.does(("offer", correlation_id))
    finally:
        taken.guest.run(f"cd $(readlink -f {PROJECT}/current) && rm -r * && cp -a /root/kept/. . && rm -r /root/kept")
    assert word.startswith("file-"), word
    assert taken.times_run(correlation_id) == 0 and not taken.about(correlation_id, "run-about-to-start")
    assert taken.does(("honest", f"signed again after {change}")) == ["released"]


def test_a_correlation_id_is_run_once(taken: Taken) -> None:
    other = json.dumps({"task": "validate", "session_id": "another", "round_id": "another"})
    assert taken.does(("honest", "once"), ("offer", "once"), ("offer", "once", other)) == [
        "released",
        "run-repeated",
        "run-repeated",
    ]
    assert taken.times_run("once") == 1 and len(taken.about("once", "run-about-to-start")) == 1


def test_a_model_that_is_not_what_it_says_or_can_still_be_written_does_not_run(taken: Taken) -> None:
    lies = [("lies_about_the_model", "a lie"), ("no_model", "no model"), ("keeps_the_model_open", "kept open")]
    words = taken.does(*lies)
    assert words[0] == "download-corrupt" and words[2] == "hung-up" and not words[1].startswith("released"), words
    for _, correlation_id in lies:
        assert taken.times_run(correlation_id) == 0 and not taken.about(correlation_id, "release")


@pytest.mark.parametrize(
    "changes",
    [{"task": "shell"}, {"correlation_id": ""}, {"correlation_id": 7}, {"combiner": "a\x1b[2J"}, {"command": "rm"},
     {"settings": {"a": 1}}, {"t": "no-such-message"}, {"t": "execute"}],
    ids=str,
)  # fmt: skip
def test_an_offer_that_is_none_ends_the_connection(taken: Taken, changes: dict[str, Any]) -> None:
    assert taken.does(("bare_offer", json.dumps(changes))) == ["hung-up"]


def test_an_id_that_looks_like_a_path_is_only_an_id(taken: Taken) -> None:
    correlation_id = "../../../scratch/named-by-an-agent"
    assert taken.does(("honest", correlation_id)) == ["released"] and taken.times_run(correlation_id) == 1
    assert not taken.guest.run("find / -xdev -name '*named-by-an-agent*'").text


# --- packets --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["runner.sock", "ledger.sock"])
def test_a_packet_too_large_or_with_descriptors_ends_the_connection_and_leaks_none(taken: Taken, name: str) -> None:
    words = taken.does(("too_large", name), *(("descriptors", name, str(count)) for count in (1, 8, 9, 16)))
    assert set(words) <= {"hung-up", "peer-protocol"}, words
    assert taken.does(("honest", f"after packets to {name}")) == ["released"]


@pytest.mark.parametrize("name", sorted(set(MESSAGES) - {"offer"}))
def test_anything_but_an_offer_first_ends_the_connection(taken: Taken, name: str) -> None:
    assert taken.does(("instead_of_an_offer", name)) == ["hung-up"]


@pytest.mark.parametrize("name", ["released", "delivered", "append", "offer"])
def test_anything_but_the_model_after_an_offer_runs_nothing(taken: Taken, name: str) -> None:
    correlation_id = f"instead of the model: {name}"
    assert taken.does(("instead_of_the_model", correlation_id, name)) == ["hung-up"]
    assert taken.times_run(correlation_id) == 0 and not taken.about(correlation_id, "run-about-to-start")


@pytest.mark.parametrize("room", ["runner", "cli", "ledger", "step"])
def test_a_hello_of_another_room_makes_it_none(taken: Taken, room: str) -> None:
    assert taken.does(("hello_of", "runner.sock", room)) == ["hung-up"]
    assert taken.does(("hello_of", "ledger.sock", room))[0] in TURNED_AWAY


# --- nothing leaves that was not released ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["released", "delivered", "stage", "open"])
def test_what_comes_while_it_runs_ends_the_run_and_nothing_is_released(taken: Taken, name: str) -> None:
    correlation_id = f"while it runs: {name}"
    taken.guest.run(["touch", f"{GATE}/slow"])
    try:
        assert taken.does(("while_it_runs", correlation_id, name)) == ["hung-up"]
    finally:
        taken.guest.run(["rm", f"{GATE}/slow"])
    assert not taken.about(correlation_id, "release", "computed")


def test_a_delivery_of_anothers_run_forgets_neither(taken: Taken) -> None:
    assert taken.does(("delivers_anothers", "attacker", "victim")) == ["hung-up"]
    forgotten = {event["run"]: event["outcome"] for event in taken.hospital.trail("outbox-forgotten")}
    assert {forgotten[run_name(name)] for name in ("attacker", "victim")} == {"acknowledged"}


def test_without_a_ledger_nothing_runs_and_nothing_leaves(taken: Taken) -> None:
    taken.guest.run("systemctl stop scaleoutd-ledger.socket scaleoutd-ledger.service", timeout_s=90)
    try:
        (word,) = taken.does(("offer", "no ledger"))
    finally:
        taken.guest.run("systemctl start scaleoutd-ledger.socket && systemctl restart scaleoutd.service", timeout_s=90)
        taken.hospital.wait_connected()
    assert word not in ("released", "answered Released")
    assert taken.times_run("no ledger") == 0 and not taken.about("no ledger", "run-about-to-start", "release")


# --- no event in another's name -------------------------------------------------------------------------------


def test_no_event_is_recorded_in_another_rooms_name(taken: Taken) -> None:
    before = taken.events()
    words = taken.does(*(("record", kind, json.dumps({"run": "forged"})) for kind in (*RUNNERS, *LEDGERS)))
    assert set(words) == {"event-invalid"}, words
    for room in ("runner", "cli", "ledger"):  # by its hello
        assert taken.does(("record", "release", json.dumps({"run": "forged"}), room))[0] in TURNED_AWAY
    for more in ({"room": "runner"}, {"uid": 0}, {"sequence": 1}):  # by what it says in a type of its own
        assert taken.does(("record", "sending", json.dumps({**SENDING, **more}))) == ["event-invalid"]
    added = taken.events()[len(before) :]
    assert {room for room, _ in added} <= {"agent", "ledger"} and ("agent", "sending") not in added, added
    assert added.count(("ledger", "event-refused")) >= len(RUNNERS) + len(LEDGERS)
    assert {event["room"] for event in taken.hospital.trail("event-refused")} == {"agent"}
    # The control: an event of its own is recorded, in its own name.
    taken.does(("record", "sending", json.dumps(SENDING)))
    assert ("agent", "sending") in taken.events()[len(before) :]


def test_after_all_that_every_result_was_released_first_and_the_trail_holds(taken: Taken) -> None:
    taken.guest.run("scaleoutctl audit verify /var/lib/scaleoutd/audit")
    released = {event["run"] for event in taken.hospital.trail("release")}
    assert released == {event["run"] for event in taken.hospital.trail("outbox-forgotten")}
    started = taken.hospital.trail("run-about-to-start")
    assert len(started) == len({(event["run"], event["attempt"]) for event in started})
    assert not taken.guest.run(f"ls {STATE}/runner/outbox").text
    taken.hospital.rounds(1)  # and the node still works
