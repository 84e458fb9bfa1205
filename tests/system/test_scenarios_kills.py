# SPDX-License-Identifier: Apache-2.0
"""kill -9 of each unit at stages of a task, on an installed node: the task ends, once, on record; systemd brings the unit back.

tests/fault has every stage in the foreground; here the units are the shipped ones, so what is shown is what restarts, what is
cleaned up and what the others do meanwhile.
"""

from __future__ import annotations

import pytest

from tests.fault.node import LARGE
from tests.system.hospital import Hospital
from tests.system.promises import check_node, check_task

UNITS = {
    "agent": "scaleoutd.service",
    "runner": "scaleoutd-runner.service",
    "ledger": "scaleoutd-ledger.service",
    "step": "scaleoutd-step@*.service",
}
SERVER_STAGES = ("download", "upload", "announced", "report", "reported")


def kill(hospital: Hospital, victim: str) -> None:
    hospital.guest.run(["systemctl", "kill", "--signal=KILL", UNITS[victim]])


@pytest.fixture(autouse=True)
def many_kills_are_no_reason_to_give_up(hospital: Hospital) -> None:
    """A unit that is killed more often than its start limit stays down: what a test does in seconds a site sees in years."""
    hospital.guest.run("systemctl reset-failed 'scaleoutd*'", check=False)


@pytest.mark.parametrize("victim", UNITS)
def test_killed_while_the_step_runs(hospital: Hospital, victim: str) -> None:
    with hospital.step_held() as running:
        task = hospital.offer()
        running()
        kill(hospital, victim)
    assert check_task(hospital, task) == "COMPLETED"
    attempts = [event["attempt"] for event in hospital.trail("run-about-to-start") if event["correlation_id"] == task]
    # Without its agent a run is ended, if it is not through with its work by then; the others' deaths are quicker.
    assert attempts in {"ledger": ([1],), "agent": ([1], [1, 2])}.get(victim, ([1, 2],))
    check_node(hospital)


@pytest.mark.parametrize("where", SERVER_STAGES)
@pytest.mark.parametrize("victim", ["agent", "runner", "ledger"])
def test_killed_in_a_call_to_the_combiner(hospital: Hospital, victim: str, where: str) -> None:
    reached = hospital.arm(where)
    task = hospital.offer(model=LARGE)
    reached()
    kill(hospital, victim)
    hospital.combiner.go()
    assert check_task(hospital, task) == "COMPLETED"
    assert hospital.counted(task) == 1
    check_node(hospital)


@pytest.mark.parametrize("victim", UNITS)
def test_killed_while_nothing_is_to_be_done(hospital: Hospital, victim: str) -> None:
    kill(hospital, victim)
    task = hospital.offer()
    assert check_task(hospital, task) == "COMPLETED"
    check_node(hospital)


def test_all_of_them_at_once(hospital: Hospital) -> None:
    with hospital.step_held() as running:
        task = hospital.offer()
        running()
        hospital.guest.run(["systemctl", "kill", "--signal=KILL", *UNITS.values()])
    assert check_task(hospital, task) == "COMPLETED"
    check_node(hospital)
