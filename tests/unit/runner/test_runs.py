# SPDX-License-Identifier: Apache-2.0
"""The run-once table: an id meets its entry again whatever happened in between."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from scaleoutd.errors import FormatError, StorageError
from scaleoutd.ipc.messages import TaskOffer
from scaleoutd.runner.runs import Run, Runs, run_name

WAY = ("accepted", "about-to-run", "computed", "released", "forgotten")


def offer(correlation_id: str = "c1", **changes: Any) -> TaskOffer:
    values = {"task": "train", "model_id": "m", "session_id": "s", "round_id": "r", "combiner": "c:1", **changes}
    return TaskOffer(correlation_id, **values)


def go(runs: Runs, *states: str, at_ms: int = 1000, **changes: Any) -> Run:
    """A run that went this way, closed."""
    run = runs.open(offer(**changes))
    for number, state in enumerate(states):
        run.enter(state, at_ms + number, {"n": number})
    run.close()
    return run


def test_what_was_entered_is_read_back(tmp_path: Path) -> None:
    go(Runs(tmp_path), *WAY)
    run = Runs(tmp_path).open(offer())
    assert [line.state for line in run.history] == list(WAY)
    assert (run.state, run.attempts, run.torn_bytes) == ("forgotten", 1, 0)
    assert (run.field("computed", "n"), run.field("failed", "n")) == (2, None)
    run.close()


def test_a_finished_run_goes_nowhere_again(tmp_path: Path) -> None:
    go(Runs(tmp_path), *WAY)
    run = Runs(tmp_path).open(offer())
    for state in WAY:
        with pytest.raises(ValueError):
            run.enter(state, 5000)
    run.close()


def test_the_first_offer_of_an_id_is_kept(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    go(runs, "accepted")
    run = runs.open(offer(task="validate", session_id="another", settings='{"a":1}'))
    assert run.offer == offer()
    run.close()


def test_names_come_from_ids_and_from_nothing_else() -> None:
    names = {run_name(text) for text in ("a", "A", "a ", "../a", "/", "\u202ea", "a" * 256)}
    assert len(names) == 7
    assert all(len(name) == 24 and set(name) <= set("0123456789abcdef") for name in names)


def test_a_torn_last_line_was_never_acknowledged_and_is_cut(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    name = go(runs, "accepted", "about-to-run").name
    state = tmp_path / name / "state"
    whole = state.read_bytes()
    for kept in (1, 20, len(whole.splitlines()[-1]) - 1):
        state.write_bytes(whole + whole.splitlines(keepends=True)[-1][:kept])
        run = runs.open(offer())
        assert (run.state, run.torn_bytes) == ("about-to-run", kept)
        run.close()
        assert state.read_bytes() == whole
    run = runs.open(offer())
    run.enter("computed", 3000)  # and it goes on
    run.close()


@pytest.mark.parametrize("kind", ["lost", "doubled", "swapped", "edited", "of another run", "emptied line"])
def test_a_history_that_was_tampered_with_is_refused(tmp_path: Path, kind: str) -> None:
    runs = Runs(tmp_path)
    name = go(runs, *WAY[:4]).name
    other = go(runs, *WAY[:4], at_ms=2000, correlation_id="c2").name
    state = tmp_path / name / "state"
    lines = state.read_bytes().splitlines(keepends=True)
    foreign = (tmp_path / other / "state").read_bytes().splitlines(keepends=True)
    changed = {
        "lost": [lines[0], *lines[2:]],
        "doubled": [*lines[:2], lines[1], *lines[2:]],
        "swapped": [lines[0], lines[2], lines[1], lines[3]],
        "edited": [lines[0], lines[1].replace(b'"at_ms":1001', b'"at_ms":1009'), *lines[2:]],
        "of another run": [lines[0], foreign[1], *lines[2:]],
        "emptied line": [lines[0], b"\n", *lines[1:]],
    }[kind]
    state.write_bytes(b"".join(changed))
    with pytest.raises(StorageError) as caught:
        runs.open(offer())
    assert caught.value.code == "state-corrupt"


def test_a_link_in_place_of_a_state_is_not_followed(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "runs")
    name = go(runs, "accepted").name
    state = tmp_path / "runs" / name / "state"
    state.rename(tmp_path / "elsewhere")
    state.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError):
        runs.open(offer())


def test_a_folder_without_a_task_was_never_answered(tmp_path: Path) -> None:
    (tmp_path / run_name("c1")).mkdir()
    runs = Runs(tmp_path)
    assert list(runs.all()) == []
    assert runs.find(run_name("c1")) is None
    assert go(runs, "accepted").state == "accepted"


@pytest.mark.parametrize("data", [b"", bytes(300)], ids=["empty", "zeros"])
def test_a_task_whose_bytes_went_with_the_power_before_it_was_durable_does_not_stop_the_room(tmp_path: Path, data: bytes) -> None:
    """Without a barrier a file system may keep a name and lose the bytes (ext4, delayed allocation)."""
    runs = Runs(tmp_path)
    name = go(runs, "accepted").name
    (tmp_path / name / "task.json").write_bytes(data)
    assert list(runs.all()) == []
    run = runs.open(offer())
    assert run.offer == offer()
    run.close()


def test_a_damaged_task_of_a_run_that_had_begun_is_not_passed_over(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    name = go(runs, "accepted", "about-to-run").name
    (tmp_path / name / "task.json").write_bytes(b"")
    with pytest.raises(FormatError):
        runs.open(offer())
    with pytest.raises(FormatError):
        list(runs.all())


def test_the_task_is_durable_before_its_first_state_that_matters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = {name: getattr(os, name) for name in ("fsync", "fdatasync")}

    def note(name: str, fd: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        real[name](fd)

    for name in real:
        monkeypatch.setattr(os, name, lambda fd, name=name: note(name, fd))
    runs = Runs(tmp_path)
    run = runs.open(offer())
    run.enter("accepted", 1)
    assert synced == []
    run.enter("about-to-run", 2)
    assert synced == ["task.json", tmp_path.name, "state", run.name]
    run.close()


def test_runs_are_counted_by_day_and_by_session(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    go(runs, "accepted", "about-to-run", at_ms=1000, correlation_id="a", session_id="one")
    go(runs, "accepted", "about-to-run", "interrupted", "about-to-run", at_ms=5000, correlation_id="b", session_id="one")
    go(runs, "accepted", "about-to-run", at_ms=9000, correlation_id="c", session_id="two")
    go(runs, "accepted", "failed", at_ms=9000, correlation_id="d", session_id="two")
    assert runs.counts(0, "one") == (4, 3)
    assert runs.counts(2000, "two") == (3, 1)
    assert runs.counts(2000, "none") == (3, 0)
