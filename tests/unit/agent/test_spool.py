# SPDX-License-Identifier: Apache-2.0
"""Tasks on disk: taken up after a restart, damaged ones named, ids that are over remembered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scaleoutd.agent.dialects import Directive
from scaleoutd.agent.spool import MAX_REMEMBERED, Entry, Spool, presentable
from scaleoutd.errors import FormatError, StorageError, WorkloadError

DATA = '{"client_settings": {"a": 0.5}}'
DIRECTIVE = Directive("c/../1", "Scaleout_ModelUpdate", "train", "m1", "s1", "r1", DATA, '{"a": 0.5}')


def spool(folder: Path) -> tuple[Spool, list[tuple[str, int, str]]]:
    repairs: list[tuple[str, int, str]] = []
    return Spool(folder, lambda *what: repairs.append(what)), repairs


def advanced(entry: Entry, *states: str) -> Entry:
    for state in states:
        entry.advance(state, attempt=1)
    return entry


SENT = ("offered", "released", "sending")
WAYS = [(), SENT[:1], SENT[:2], SENT, (*SENT, "unknown"), (*SENT, "acknowledged")]


@pytest.mark.parametrize("way", WAYS)
def test_every_state_is_found_again(tmp_path: Path, way: tuple[str, ...]) -> None:
    first, _ = spool(tmp_path)
    entry = first.receive(DIRECTIVE, "host:1")
    advanced(entry, *way)
    entry.settle()
    again, repairs = spool(tmp_path)
    (found,) = again.entries()
    assert found.state == (way[-1] if way else "received")
    assert found.task.directive == DIRECTIVE
    assert found.task.combiner == "host:1"
    assert found.found_after_restart
    assert not repairs
    assert entry.folder.name.isalnum()  # whatever the correlation id holds


def test_an_id_that_is_over_is_remembered_and_its_folder_gone(tmp_path: Path) -> None:
    first, _ = spool(tmp_path)
    entry = first.receive(DIRECTIVE, "host:1")
    entry.fail(WorkloadError("cannot go on: exit status 3"))
    first.finish(entry)
    for current in (first, spool(tmp_path)[0]):
        assert not current.entries()
        over = current.finished(DIRECTIVE.correlation_id)
        assert over is not None
        assert (over.status, json.loads(over.response)["code"]) == ("FAILED", "step-failed")
    assert not entry.folder.exists()


def test_a_crash_between_reported_and_removed(tmp_path: Path) -> None:
    first, _ = spool(tmp_path)
    entry = advanced(first.receive(DIRECTIVE, "host:1"), "offered", "released", "sending", "acknowledged", "reported")
    again, _ = spool(tmp_path)
    assert not again.entries()
    over = again.finished(DIRECTIVE.correlation_id)
    assert over is not None
    assert over.status == "COMPLETED"
    assert not entry.folder.exists()


def test_a_torn_last_line_is_cut_off_and_told(tmp_path: Path) -> None:
    first, _ = spool(tmp_path)
    entry = advanced(first.receive(DIRECTIVE, "host:1"), "offered")
    with (entry.folder / "state").open("ab") as file:
        file.write(b'{"at_ms":1,"fie')
    again, repairs = spool(tmp_path)
    assert again.entries()[0].state == "offered"
    assert repairs == [(f"{entry.folder.name}/state", 15, "the unacknowledged rest of a crash")]
    again.entries()[0].advance("released")


@pytest.mark.parametrize("damage", ["changed", "emptied"])
def test_a_damaged_state_fails_its_task_by_name(tmp_path: Path, damage: str) -> None:
    first, _ = spool(tmp_path)
    entry = advanced(first.receive(DIRECTIVE, "host:1"), "offered", "released")
    path = entry.folder / "state"
    path.write_bytes(path.read_bytes().replace(b"offered", b"sending") if damage == "changed" else b"")
    again, repairs = spool(tmp_path)
    report = again.entries()[0].report()
    assert (report.status, report.done, json.loads(report.response)["code"]) == ("FAILED", True, "state-corrupt")
    assert repairs
    assert (entry.folder / "state.damaged").exists()
    assert spool(tmp_path)[0].entries()[0].state == "failed"


def test_a_damaged_task_is_set_aside_and_others_go_on(tmp_path: Path) -> None:
    first, _ = spool(tmp_path)
    broken = first.receive(DIRECTIVE, "host:1")
    first.receive(Directive("c2", "Scaleout_Validation", "validate"), "host:1")
    (broken.folder / "task.json").write_text("{")
    again, repairs = spool(tmp_path)
    assert [entry.task.correlation_id for entry in again.entries()] == ["c2"]
    assert repairs[0][0].endswith("task.json")
    assert list(tmp_path.glob("damaged-*"))
    assert len(spool(tmp_path)[0].entries()) == 1


def test_half_a_task_never_appears(tmp_path: Path) -> None:
    half = tmp_path / ".0123.new"
    half.mkdir(parents=True)
    (half / "task.json").write_text("{")
    found, repairs = spool(tmp_path)
    assert (found.entries(), repairs) == ([], [])
    assert not half.exists()


def test_a_problem_is_failed_before_a_worker_can_see_it(tmp_path: Path) -> None:
    current, _ = spool(tmp_path)
    entry = current.receive(DIRECTIVE, "host:1", FormatError("cannot read it", code="settings-denied"))
    assert not entry.needs_worker
    assert entry.report().status == "FAILED"


def test_what_is_reported_on_the_way(tmp_path: Path) -> None:
    current, _ = spool(tmp_path)
    entry = current.receive(DIRECTIVE, "host:1")
    assert (entry.report().status, entry.report().done) == ("PENDING", False)
    entry.active = True
    advanced(entry, "offered")
    assert entry.report().status == "RUNNING"
    entry.active = False
    entry.waits_for = "ledger-unavailable"
    assert json.loads(entry.report().response) == {"waits_for": "ledger-unavailable"}
    advanced(entry, "released")
    assert entry.report().status == "RUNNING"
    entry.active = True
    advanced(entry, "sending", "acknowledged")
    assert not entry.report().done  # the worker still talks to the runner about it
    entry.active = False
    assert (entry.report().status, entry.report().done) == ("COMPLETED", True)
    assert entry.needs_worker
    entry.advance("acknowledged", recorded=True, confirmed=True)
    assert not entry.needs_worker


def test_the_memory_of_what_is_over_is_bounded(tmp_path: Path) -> None:
    line = b'{"correlation_id":"%d","response":"","status":"COMPLETED"}\n'
    (tmp_path / "finished").write_bytes(b"".join(line % number for number in range(2 * MAX_REMEMBERED + 10)))
    current, _ = spool(tmp_path)
    assert current.finished(str(2 * MAX_REMEMBERED + 9)) is not None
    assert current.finished("0") is None
    assert len((tmp_path / "finished").read_bytes().splitlines()) == MAX_REMEMBERED


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("cannot read /var/lib/scaleoutd/runner/store/train.py: it differs", "cannot read train.py: it differs"),
        ("train.py and data/x.csv stay", "train.py and data/x.csv stay"),
        ("'/home/alice/p/model.py' is a link", "'model.py' is a link"),
        ("x" * 1000, "x" * 299 + "…"),
    ],
)
def test_messages_that_leave_name_no_folder_of_this_machine(message: str, shown: str) -> None:
    assert presentable(message) == shown


def test_a_full_disk_is_an_error_of_its_own(tmp_path: Path) -> None:
    current, _ = spool(tmp_path)
    with pytest.raises(StorageError):
        (tmp_path / "gone").mkdir()
        current.folder = tmp_path / "gone" / "nowhere"
        current.receive(DIRECTIVE, "host:1")
