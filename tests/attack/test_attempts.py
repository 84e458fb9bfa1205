# SPDX-License-Identifier: Apache-2.0
"""Every attempt of attempts.py, from inside a step, as root and as an ordinary user; with its control outside."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.attack.arena import Arena
from tests.attack.attempts import ATTEMPTS, CONTROLS

MODES = ("root", "user") if os.geteuid() == 0 else ("user",)
# Without namespaces these go through; the probe reports their outcomes as open and a policy that demands them refuses.
OPEN_IN_INNER = {
    "connect-unix-path",  # Landlock stops connect() to a path from ABI 9 on
    "chmod-outside",
    "utime-outside",
}


@pytest.fixture(scope="module", params=MODES)
def arena(request: pytest.FixtureRequest) -> Iterator[Arena]:
    place = Arena(request.param)
    yield place
    place.close()


@pytest.fixture(scope="module")
def inner() -> Iterator[Arena]:
    place = Arena("inner")
    yield place
    place.close()


@pytest.mark.parametrize("name", ATTEMPTS)
def test_attempt_from_inside_is_denied(arena: Arena, name: str) -> None:
    answer = arena.attempt(name)
    assert answer.outcome in ("denied", "killed"), answer


@pytest.mark.parametrize("name", [name for name, who in CONTROLS.items() if who in ("root", "step")])
def test_control_outside_succeeds(arena: Arena, name: str) -> None:
    who = CONTROLS[name]
    if who == "root" and not arena.root:
        pytest.skip("the control of this attempt needs root, and these tests run as an ordinary user")
    if arena.mode == "user" and who == "root":
        return  # the same act by the same root as in mode root
    answer = arena.control(name, who)
    assert answer.outcome == "allowed", answer


@pytest.mark.parametrize("name", ATTEMPTS)
def test_without_namespaces_only_the_known_attempts_go_through(inner: Arena, name: str) -> None:
    answer = inner.attempt(name)
    assert answer.outcome in ("denied", "killed") or name in OPEN_IN_INNER, answer
