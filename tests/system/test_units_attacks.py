# SPDX-License-Identifier: Apache-2.0
"""Every attempt of tests/attack again, from inside a step of the shipped unit, with its control outside in the same guest."""

from __future__ import annotations

from typing import Any

import pytest

from tests.attack.attempts import ATTEMPTS
from tests.attack.attempts.devices import FAKES
from tests.system.attacked import NO_CONTROL_IN_A_CONTAINER, AttackedNode, through
from tests.system.hospital import Hospital
from tests.system.image import BOOKWORM, TRIXIE
from tests.system.promises import check_node, check_task
from tests.system.unit_arena import IN_ANOTHER_SLOT

SUITES = (BOOKWORM, TRIXIE)

PROCESSES = {f"read-{who}-{what}" for who in ("runner", "launcher") for what in ("environ", "mem", "maps", "fd", "cmdline")}
NOT_IN_VIEW = PROCESSES | {
    *("read-token", "read-key", "read-state", "read-policy", "read-project", "read-list-outside", "read-shadow"),
    *("read-through-proc-1-root", "read-through-proc-cwd", "read-pid-1-environ", "read-pid-1-mem", "write-pid-1-oom"),
    *("write-project", "write-outside", "chmod-outside", "utime-outside", "rename-out-of-scratch", "connect-unix-path"),
    "write-cgroup",
    *(f"device-{name.replace('/', '-')}" for name in ("kmsg", *FAKES)),
    *("read-neighbour", "read-neighbour-shm", "read-neighbour-tmp", "write-neighbour", "write-neighbour-shm", "stat-outside"),
    *("readlink-outside", "getxattr-outside", "watch-outside", "read-runner-exe", "read-runner-root", "read-victim-stat"),
    *("read-kcore", "read-debugfs", "read-block-devices", "read-modules", "read-host-interfaces", "read-machine-id"),
    *("read-by-dotdot", "timer-slack-of-victim"),
    *("read-through-symlink", "bind-unix-path", "truncate-outside", "chown-outside", "setxattr-outside", "unlink-outside"),
    *("mkdir-outside", "symlink-outside", "mkfifo-outside", "hardlink-of-outside", "write-through-symlink"),
    *("write-through-proc-root", "write-victim-oom", "write-runner-mem", "write-core-pattern", "write-sysrq", "write-sysfs"),
}


@pytest.fixture(scope="module")
def told(hospital: Hospital) -> dict[str, Any]:
    """What the attacker's program saw."""
    return AttackedNode(hospital).attempt_all()


def test_every_attempt_was_made_in_a_real_instance(told: dict[str, Any]) -> None:
    assert told["ended"] == {"machine": "exited 0", "slot": "exited 0"}
    assert told["inside"]["machine"].keys() == ATTEMPTS.keys() and len(ATTEMPTS) >= 200
    assert told["inside"]["slot"].keys() == set(IN_ANOTHER_SLOT)


def test_none_of_them_succeeds(told: dict[str, Any]) -> None:
    assert not through(told, "machine"), {name: told["inside"]["machine"][name] for name in through(told, "machine")}


def test_none_reaches_what_is_another_slots(told: dict[str, Any]) -> None:
    """These files and this socket are in the unit's view, so it is a permission that fails."""
    assert not through(told, "slot")
    assert {detail.split()[0] for _, detail in told["inside"]["slot"].values()} == {"EACCES"}


def test_what_is_not_there_for_the_step_is_this_and_no_more(told: dict[str, Any]) -> None:
    """All others were refused: their target was there to be reached."""
    absent = {name for name, (_, detail) in told["inside"]["machine"].items() if detail.startswith("ENOENT")}
    assert absent <= NOT_IN_VIEW, absent - NOT_IN_VIEW


def test_the_controls_outside_succeed(told: dict[str, Any]) -> None:
    controls = told["control"]["machine"]
    assert controls.keys() == ATTEMPTS.keys()
    failed = {name: answer for name, answer in controls.items() if answer[0] != "allowed"}
    may_fail = NO_CONTROL_IN_A_CONTAINER | {name for name, attempt in ATTEMPTS.items() if attempt.absent}
    assert failed.keys() <= may_fail, {name: failed[name] for name in failed.keys() - may_fail}
    assert {outcome for outcome, _ in told["control"]["slot"].values()} == {"allowed"}


def test_the_node_is_as_before(told: dict[str, Any], hospital: Hospital) -> None:
    assert check_task(hospital, hospital.offer()) == "COMPLETED"
    check_node(hospital)
