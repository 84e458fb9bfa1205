# SPDX-License-Identifier: Apache-2.0
"""The attempts of tests/attack inside the shipped step unit on the other hosts of the matrix: no Landlock, Landlock ABI 2, no
user namespaces.  All that the policy demands (every outcome) is proven by the layers that are left, and nothing goes through.

Controls: the same acts outside, in the same guest, and a node without the drop-in, whose kernel has more than these.
"""

from __future__ import annotations

from typing import Any

import pytest

from scaleoutd.core.plan import OUTCOMES
from tests.attack.attempts import ATTEMPTS
from tests.attack.hosts import Host
from tests.attack.matrix import BOOTED_CELLS
from tests.system.attacked import NO_CONTROL_IN_A_CONTAINER, AttackedNode, through
from tests.system.hospital import Hospital
from tests.system.promises import check_node, check_task
from tests.system.unit_arena import IN_ANOTHER_SLOT

OTHERS = [cell.host for cell in BOOTED_CELLS if cell.host != "plain"]
ABI = {"landlock-off": 0, "abi-2": 2}
IN_FORCE = 3  # the least that a host has to have for these to be others


@pytest.fixture(scope="module")
def attacked(hospital: Hospital) -> AttackedNode:
    return AttackedNode(hospital)


def test_the_control_this_kernel_has_more(hospital: Hospital) -> None:
    assert hospital.trail("runner-started")[-1]["landlock_abi"] >= IN_FORCE


@pytest.mark.parametrize("host", OTHERS)
def test_all_is_proven_by_what_is_left_and_nothing_goes_through(hospital: Hospital, attacked: AttackedNode, host: Host) -> None:
    started = attacked.stand_on(host)
    assert host not in ABI or started["landlock_abi"] == ABI[host], started
    proven = {word.split()[0].rstrip(":"): word for word in started["outcomes"]}
    assert proven.keys() == set(OUTCOMES) and all("proven" in word for word in proven.values()), started
    assert host != "landlock-off" or not any("landlock" in word for word in proven.values()), started
    assert not hospital.trail("outcome-open")
    told = attacked.attempt_all(controls=host == OTHERS[0])  # they are outside, where no host is another
    assert told["ended"] == {"machine": "exited 0", "slot": "exited 0"}
    assert told["inside"]["machine"].keys() == ATTEMPTS.keys() and told["inside"]["slot"].keys() == set(IN_ANOTHER_SLOT)
    for kind in ("machine", "slot"):
        assert not through(told, kind), {name: told["inside"][kind][name] for name in through(told, kind)}
    # What lies in another slot is in the view: without Landlock it is its owner's mode that says no.
    assert {detail.split()[0] for _, detail in told["inside"]["slot"].values()} == {"EACCES"}
    if "control" in told:
        _check_controls(told["control"])
    assert check_task(hospital, hospital.offer()) == "COMPLETED"
    check_node(hospital)


def _check_controls(controls: dict[str, Any]) -> None:
    failed = {name for name, (outcome, _) in controls["machine"].items() if outcome != "allowed"}
    assert failed <= NO_CONTROL_IN_A_CONTAINER | {name for name, attempt in ATTEMPTS.items() if attempt.absent}
    assert {outcome for outcome, _ in controls["slot"].values()} == {"allowed"}


def test_back_on_its_own_host_it_is_the_shipped_unit(hospital: Hospital, attacked: AttackedNode) -> None:
    assert attacked.stand_on("plain")["landlock_abi"] >= IN_FORCE
    assert check_task(hospital, hospital.offer()) == "COMPLETED"
