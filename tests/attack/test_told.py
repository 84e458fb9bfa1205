# SPDX-License-Identifier: Apache-2.0
"""The words for what is open without namespaces and the attempts that go through there are each other's (told.py)."""

from __future__ import annotations

from scaleoutd.core.plan import OUTCOMES
from scaleoutd.runner.openings import ALWAYS_OPEN, MEANING, NOT_THERE, told_as_allowed, told_at_start
from tests.attack.matrix import BESIDE, CELLS
from tests.attack.told import OPEN_ON, SAID, SAID_AND_DONE_ELSEWHERE, SAID_BESIDE, SAID_OF_OLD_KERNELS, place_of


def test_each_attempt_that_goes_through_is_said_in_words() -> None:
    for name, words in {**SAID, **SAID_OF_OLD_KERNELS}.items():
        assert words in place_of(name), name
    assert SAID_BESIDE.keys() == BESIDE


def test_nothing_is_said_to_be_open_that_no_attempt_shows() -> None:
    shown = (*SAID_BESIDE.values(), *SAID_AND_DONE_ELSEWHERE)
    assert all(any(words in clause for words in shown) for clause in ALWAYS_OPEN)
    assert all(any(words in clause for clause in ALWAYS_OPEN) for words in shown)


def test_every_cell_of_the_development_mode_has_its_list_but_that_without_landlock() -> None:
    assert {cell.host for cell in CELLS if cell.backend == "inner"} == {*OPEN_ON, "landlock-off"}


def test_all_of_it_is_told_at_every_start() -> None:
    text = told_at_start("a cause", "a way", OUTCOMES)
    assert all(f"OPEN {name}: {MEANING[name]}" in text for name in OUTCOMES)
    assert all(words in text for words in (*ALWAYS_OPEN, NOT_THERE, "a cause", "to close them: a way"))


def test_a_policy_that_allows_openings_is_told_what_lies_beside_them_too() -> None:
    text = told_as_allowed(("no-write-outside",), "inner")
    assert text.startswith("OPEN, as the policy allows: no-write-outside\nOPEN also: ")
    assert all(words in text for words in ALWAYS_OPEN)
    assert told_as_allowed(("no-write-outside",), "systemd") == "OPEN, as the policy allows: no-write-outside"
    assert told_as_allowed((), "systemd") == ""
