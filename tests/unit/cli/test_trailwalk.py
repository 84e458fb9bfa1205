# SPDX-License-Identifier: Apache-2.0
"""Verification on several processors comes to the verdict of the walk line by line, on whole trails and on damaged ones."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from scaleoutd.cli import trailwalk
from scaleoutd.core import trail
from scaleoutd.core.trail import Verdict, Walk
from scaleoutd.core.trailbatch import HEAD_BYTES, batch_of, decode, encode, sizes
from tests.unit.core.test_trail import ORIGIN, OTHER, Forge

Lines = list[bytes]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stretches of a few lines, so that a small trail has many."""
    monkeypatch.setattr(trailwalk, "STRETCH_BYTES", 3000)
    monkeypatch.setattr(trailwalk, "WORTH_BYTES", 0)


@pytest.fixture(scope="module")
def made() -> Forge:
    forge = Forge()
    for _ in range(3):
        for _ in range(4):
            forge.work(9)
            forge.sign()
        forge.rotate()
    forge.work(7)
    forge.time_ms -= 600_000
    forge.add("clock-set-back", from_ms=forge.time_ms + 600_000, to_ms=forge.time_ms)
    forge.work(11)
    forge.sign()
    forge.work(3)
    return forge


def on_processors(folder: Path, forge: Forge, lines: Lines, notes: Lines, count: int, rest: bytes = b"") -> Verdict:
    """The verdict by `count` processors; the lines lie in segments of 20."""
    for start in range(0, len(lines), 20):
        path = folder / f"{start // 20 + 1:08d}.jsonl"
        path.write_bytes(b"".join(line + b"\n" for line in lines[start : start + 20]))
    segments = sorted(folder.glob("*.jsonl"))
    if rest:
        with segments[-1].open("ab") as file:
            file.write(rest)
    torn: list[Path] = []
    parts = trailwalk.stretches(segments, torn.append)
    assert b"".join(line + b"\n" for part in parts for line in part.lines()) == b"".join(line + b"\n" for line in lines)
    assert torn == (segments[-1:] if rest else [])
    walk = Walk(notes, [forge.keys[0].public], [])
    return walk.judge(lambda: trailwalk.walk(walk, parts, count))


def told(verdict: Verdict) -> Verdict:
    """Without the time of a trail with a fault: whole stretches are taken at once."""
    return verdict if verdict.ok else replace(verdict, last_time_ms=0)


def changed(lines: Lines, at: int) -> Lines:
    return [*lines[:at], lines[at].replace(b'"computed"', b'"commuted"', 1), *lines[at + 1 :]]


DAMAGE: dict[str, Callable[[Lines, int], Lines]] = {
    "none": lambda lines, at: lines,
    "edit": changed,
    "delete": lambda lines, at: lines[:at] + lines[at + 1 :],
    "copy": lambda lines, at: lines[: at + 1] + lines[at:],
    "swap": lambda lines, at: [*lines[: at - 1], lines[at], lines[at - 1], *lines[at + 1 :]],
    "cut": lambda lines, at: lines[:at],
    "empty line": lambda lines, at: [*lines[:at], b"", *lines[at:]],
    "no JSON": lambda lines, at: [*lines[:at], b"\xff\x00{", *lines[at:]],
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("count", [2, 3])
def test_the_verdict_is_that_of_the_walk_line_by_line(damage: str, count: int, made: Forge, tmp_path: Path) -> None:
    chance = random.Random(f"{damage} {count}")
    for turn in range(6):
        lines = DAMAGE[damage](made.lines, chance.randrange(2, len(made.lines) - 4))
        folder = tmp_path / str(turn)
        folder.mkdir()
        expected = trail.verify(lines, made.notes, [made.keys[0].public])
        assert told(on_processors(folder, made, lines, made.notes, count)) == told(expected)
        assert expected.ok == (damage == "none")


def test_a_false_checkpoint_in_the_middle_of_a_stretch(made: Forge, tmp_path: Path) -> None:
    other = Forge(OTHER)
    other.work(40)
    other.sign()
    for name, notes in {
        "splice": [*made.notes, *other.notes],
        "truncate": made.notes,
        "forged-checkpoint": [made.notes[0], made.notes[1].replace(b"\xe2\x80\x94 ", b"\xe2\x80\x94  "), *made.notes[2:]],
    }.items():
        lines = made.lines[:-20] if name == "truncate" else made.lines
        folder = tmp_path / name
        folder.mkdir()
        found = on_processors(folder, made, lines, notes, 2)
        assert found.fault is not None and found.fault.kind == name
        assert told(found) == told(trail.verify(lines, notes, [made.keys[0].public]))


def test_a_half_line_at_the_end_is_told_and_left_out(made: Forge, tmp_path: Path) -> None:
    for number, rest in enumerate((b"{", made.lines[0], b"x" * 10_000)):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert on_processors(folder, made, made.lines, made.notes, 2, rest).ok


def test_children_that_are_killed_make_it_slower_and_not_wrong(
    made: Forge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(parts: object, write: int) -> None:
        os.write(write, b"\0\0\0")  # in the middle of a head
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(trailwalk, "_read", dies)
    assert on_processors(tmp_path, made, made.lines, made.notes, 2) == trail.verify(made.lines, made.notes, [made.keys[0].public])


def test_no_child_is_left(made: Forge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fork, forked = os.fork, list[int]()

    def noted() -> int:
        pid = fork()
        forked.append(pid)
        return pid

    monkeypatch.setattr(os, "fork", noted)
    before = set(os.listdir("/proc/self/fd"))
    assert on_processors(tmp_path, made, changed(made.lines, 30), made.notes, 3).fault is not None
    assert len(forked) == 3
    for pid in forked:
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    assert len(set(os.listdir("/proc/self/fd")) - before) <= 1  # that of the listing itself


def test_a_stretch_of_another_trail_is_not_taken(made: Forge) -> None:
    """A batch that fits itself is held against what came before it: trail, number, chain, time."""

    def walked() -> Walk:
        walk = Walk([], [], [])
        for line in made.lines[:10]:
            walk.step(line, iter(()))
        return walk

    batch = batch_of(made.lines[10:14])
    assert batch is not None and batch.chain_uid == ORIGIN and len(batch) == 4
    data = encode(batch)
    facts, leaves = sizes(data[:HEAD_BYTES])
    assert decode(data[HEAD_BYTES : HEAD_BYTES + facts], data[HEAD_BYTES + facts :]) == batch and leaves == len(batch.leaves)
    for wrong in (
        replace(batch, chain_uid=OTHER),
        replace(batch, sequence=11),
        replace(batch, previous=batch.tip),
        replace(batch, previous=None),
        replace(batch, earliest_ms=0),
    ):
        walk = walked()
        assert not walk.take(wrong)
        assert walk.tree.size == 10 and walk.take(batch) and walk.tree.size == 14  # control: nothing was taken before
