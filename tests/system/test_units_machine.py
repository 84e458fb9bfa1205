# SPDX-License-Identifier: Apache-2.0
"""Units on Debian's own kernel (cgroup v2, Landlock ABI 2) without user namespaces: rounds, limits, what the unit proves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.guest import Guest
from tests.system.hospital import Hospital
from tests.system.promises import check_node
from tests.system.test_units_limits import BODY, LIMITS, outcome_of


@pytest.fixture(scope="module")
def hospital(node_machine: Guest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    node_machine.run("sysctl -qw user.max_user_namespaces=0")
    # What other programs of this host take counts as the emulated processor's time: a memory limit must be hit before that one.
    limits = LIMITS | {"cpu_s": 60, "wall_clock_s": 120}
    with Hospital(node_machine, tmp_path_factory.mktemp("site"), train_body=BODY, limits=limits) as site:
        site.bring()
        site.start()
        yield site


def test_a_round_without_user_namespaces(hospital: Hospital) -> None:
    assert hospital.guest.run("unshare --user true", check=False, user="nobody").status != 0  # it is so
    hospital.rounds(1)
    started = hospital.trail("runner-started")[-1]
    assert started["backend"] == "systemd" and started["landlock_abi"] >= 2
    assert len(started["outcomes"]) == 6 and all(": proven" in item for item in started["outcomes"])


@pytest.mark.parametrize(("what", "code"), [("memory", "limit-memory"), ("tasks", "limit-processes"), ("nothing", "COMPLETED")])
def test_limits_of_the_cgroup(hospital: Hospital, what: str, code: str) -> None:
    assert outcome_of(hospital, what) == code
    assert any("memory: enforced (cgroup-v2)" in item for item in hospital.trail("run-ended")[-1]["enforced"])
    check_node(hospital)
