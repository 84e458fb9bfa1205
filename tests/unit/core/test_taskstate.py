# SPDX-License-Identifier: Apache-2.0
"""The state machine of tasks: what may follow what, and that a state file cannot be edited without being found out."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleoutd.core.taskstate import AGENT_STATES, RUN_STATES, Line, States, encode
from scaleoutd.errors import StorageError


def history(table: States, *states: str) -> list[Line]:
    lines: list[Line] = []
    for at_ms, state in enumerate(states):
        lines.append(table.advance(lines[-1] if lines else None, state, at_ms, {"attempt": at_ms}))
    return lines


WAY = ("received", "offered", "offered", "released", "sending", "unknown", "sending", "acknowledged", "acknowledged", "reported")


def test_a_whole_way_is_read_back() -> None:
    lines = history(AGENT_STATES, *WAY)
    assert AGENT_STATES.parse([encode(line) for line in lines]) == lines
    assert AGENT_STATES.is_final(lines[-1].state)


def test_the_run_table_has_its_way_too() -> None:
    way = ("accepted", "about-to-run", "interrupted", "about-to-run", "computed", "released", "forgotten")
    lines = history(RUN_STATES, *way)
    assert RUN_STATES.parse([encode(line) for line in lines]) == lines


@pytest.mark.parametrize(
    ("before", "after"),
    [("received", "sending"), ("released", "acknowledged"), ("acknowledged", "sending"), ("failed", "offered"),
     ("reported", "received"), ("unknown", "reported")],
)  # fmt: skip
def test_a_way_that_does_not_exist_cannot_be_taken(before: str, after: str) -> None:
    line = Line(0, before, 0, "0" * 64)
    assert not AGENT_STATES.allows(line, after)
    with pytest.raises(ValueError, match="no way"):
        AGENT_STATES.advance(line, after, 0)


def test_a_history_begins_at_its_start() -> None:
    with pytest.raises(ValueError, match="no way"):
        AGENT_STATES.advance(None, "sending", 0)


@pytest.mark.parametrize("index", range(len(WAY)))
def test_a_line_that_is_missing_doubled_or_changed_is_found(index: int) -> None:
    lines = [encode(line) for line in history(AGENT_STATES, *WAY)]
    changed = json.loads(lines[index])
    changed["at_ms"] += 1
    damaged = [
        [*lines[:index], lines[index], *lines[index:]],
        [*lines[:index], json.dumps(changed, separators=(",", ":"), sort_keys=True).encode(), *lines[index + 1 :]],
        [*lines[:index], lines[index] + b" ", *lines[index + 1 :]],
        [*lines[:index], b"\x00" * 40, *lines[index + 1 :]],
    ]
    if index < len(WAY) - 1:
        damaged.append(lines[:index] + lines[index + 1 :])
    for candidate in damaged:
        with pytest.raises(StorageError) as caught:
            AGENT_STATES.parse(candidate)
        assert caught.value.code == "state-corrupt"


def test_a_line_of_another_task_does_not_fit() -> None:
    mine = [encode(line) for line in history(AGENT_STATES, "received", "offered", "released")]
    other = history(AGENT_STATES, "received")
    other.append(AGENT_STATES.advance(other[-1], "offered", 5, {"attempt": 9}))
    with pytest.raises(StorageError):
        AGENT_STATES.parse([mine[0], mine[1], encode(other[1])])
    assert AGENT_STATES.parse(mine)


@given(st.lists(st.binary(max_size=80), min_size=1, max_size=4))
def test_garbage_is_refused_by_code(lines: list[bytes]) -> None:
    with pytest.raises(StorageError) as caught:
        AGENT_STATES.parse(lines)
    assert caught.value.code == "state-corrupt"


def test_a_table_that_names_unknown_states_is_a_bug() -> None:
    with pytest.raises(ValueError, match="not a state"):
        States("bad", "a", {"a": frozenset({"b"})})
