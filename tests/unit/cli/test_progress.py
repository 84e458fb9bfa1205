# SPDX-License-Identifier: Apache-2.0
"""Progress: silent when it is quick, plain lines without a terminal, one line that draws over itself on one."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from scaleoutd.cli import progress
from scaleoutd.cli.init import write_project
from scaleoutd.cli.progress import Progress
from scaleoutd.cli.signing import read_folder
from scaleoutd.core.manifest import CHUNK_BYTES
from scaleoutd.runner.hashing import check_files
from scaleoutd.runner.tree import Tree

MIB = 1 << 20


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def work(stream: io.StringIO, seconds: float, steps: int = 100) -> str:
    clock = Clock()
    with Progress("reading", 100 * MIB, stream=stream, clock=clock) as done:
        for _ in range(steps):
            clock.now_s += seconds / steps
            done(100 * MIB // steps)
    return stream.getvalue()


@pytest.mark.parametrize("kind", [io.StringIO, Screen])
def test_quick_work_says_nothing(kind: type[io.StringIO]) -> None:
    assert work(kind(), 0.9) == ""


def test_without_a_terminal_there_are_a_few_plain_lines() -> None:
    lines = work(io.StringIO(), 30).splitlines()
    assert 5 <= len(lines) <= 7
    assert lines[1] == "reading: 20 MiB of 100 MiB (20 %)" or lines[1].startswith("reading: 2")
    assert not any("\r" in line or "\x1b" in line for line in lines)


def test_on_a_terminal_one_line_is_drawn_over_and_gone_at_the_end() -> None:
    text = work(Screen(), 3)
    assert "\n" not in text and text.endswith("\r\x1b[K") and 5 <= text.count("reading: ") <= 15


def test_signing_and_verifying_say_how_far_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every byte of a project with a chunked file is counted, by the signer and by the verifier."""
    write_project(tmp_path)
    with open(tmp_path / "weights.bin", "wb") as file:
        file.truncate(CHUNK_BYTES + 5)
    monkeypatch.setattr(progress, "FIRST_S", 0.0)
    monkeypatch.setattr(progress, "LINE_S", 0.0)
    with Tree(tmp_path) as tree:
        content = read_folder(tree)
        total = sum(entry.size_bytes for entry in content.files)
        assert capsys.readouterr().err.splitlines()[-1].endswith("(100 %)")
        counted: list[int] = []
        assert check_files(tree, content.files, None, counted.append) == []
    assert sum(counted) == total
