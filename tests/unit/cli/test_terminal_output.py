# SPDX-License-Identifier: Apache-2.0
"""What steps print, as it reaches the terminal: harmless, whole, at once."""

from __future__ import annotations

import os

import pytest

from scaleoutd.cli.terminal import StepOutput, escape


class Screen:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.seen: list[str] = []
        self.output = StepOutput(self.lines.append)
        self.output.observe = self.seen.append
        self._writer = self.output.writer()

    def write(self, data: bytes) -> list[str]:
        os.write(self._writer, data)
        self.output.pump()
        return self.lines

    def close(self) -> list[str]:
        os.close(self._writer)
        self.output.close()
        return self.lines


@pytest.mark.parametrize(
    ("attack", "shown"),
    [
        (b"\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        (b"\x1b[2J\x1b[H", "\\x1b[2J\\x1b[H"),
        (b"\x1b[6n", "\\x1b[6n"),
        ("\u202etxt.exe".encode(), "\\u202etxt.exe"),
        ("\U000e0041".encode(), "\\U000e0041"),
        (b"\x9b31m\xff", "\\x9b31m\\xff"),
        (b"tab\there", "tab\there"),
    ],
)
def test_a_sequence_that_would_drive_the_terminal_is_shown_not_obeyed(attack: bytes, shown: str) -> None:
    assert Screen().write(attack + b"\n") == [shown]


def test_a_line_comes_when_it_ends_and_the_rest_at_the_end() -> None:
    screen = Screen()
    assert screen.write(b"one\ntw") == ["one"]
    assert screen.write(b"o\nrest") == ["one", "two"]
    assert screen.close() == ["one", "two", "rest"]
    assert screen.seen == screen.lines


def test_a_character_cut_in_two_by_the_pipe_is_whole() -> None:
    screen = Screen()
    data = "größer\n".encode()
    screen.write(data[:3])
    assert screen.write(data[3:]) == ["größer"]


def test_a_traceback_longer_than_a_pipe_is_whole() -> None:
    screen = Screen()
    lines = [f'  File "/project/deep.py", line {number}, in recurse' for number in range(900)]
    screen.write(("\n".join(lines) + "\n").encode())
    assert screen.lines == lines


def test_a_line_without_end_is_shown_in_parts_and_does_not_fill_the_memory() -> None:
    screen = Screen()
    for _ in range(4):
        screen.write(b"x" * 60_000)
    assert sum(map(len, screen.close())) == 240_000


def test_a_progress_bar_is_not_a_thousand_lines_and_its_end_is_shown() -> None:
    screen = Screen()
    for percent in range(1000):
        screen.write(f"\r{percent / 10:.1f} %".encode())
    screen.write(b"\r100.0 %\n")
    assert 1 <= len(screen.lines) <= 4
    assert screen.lines[-1] == "100.0 %"


def test_windows_line_ends_are_line_ends() -> None:
    assert Screen().write(b"one\r\ntwo\r\n") == ["one", "two"]


def test_escape_leaves_words_alone() -> None:
    assert escape("Zürich 東京 🙂") == "Zürich 東京 🙂"
