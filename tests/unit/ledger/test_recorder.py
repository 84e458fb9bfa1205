# SPDX-License-Identifier: Apache-2.0
"""The recorder with a told clock and failing disks: time, floors, rotation, and a crash at each step of it."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from scaleoutd.errors import ConfigError, LedgerError, StorageError
from scaleoutd.ipc.messages import Recorded
from scaleoutd.ledger import checkpoints as checkpoints_module
from scaleoutd.ledger.control import LedgerDesk, text_of
from scaleoutd.ledger.journal import Journal
from scaleoutd.ledger.recorder import Recorder
from scaleoutd.ledger.signer import Signer
from tests.unit.ledger.harness import START_MS, ToldClock, entry, keys_of, lines_of, recorder, request, verdict_of

HOUR_S, DAY_S = 3600, 86_400
VERIFIED: dict[str, Any] = {"manifest_sha256": "cd" * 32, "signers": ["k1"]}


def bodies(folder: Path, type_: str) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in lines_of(folder)]
    return [event["unmapped"]["event"] for event in events if event["metadata"]["event_code"] == type_]


def put(ledger: Recorder, type_: str, /, room: str = "runner", **body: Any) -> int:
    (answer,) = ledger.commit([request(room, entry(type_, **body))])
    assert isinstance(answer, Recorded), answer
    ledger.settle()
    return answer.sequences[0]


def fill(ledger: Recorder, events: int = 20) -> None:
    for number in range(events):
        put(ledger, "computed", run=f"r{number}", note="x" * 500)


# --- time ---------------------------------------------------------------------------------------------------------


def test_a_clock_set_back_by_more_than_five_minutes_is_on_record_and_keeps_the_floor(tmp_path: Path) -> None:
    clock = ToldClock()
    ledger = recorder(tmp_path, clock)
    put(ledger, "computed", run="r1")
    clock.wall_ms -= 4 * 60 * 1000
    put(ledger, "computed", run="r2")
    assert bodies(tmp_path, "clock-set-back") == []
    clock.wall_ms -= 2 * 60 * 1000
    put(ledger, "computed", run="r3")
    put(ledger, "computed", run="r4")
    assert bodies(tmp_path, "clock-set-back") == [{"from_ms": START_MS, "to_ms": START_MS - 6 * 60 * 1000}]
    assert ledger.answer_floors().time_ms == START_MS
    ledger.close("test")
    assert verdict_of(tmp_path).ok


def test_a_clock_that_jumps_ahead_unsynchronised_raises_no_floor(tmp_path: Path) -> None:
    clock = ToldClock()
    clock.synchronised = False
    ledger = recorder(tmp_path, clock)
    clock.advance(400 * DAY_S)
    put(ledger, "computed", run="r1")
    put(ledger, "computed", run="r2")
    assert ledger.answer_floors().time_ms == START_MS
    assert len(bodies(tmp_path, "clock-jumped")) == 1
    clock.synchronised = True
    put(ledger, "computed", run="r3")
    assert ledger.answer_floors().time_ms == clock.wall_ms
    ledger.close("test")
    again = recorder(tmp_path, clock)
    assert again.answer_floors().time_ms == clock.wall_ms
    again.close("test")


def test_a_floor_is_lowered_only_by_a_recorded_command(tmp_path: Path) -> None:
    clock = ToldClock()
    ledger = recorder(tmp_path, clock)
    clock.wall_ms -= DAY_S * 1000
    put(ledger, "computed", run="r1")
    put(ledger, "operator-command", room="runner", command="lower-clock-floor")  # not by a room that may be taken
    assert ledger.answer_floors().time_ms == START_MS
    put(ledger, "operator-command", room="cli", command="lower-clock-floor", reason="a bad NTP server")
    assert ledger.answer_floors().time_ms == clock.wall_ms
    ledger.close("test")
    again = recorder(tmp_path, clock)
    assert again.answer_floors().time_ms == clock.wall_ms
    assert bodies(tmp_path, "clock-floor-lowered")[0]["reason"] == "a bad NTP server"
    again.close("test")


def test_a_root_is_kept_with_its_digest_over_rotations_and_replaced_by_a_persons_word_only(tmp_path: Path) -> None:
    clock = ToldClock()
    ledger = recorder(tmp_path, clock)
    one, two = "1" * 64, "2" * 64
    put(
        ledger,
        "manifest-verified",
        room="runner",
        project="heart",
        manifest_version=1,
        manifest_sha256=one,
        signers=["x"],
        root_version=1,
    )
    assert (ledger.answer_floors().root_version, ledger.answer_floors().root_sha256) == (1, "")
    put(ledger, "trust-root-accepted", room="runner", root_version=1, root_sha256=one)
    put(ledger, "trust-root-accepted", room="runner", root_version=1, root_sha256=two)  # a runner that fell
    assert ledger.answer_floors().root_sha256 == one
    put(ledger, "trust-root-accepted", room="runner", root_version=3, root_sha256=two)
    body = {"root_version": 1, "root_sha256": one, "reason": "lost key", "operator": "root"}
    (refusal,) = ledger.commit([request("runner", entry("trust-root-reset", **body))])
    assert not isinstance(refusal, Recorded) and ledger.answer_floors().root_version == 3
    ledger._rotate()
    ledger.close("test")
    again = recorder(tmp_path, clock)
    assert (again.answer_floors().root_version, again.answer_floors().root_sha256) == (3, two)
    put(again, "trust-root-reset", room="cli", **body)
    again._rotate()
    assert (again.answer_floors().root_version, again.answer_floors().root_sha256) == (1, one)
    again.close("test")


# --- floors -------------------------------------------------------------------------------------------------------


def test_highest_versions_survive_restart_rotation_and_a_lost_resume_note(tmp_path: Path) -> None:
    clock = ToldClock()
    ledger = recorder(tmp_path, clock, segment_bytes=15_000)
    for version in (3, 9, 5):
        put(ledger, "manifest-verified", project="mnist", manifest_version=version, root_version=2, **VERIFIED)
    for number in range(40):
        put(ledger, "manifest-verified", project=f"{number:03d}" + "p" * 125, manifest_version=number + 1, **VERIFIED)
    expected = ledger.answer_floors()
    assert expected.manifest_versions["mnist"] == 9 and expected.root_version == 2 and len(expected.manifest_versions) == 41
    assert len(list(tmp_path.glob("*.jsonl"))) > 2
    ledger.close("test")
    for lost in (False, True):
        if lost:
            (tmp_path / "resume.json").unlink()
        again = recorder(tmp_path, clock)
        assert again.answer_floors() == expected
        again.close("test")
    assert verdict_of(tmp_path).ok


def test_a_forged_resume_note_is_seen_and_everything_is_read(tmp_path: Path) -> None:
    clock = ToldClock()
    ledger = recorder(tmp_path, clock, segment_bytes=10_000)
    put(ledger, "manifest-verified", project="mnist", manifest_version=9, **VERIFIED)
    fill(ledger)
    ledger.close("test")
    note = tmp_path / "resume.json"
    value = json.loads(note.read_text())
    value["frontier"][0] = "00" * 32
    note.write_text(json.dumps(value))
    again = recorder(tmp_path, clock)
    assert again.answer_floors().manifest_versions == {"mnist": 9}
    again.close("test")
    assert verdict_of(tmp_path).ok


def test_a_name_that_is_no_project_has_no_floor_and_does_not_stop_rotation(tmp_path: Path) -> None:
    ledger = recorder(tmp_path, ToldClock(), segment_bytes=10_000)
    put(ledger, "manifest-verified", project="…\x00 bad", manifest_version=9, **VERIFIED)
    fill(ledger)
    assert ledger.answer_floors().manifest_versions == {}
    assert len(list(tmp_path.glob("*.jsonl"))) > 1
    ledger.close("test")


# --- checkpoints --------------------------------------------------------------------------------------------------


def test_checkpoints_come_by_number_by_age_and_when_idle(tmp_path: Path) -> None:
    clock = ToldClock()
    ledger = recorder(tmp_path, clock, checkpoint_events=10, checkpoint_s=60, heartbeat_s=900)
    begun = verdict_of(tmp_path).signed_size
    for number in range(9):
        put(ledger, "computed", run=f"r{number}")
    assert verdict_of(tmp_path).signed_size == begun
    put(ledger, "computed", run="r9")
    assert verdict_of(tmp_path).signed_size == begun + 10
    put(ledger, "computed", run="r10")
    assert 59 < ledger.idle_s() <= 60
    clock.advance(60)
    ledger.settle()
    assert verdict_of(tmp_path).signed_size == begun + 11
    assert 800 < ledger.idle_s() <= 900
    clock.advance(900)
    ledger.settle()
    assert len(bodies(tmp_path, "ledger-alive")) == 1
    ledger.close("test")
    verdict = verdict_of(tmp_path)
    assert verdict.ok and verdict.signed_size == verdict.size


def test_a_release_that_cannot_be_signed_over_is_not_acknowledged_and_may_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = recorder(tmp_path, ToldClock())
    ask = request("runner", entry("release", run="r", kind="update", sha256="ab" * 32, size_bytes=1, destination="c:1"))
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def refuse(*_: object) -> None:
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", refuse)
        patch.setattr(ledger._journal, "append", Journal.append.__get__(ledger._journal))
        real = ledger._journal.append
        patch.setattr(ledger._journal, "append", lambda lines: _with_real_pwrite(real, lines))
        (answer,) = ledger.commit([ask])
        assert isinstance(answer, LedgerError) and "over a release" in answer.message
    (answer,) = ledger.commit([ask])
    assert isinstance(answer, Recorded)
    assert verdict_of(tmp_path).signed_size > answer.sequences[0]
    assert len(bodies(tmp_path, "release")) == 1
    ledger.close("test")


def test_a_full_disk_is_told_and_its_end_is_found_though_nobody_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ToldClock()
    ledger = recorder(tmp_path, clock)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    said: list[str] = []
    monkeypatch.setattr("scaleoutd.ledger.recorder.LOG.error", lambda _, exc, extra: said.append(str(exc)))

    def refuse(*_: object) -> None:
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", refuse)
        (answer,) = ledger.commit([request("runner", entry("computed", run="r"))])
        assert isinstance(answer, LedgerError)
        for _ in range(5):
            clock.advance(1)
            ledger.settle()
            assert text_of(ledger).startswith("records nothing: ") and "No space left" in text_of(ledger)
        assert LedgerDesk(ledger).report().state == "refusing" and ledger.idle_s() <= 1
        assert not said  # whoever asked was told; looking again and again fills no journal
    ledger.settle()
    assert ledger.trouble  # it waits before it tries again
    clock.advance(1)
    ledger.settle()
    assert (
        LedgerDesk(ledger).report().state == "serving"
        and text_of(ledger) == f"{ledger.size} events, {ledger.signed} of them signed"
    )
    assert len(bodies(tmp_path, "ledger-alive")) == 1
    ledger.close("test")
    assert verdict_of(tmp_path).ok


_PWRITE = os.pwrite


def _with_real_pwrite(append: Any, lines: Any) -> None:
    broken, os.pwrite = os.pwrite, _PWRITE
    try:
        append(lines)
    finally:
        os.pwrite = broken


def test_a_failed_fdatasync_is_final(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = recorder(tmp_path, ToldClock())

    def refuse(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", refuse)
        (answer,) = ledger.commit([request("runner", entry("computed", run="r"))])
        assert isinstance(answer, LedgerError)
    assert ledger.failed
    (answer,) = ledger.commit([request("runner", entry("computed", run="r"))])
    assert isinstance(answer, LedgerError)
    ledger.close("failed")
    recorder(tmp_path, ToldClock()).close("test")
    assert verdict_of(tmp_path).ok


# --- rotation and its crashes ---------------------------------------------------------------------------------------


class Crash(Exception):
    pass


STEPS = [
    (Signer, "prepare", "before"),
    (Signer, "prepare", "after"),
    (Journal, "append", "after"),
    (Recorder, "_checkpoint", "before"),
    (Recorder, "_checkpoint", "after"),
    (Signer, "complete", "before"),
    (Signer, "complete", "after"),
    (Journal, "next_segment", "before"),
    (Journal, "next_segment", "after"),
    (checkpoints_module, "replace_file", "before"),
    (checkpoints_module, "replace_file", "after"),
]


@pytest.mark.parametrize(("owner", "name", "when"), STEPS, ids=[f"{when}-{name}" for _, name, when in STEPS])
def test_a_crash_at_each_step_of_a_rotation_is_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, when: str
) -> None:
    clock = ToldClock()
    ledger = recorder(tmp_path, clock)
    put(ledger, "manifest-verified", project="mnist", manifest_version=9, **VERIFIED)
    fill(ledger, 5)
    real = getattr(owner, name)

    def crash(*arguments: Any, **options: Any) -> Any:
        if when == "after":
            real(*arguments, **options)
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, crash)
        with pytest.raises(Crash):
            ledger._rotate()
    ledger._journal.close()
    ledger._checkpoints.close()
    again = recorder(tmp_path, clock)
    put(again, "computed", run="after")
    again._rotate()
    again.close("test")
    verdict = verdict_of(tmp_path)
    assert verdict.ok, verdict.fault
    assert again.answer_floors().manifest_versions == {"mnist": 9}
    assert len(list((tmp_path / "private").iterdir())) == 1
    assert len(keys_of(tmp_path)) == verdict.epochs
    last = recorder(tmp_path, clock)
    assert last.answer_floors().manifest_versions == {"mnist": 9}
    last.close("test")


def test_a_closed_segment_is_read_only_and_the_first_key_is_gone(tmp_path: Path) -> None:
    ledger = recorder(tmp_path, ToldClock(), segment_bytes=5_000)
    fill(ledger, 10)
    ledger.close("test")
    assert (tmp_path / "00000001.jsonl").stat().st_mode & 0o777 == 0o440
    assert not (tmp_path / "private" / "epoch-1.pem").exists()
    assert (tmp_path / "keys" / "epoch-1.vkey").exists()


def test_a_private_key_that_others_can_read_or_that_is_gone_stops_the_ledger(tmp_path: Path) -> None:
    recorder(tmp_path, ToldClock()).close("test")
    key = tmp_path / "private" / "epoch-1.pem"
    recorder(tmp_path, ToldClock()).close("test")  # the control
    key.chmod(0o640)
    with pytest.raises(ConfigError, match="mode 0640"):
        recorder(tmp_path, ToldClock())
    key.unlink()
    with pytest.raises(ConfigError, match="has none"):
        recorder(tmp_path, ToldClock())


@pytest.mark.parametrize("tail", [b"\x00" * 100, b"{}\x00\x00\n\x00", b"half", b"\x00" * 200_000])
def test_the_tail_of_a_power_cut_is_set_aside(tmp_path: Path, tail: bytes) -> None:
    recorder(tmp_path, ToldClock()).close("test")
    segment = tmp_path / "00000001.jsonl"
    whole = segment.read_bytes()
    segment.write_bytes(whole + tail)
    journal = Journal(tmp_path)
    assert journal.torn is not None and journal.torn.size_bytes == len(tail)
    assert segment.read_bytes() == whole
    journal.close()


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    journal.append([b"one"])
    written: list[int] = []

    def half(fd: int, data: Any, offset: int) -> int:
        if written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(1)
        return _PWRITE(fd, bytes(data)[:2], offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", half)
        with pytest.raises(StorageError) as refused:
            journal.append([b"two"])
    assert refused.value.code == "storage-full"
    journal.append([b"three"])
    assert list(journal.lines(1)) == [b"one", b"three"]
    journal.close()
