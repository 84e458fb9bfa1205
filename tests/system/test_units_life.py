# SPDX-License-Identifier: Apache-2.0
"""Start, stop and failure of the units: a node without configuration, a room that hangs, a stop that leaves nothing, an order."""

from __future__ import annotations

from tests.system.guest import Guest
from tests.system.hospital import Hospital
from tests.system.image import BOOKWORM, TRIXIE
from tests.system.promises import check_node, check_task

SUITES = (BOOKWORM, TRIXIE)

SERVICES = ("scaleoutd", "scaleoutd-runner", "scaleoutd-ledger")
PROCESSES = "ps -eo user:32,args | grep '^scaleoutd' || true"


def test_nothing_is_started_by_itself(node: Guest) -> None:
    assert node.run("systemctl is-enabled scaleoutd.service", check=False).text == "disabled"
    assert (
        node.run("systemctl preset scaleoutd.service 2>&1; systemctl is-enabled scaleoutd.service", check=False).text
        == "disabled"
    )
    assert node.run(PROCESSES).text == ""


def test_a_node_without_configuration_refuses_with_a_sentence_and_is_not_started_again(node: Guest) -> None:
    node.run("systemctl start scaleoutd.service", check=False, timeout_s=90)
    for unit, code in (("scaleoutd.service", "config-missing"), ("scaleoutd-runner.service", "config-missing")):
        found = node.show(unit, "ActiveState", "StatusText", "ExecMainStatus", "NRestarts")
        assert (found["ActiveState"], found["ExecMainStatus"], found["NRestarts"]) == ("failed", "78", "0"), (unit, found)
        assert code in found["StatusText"] and "cannot" in found["StatusText"]
    node.run("systemctl stop scaleoutd.service; systemctl reset-failed")


def test_stopped_it_leaves_no_process_and_no_socket_and_starts_again(hospital: Hospital) -> None:
    guest = hospital.guest
    assert check_task(hospital, hospital.offer()) == "COMPLETED"
    guest.run("systemctl stop scaleoutd.service")
    assert (
        guest.run("until [ -z \"$(systemctl list-units --plain --no-legend 'scaleoutd*.service')\" ]; do sleep 0.1; done").status
        == 0
    )
    assert guest.run(PROCESSES).text == "" and guest.run("ls /run/scaleoutd").text == ""
    order = [event["type"] for event in hospital.trail("agent-stopped", "runner-stopped", "ledger-stopped")]
    assert order[-3:] == ["agent-stopped", "runner-stopped", "ledger-stopped"]
    guest.run("systemctl start scaleoutd.service")
    hospital.wait_connected()
    assert check_task(hospital, hospital.offer()) == "COMPLETED"
    check_node(hospital)


def test_an_agent_that_dies_takes_no_other_room_with_it(hospital: Hospital) -> None:
    guest = hospital.guest
    before = {unit: guest.main_pid(f"{unit}.service") for unit in SERVICES}
    guest.run(f"kill -KILL {before['scaleoutd']}")
    guest.wait_units("scaleoutd.service", "NRestarts=1")
    guest.wait_unit("scaleoutd.service")
    after = {unit: guest.main_pid(f"{unit}.service") for unit in SERVICES}
    assert [unit for unit in SERVICES if before[unit] != after[unit]] == ["scaleoutd"]
    hospital.wait_connected()
    assert check_task(hospital, hospital.offer()) == "COMPLETED"


def test_a_room_that_hangs_is_ended_and_comes_back(hospital: Hospital) -> None:
    guest = hospital.guest
    for unit in SERVICES:
        guest.write(f"/etc/systemd/system/{unit}.service.d/watched.conf", "[Service]\nWatchdogSec=3s\n")
    guest.run("systemctl daemon-reload && systemctl restart scaleoutd-ledger scaleoutd-runner scaleoutd")
    hospital.wait_connected()
    started = {unit: guest.main_pid(f"{unit}.service") for unit in SERVICES}
    guest.run("sleep 7")  # more than two periods at rest: nobody is ended who works
    assert {unit: guest.main_pid(f"{unit}.service") for unit in SERVICES} == started
    for unit in SERVICES:
        guest.run(f"kill -STOP {started[unit]}")
        guest.wait_journal(f"{unit}.service", "Failed with result 'watchdog'")
        guest.wait_unit(f"{unit}.service")
        assert guest.main_pid(f"{unit}.service") != started[unit]
    hospital.wait_connected()
    assert check_task(hospital, hospital.offer()) == "COMPLETED"
    check_node(hospital)
