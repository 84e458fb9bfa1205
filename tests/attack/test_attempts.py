# SPDX-License-Identifier: Apache-2.0
"""Every attempt, from inside a step, in every cell of the matrix; with its control outside."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.attack.arena import Arena
from tests.attack.attempts import ATTEMPTS
from tests.attack.attempts.registry import OWN_CODE
from tests.attack.matrix import BESIDE, CELLS, RUNNABLE, Cell, examine
from tests.attack.told import check_told

ROOT = os.geteuid() == 0
CONFINED = [cell for cell in RUNNABLE if cell.starts]
DENIED = [cell for cell in RUNNABLE if cell.backend != "inner" and not cell.starts]
DEVELOPMENT = [cell for cell in RUNNABLE if cell.backend == "inner"]
PROVEN_AT_LEAST = {  # by Landlock alone, on each host
    "plain": {"no-read-outside", "no-foreign-device", "no-signal-out", "no-survivor"},
    "no-userns": {"no-read-outside", "no-foreign-device", "no-signal-out", "no-survivor"},
    "abi-2": {"no-read-outside", "no-foreign-device", "no-survivor"},
    "landlock-off": {"no-survivor"},
}
SETUID = ("setuid-bit-in-scratch",)
# research/sandbox-and-signing.md, "Attack matrix, measured here": what its rows name, one by one and in their order.
RESEARCH: dict[int, tuple[str, ...]] = dict(enumerate((
    ("ptrace-child",), ("userfaultfd",), ("io-uring",), ("bpf", "bpf-load"), ("perf-event-open",), ("add-key",), ("keyctl",),
    ("unshare-user",), ("clone3-newuser",), ("mount-tmpfs",), ("open-tree",), ("setns",), ("personality-no-aslr",),
    ("exec-from-memfd",), ("map-write-execute",), ("mprotect-execute",), ("kill-victim", "kill-runner"), ("read-runner-environ",),
    ("connect-unix-abstract",), ("connect-tcp",), ("socket-vsock",), ("socket-netlink",), ("socket-packet",), ("read-token",),
    ("write-outside",), ("chmod-outside",), ("tiocsti",), ("dmesg",), ("open-by-handle",), ("inherited-descriptor",),
    ("capabilities",),
), 1))  # fmt: skip
# What issue 6 names beside them.
NAMED = (
    "read-through-proc-1-root", "inherited-descriptor", "read-by-dotdot", "read-through-proc-cwd", "connect-unix-path",
    "socket-alg", "request-key", "keyctl-session", "ia32-call", "x32-call", "utime-outside", "core-dump", "write-oom-score-adj",
    "priority-of-victim", "timer-slack-of-victim", "timer-wake-alarm", "kill-launcher", "setuid-program", "symlink-outside",
    "hardlink-of-outside", "read-neighbour", "read-neighbour-shm", "write-neighbour",
)  # fmt: skip
pytestmark = pytest.mark.timeout(300)


def name_of(cell: Cell) -> str:
    return cell.name.replace(" ", "-")


def test_the_matrix_is_as_large_as_it_has_to_be() -> None:
    assert len(ATTEMPTS) >= 200 and len(CELLS) == 12
    assert {cell.host for cell in CELLS} == {"plain", "no-userns", "landlock-off", "abi-2"}
    assert ATTEMPTS.keys() >= BESIDE


@pytest.mark.parametrize("cell", CONFINED, ids=name_of)
def test_no_attempt_succeeds_where_all_outcomes_are_proven(cell: Cell) -> None:
    found = examine(cell)
    assert found.refusal is None
    assert found.answers.keys() == ATTEMPTS.keys()
    assert not found.through(), {name: found.answers[name] for name in found.through()}


@pytest.mark.parametrize("cell", DENIED, ids=name_of)
def test_where_nothing_can_be_built_the_start_is_refused(cell: Cell) -> None:
    found = examine(cell)
    assert found.refusal is not None and found.refusal[0] == "namespaces-denied"


@pytest.mark.parametrize("cell", DEVELOPMENT, ids=name_of)
def test_without_namespaces_the_start_is_refused_or_what_is_open_is_named(cell: Cell) -> None:
    found = examine(cell)
    assert found.refusal is not None and found.refusal[0] == "kernel-support"
    assert all(name in found.refusal[1] for name in found.open), "the refusal names what is open"
    assert not found.open & PROVEN_AT_LEAST[cell.host]
    assert not found.unexplained(), {name: found.answers[name] for name in found.unexplained()}
    attacked = {ATTEMPTS[name].outcome for name in found.through()}
    assert found.open - {"no-foreign-device"} <= attacked, "what is told to be open is open"
    check_told(cell.host, found)


@pytest.fixture(scope="module")
def outside() -> Iterator[Arena]:
    place = Arena("root" if ROOT else "user")
    yield place
    place.close()


@pytest.mark.parametrize("name", ATTEMPTS)
def test_control_outside_succeeds(outside: Arena, name: str) -> None:
    attempt = ATTEMPTS[name]
    if not ROOT and (attempt.control == "root" or name.startswith("device-") or name == "setuid-program"):
        pytest.skip("the control of this attempt needs root, and these tests run as an ordinary user")
    answer = outside.control(name, attempt.control)
    if attempt.absent and answer.outcome != "allowed":
        pytest.skip(f"nobody can do this here, the machine has no {attempt.absent}: {answer.detail}")
    assert answer.outcome == "allowed", answer


def test_what_the_issue_names_is_tried() -> None:
    assert ATTEMPTS.keys() >= set(NAMED)


def test_the_step_s_own_code_is_told_apart() -> None:
    """To execute what it wrote gives a step nothing that it has not; the list is short and on purpose."""
    own = {name for name, attempt in ATTEMPTS.items() if attempt.outcome == OWN_CODE}
    assert own == {"exec-in-scratch", "exec-in-tmp", "exec-from-memfd", "map-write-execute", "mprotect-execute", *SETUID}


@pytest.mark.parametrize("number", RESEARCH)
def test_each_attempt_of_the_research_is_made(number: int) -> None:
    assert ATTEMPTS.keys() >= set(RESEARCH[number])
