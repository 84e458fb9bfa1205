# SPDX-License-Identifier: Apache-2.0
"""At a real terminal: the traceback whole, Ctrl-C that says what was sent.  How soon a line comes: benchmarks/terminal.py."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from scaleoutd.cli import rooms
from scaleoutd.devcombiner.server import DevCombiner
from tests.e2e.foreground.person import Person
from tests.processes import is_alive

SLEEP = 'print("now asleep", flush=True)\nimport time; time.sleep(600)'
NESTED = "def deeper(n):\n    return deeper(n - 1) if n else 1 / 0\ndeeper(40)"
HOSTILE = 'print("\\x1b]0;owned\\x07\\x1b[2J")'


def test_a_traceback_is_whole_and_comes_before_the_failure(tmp_path: Path, combiner: DevCombiner) -> None:
    with Person(tmp_path, combiner, train_body=NESTED) as person:
        person.start()
        person.task()
        shown = [line for line in person.lines if "│" in line]
        assert "Traceback" in shown[0] and "ZeroDivisionError: division by zero" in shown[-1]
        failure = person.wait_for("[step-failed]")
        assert failure > person.lines.index(shown[-1])
        log = Path(person.lines[failure + 1].split(" is in ")[1])
        assert "ZeroDivisionError" in log.read_text()


def test_a_step_cannot_drive_the_terminal(tmp_path: Path, combiner: DevCombiner) -> None:
    with Person(tmp_path, combiner, train_body=HOSTILE) as person:
        person.start()
        person.task()
        assert "\\x1b]0;owned\\x07\\x1b[2J" in person.text
        assert "\x1b]0;" not in person.text and "\x1b[2J" not in person.text


def test_ctrl_c_stops_the_step_at_once_and_says_what_was_sent(person: Person) -> None:
    person.start()
    person.task(round_id="3")
    person.edit("train.py", 'print("first version", flush=True)', SLEEP)
    person.offer(round_id="4")
    person.wait_for("now asleep")
    running = person.steps()
    person.press_ctrl_c()
    assert person.wait_end() == 130  # not when the step has slept its ten minutes
    assert running and not any(is_alive(pid) for pid in running)
    assert "the update of round 3 was sent; the task in progress (train, round 4) was not" in person.text
    assert not any("ended by force" in line or "Traceback" in line for line in person.lines)


def test_ctrl_c_at_rest_says_that_nothing_was_in_progress(person: Person) -> None:
    person.start()
    person.press_ctrl_c()
    assert person.wait_end() == 130
    assert "nothing was in progress" in person.text


def test_a_second_ctrl_c_forces(person: Person) -> None:
    person.edit("train.py", 'print("first version", flush=True)', SLEEP)
    person.start()
    person.offer()
    person.wait_for("now asleep")
    os.kill(person.rooms()["agent"], signal.SIGSTOP)  # the orderly end waits for it
    person.press_ctrl_c()
    person.wait_for("once more ends it by force")
    person.press_ctrl_c()
    pressed = time.monotonic()
    assert person.wait_end() == 130
    assert time.monotonic() - pressed < rooms.STOP_S - 1


def test_the_task_that_was_interrupted_is_finished_after_a_new_start(person: Person, combiner: DevCombiner) -> None:
    person.edit("train.py", 'print("first version", flush=True)', SLEEP)
    token = combiner.mint_enrollment()
    person.start(token=token)
    task = person.offer(round_id="9")
    person.wait_for("now asleep")
    person.press_ctrl_c()
    person.wait_end()
    person.edit("train.py", "time.sleep(600)", "time.sleep(0)")
    person.start(token=token)
    assert combiner.board.wait_until(lambda: combiner.board.offers[task].done, 90), person.text
    assert combiner.board.offers[task].status == "COMPLETED"
    assert len([update for update in combiner.updates if update.correlation_id == task]) == 1


@pytest.mark.parametrize("flag", ["-v", "--log-level=DEBUG"])
def test_stages_are_told_only_to_who_asks(person: Person, flag: str) -> None:
    person.start(flag)
    person.task()
    assert any(line.endswith("agent: execute") for line in person.lines)


def test_without_asking_a_task_is_two_lines_of_ours(person: Person) -> None:
    person.start()
    before = len(person.lines)
    person.task()
    person.wait_for(" sent: ", after=before)
    ours = [line for line in person.lines[before:] if "│" not in line]
    assert len(ours) == 2, ours
