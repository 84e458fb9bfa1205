# SPDX-License-Identifier: Apache-2.0
"""What only a machine of its own can show of an installed node: reboots, power cuts, the clock, user namespaces forbidden."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.system.hospital import Hospital
from tests.system.machine import Machine
from tests.system.promises import check_node, check_task

READY = "ready"


@pytest.fixture(scope="module")
def prepared(node_machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    """A connected node on a hardened kernel, kept as it is for every case."""
    with Hospital(node_machine, tmp_path_factory.mktemp("hospital")) as site:
        node_machine.write("/etc/sysctl.d/90-site.conf", "user.max_user_namespaces = 0\nkernel.unprivileged_bpf_disabled = 1\n")
        node_machine.run("sysctl -q --system")
        site.bring()
        site.start()
        site.offline()
        node_machine.run("sync")  # what the tests wrote themselves is not to be lost with the power
        node_machine.keep(READY)
        yield site


@pytest.fixture
def hospital(prepared: Hospital) -> Hospital:
    machine = prepared.guest
    assert isinstance(machine, Machine)
    machine.back_to(READY)
    prepared.online()
    return prepared


def reboot(hospital: Hospital) -> None:
    hospital.guest.reboot()


def cut_power(hospital: Hospital) -> None:
    assert isinstance(hospital.guest, Machine)
    hospital.guest.cut_power()


def test_two_rounds_without_user_namespaces(hospital: Hospital) -> None:
    assert hospital.guest.run("unshare --user true", user="nobody", check=False).status != 0
    hospital.rounds(2)
    check_node(hospital)


@pytest.mark.parametrize("again", [reboot, cut_power])
def test_the_machine_goes_down_in_the_middle_of_a_run(hospital: Hospital, again: Callable[[Hospital], None]) -> None:
    with hospital.step_held() as running:
        task = hospital.offer()
        running()
        again(hospital)
    hospital.guest.run("rm -f /srv/gate/gate")
    assert hospital.guest.show("scaleoutd.service", "UnitFileState") == {"UnitFileState": "enabled"}
    hospital.online()
    assert check_task(hospital, task) == "COMPLETED"
    attempts = [event["attempt"] for event in hospital.trail("run-about-to-start") if event["correlation_id"] == task]
    assert attempts == [1, 2]
    check_node(hospital)


@pytest.mark.parametrize("where", ["upload", "announced"])
def test_the_power_is_cut_while_the_result_is_on_its_way(hospital: Hospital, where: str) -> None:
    """It is sent again under the same ids, each time on record before, and counts once."""
    reached = hospital.arm(where)
    task = hospital.offer()
    reached()
    cut_power(hospital)
    hospital.combiner.go()
    hospital.online()
    assert check_task(hospital, task) == "COMPLETED"
    assert hospital.counted(task) == 1
    sendings = [event for event in hospital.trail("sending") if event["correlation_id"] == task]
    assert len(sendings) == 2
    check_node(hospital)


def test_no_network_at_boot(hospital: Hospital) -> None:
    """The units come up, say what they wait for, and connect when the network is there."""
    hospital.guest.reboot()
    hospital.guest.wait_units("scaleoutd.service", "ActiveState=active")
    assert hospital.guest.run("systemctl --failed --no-legend --plain").text == ""
    hospital.online()
    hospital.wait_connected()
    assert check_task(hospital, hospital.offer()) == "COMPLETED"


def test_the_clock_is_set_back(hospital: Hospital) -> None:
    """Nothing runs while the clock is behind what the node has seen; with the clock right again it does."""
    assert check_task(hospital, hospital.offer()) == "COMPLETED"
    hospital.guest.run("date -s '-1 hour'")
    code = check_task(hospital, hospital.offer())
    assert "clock" in code
    hospital.guest.run("date -s '+1 hour'")
    assert check_task(hospital, hospital.offer()) == "COMPLETED"
