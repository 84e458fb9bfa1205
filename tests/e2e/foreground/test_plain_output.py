# SPDX-License-Identifier: Apache-2.0
"""Output while a step runs, at a terminal and into a pipe: at once, in order, harmless; plain where nobody looks."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from scaleoutd.devcombiner.server import DevCombiner
from tests.e2e.foreground.person import Person
from tests.processes import is_alive, read_process

# Not flushed: a step has no buffer between it and the person.
FIRST = 'print("first line")\nsys.stderr.write("second line\\n")\nimport time; time.sleep(300)'
HOSTILE = 'print("\\x1b]0;owned\\x07\\x1b[2J\\x9b31m\\u202etxt")'
BOTH = pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "pipe"])


@BOTH
def test_lines_arrive_in_order_while_the_step_still_runs(terminal: bool, tmp_path: Path, combiner: DevCombiner) -> None:
    with Person(tmp_path, combiner, train_body=FIRST, terminal=terminal) as person:
        person.start()
        person.offer()
        first = person.wait_for("│ first line")
        assert person.wait_for("│ second line", after=first) == first + 1
        assert person.steps(), "it still runs"


@BOTH
def test_a_step_s_control_characters_are_shown_and_not_sent(terminal: bool, tmp_path: Path, combiner: DevCombiner) -> None:
    with Person(tmp_path, combiner, train_body=HOSTILE, terminal=terminal) as person:
        person.start()
        assert person.task().status == "COMPLETED"
        person.wait_for("\\x1b]0;owned\\x07\\x1b[2J\\x9b31m\\u202etxt")
        for sequence in (b"\x1b]0;", b"\x1b[2J", b"\x07", "\x9b".encode(), "\u202e".encode()):
            assert sequence not in person.raw


def test_into_a_pipe_there_is_no_colour_no_prompt_and_the_log_is_json(tmp_path: Path, combiner: DevCombiner) -> None:
    with Person(tmp_path, combiner, train_body="1 / 0", terminal=False) as person:
        person.start()
        assert person.task().status == "FAILED"
        person.wait_for("[step-failed]")
        assert b"\x1b" not in person.raw and b"\r" not in person.raw
        events = [json.loads(line)["event"] for line in person.lines if line.startswith("{")]
        assert events[:2] == ["connected", "task-received"]
        for line in (line for line in person.lines if "│" not in line):
            assert line == line.rstrip() and not line.endswith((":", "?", ">"))


def test_control_a_terminal_has_colour(tmp_path: Path, combiner: DevCombiner) -> None:
    with Person(tmp_path, combiner) as person:
        person.start()
        assert b"\x1b[33m" in person.raw


def test_a_terminal_of_somebody_who_wants_no_colour_has_none(tmp_path: Path, combiner: DevCombiner) -> None:
    with Person(tmp_path, combiner, train_body="1 / 0") as person:
        person.start(NO_COLOR="1")
        person.task()
        person.wait_for("[step-failed]")
        assert b"\x1b[3" not in person.raw


@BOTH
def test_the_token_is_off_the_command_line_before_the_first_word(terminal: bool, tmp_path: Path, combiner: DevCombiner) -> None:
    token = combiner.mint_enrollment()
    with Person(tmp_path, combiner, terminal=terminal) as person:
        person.start(token=token)
        assert token.encode() not in person.command_line
        assert b"--token-fd" in person.command_line
        for pid in (person.pid, *person.processes()):
            for what in ("cmdline", "environ"):
                assert token.encode() not in read_process(pid, what), (pid, what)
        assert b"scaleoutd" in read_process(person.rooms()["agent"], "cmdline"), "control: they can be read"
        assert token not in person.text
        (first, *_) = person.lines
        assert first.startswith("scaleoutd ")


def test_the_token_is_off_the_command_line_while_the_node_starts(tmp_path: Path, combiner: DevCombiner) -> None:
    token = combiner.mint_enrollment()
    with Person(tmp_path, combiner) as person:
        person.type("client", "start", "--api-url", combiner.api_url, f"--token={token}", "--local-package")
        person.wait_for("scaleoutd ")  # the first word of all
        assert token.encode() not in person.command_line
        person.wait_connected()


def test_a_pipe_that_nobody_reads_any_more_does_not_keep_the_node_from_ending(tmp_path: Path, combiner: DevCombiner) -> None:
    with Person(tmp_path, combiner, terminal=False) as person:
        person.start()
        rooms = person.rooms()
        os.kill(person.pid, signal.SIGHUP)
        assert person.wait_end() == 0
        assert rooms and not [pid for pid in rooms.values() if is_alive(pid)]
