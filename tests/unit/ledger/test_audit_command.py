# SPDX-License-Identifier: Apache-2.0
"""`audit verify` and `audit show` on copies of the folder of a real ledger."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from scaleoutd.cli.audit import audit
from tests.unit.ledger.harness import LedgerProcess

DIGEST = "ab" * 32
STARTED = {
    "run": "run-1", "attempt": 1, "correlation_id": "c1", "session_id": "s1", "round_id": "7", "task": "train",
    "project": "mnist", "manifest_sha256": DIGEST, "manifest_version": 3, "model_sha256": "cd" * 32,
    "environment": "system", "data_sets": ["digits"],
    "policy_sha256": DIGEST, "command": ["python", "train.py"], "limits": {"wall_clock_s": 60},
}  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trail of four segments with one good run, one refusal, and a name that would write on the terminal."""
    folder = tmp_path_factory.mktemp("trail") / "state"
    ledger = LedgerProcess(folder, "--segment-bytes", "30000").ready()
    runner, agent = ledger.client("runner"), ledger.client("agent")
    runner.record("run-about-to-start", **STARTED)
    runner.record("run-ended", run="run-1", ended="exited", exit_status=0, wall_ms=812, denied={"ptrace": 2})
    runner.record("release", run="run-1", kind="update", sha256=DIGEST, size_bytes=65536, destination="c.example:443")
    agent.record("sending", run="run-1", sha256=DIGEST)
    agent.record("sent", run="run-1", outcome="acknowledged")
    runner.record("manifest-refused", code="file-changed", message="cannot run: train.py differs", file="tr\x1b]0;x\x07ain.py")
    for number in range(80):
        runner.record("computed", run=f"more-{number}", note="x" * 300)
    ledger.stop()
    assert len(list(folder.glob("*.jsonl"))) >= 4
    return folder


@pytest.fixture
def folder(source: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "copy"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("private"))
    for path in copy.glob("*.jsonl"):
        path.chmod(0o600)
    return copy


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(audit, [str(item) for item in arguments])


def test_a_copy_without_private_keys_verifies(folder: Path) -> None:
    result = call("verify", folder, "--key", folder / "keys" / "epoch-1.vkey")
    assert result.exit_code == 0, result.output
    assert "the trail verifies" in result.output
    told = json.loads(call("verify", folder, "--json").output)
    assert told["ok"] is True and told["fault"] is None and told["size"] == told["signed_size"] and told["epochs"] >= 4
    assert "believed" in told["warnings"][0]


def test_each_tampering_ends_with_65_and_the_sequence(folder: Path) -> None:
    second = folder / "00000002.jsonl"
    lines = second.read_bytes().splitlines(keepends=True)
    first_sequence = json.loads(lines[0])["metadata"]["sequence"]
    attacks = {
        "edit": [lines[0], lines[1].replace(b"xxx", b"xyx", 1), *lines[2:]],
        "delete": [lines[0], *lines[2:]],
        "reorder": [lines[0], lines[2], lines[1], *lines[3:]],
    }
    for kind, changed in attacks.items():
        second.write_bytes(b"".join(changed))
        result = call("verify", folder, "--json")
        assert result.exit_code == 65
        fault = json.loads(result.output)["fault"]
        assert (fault["kind"], fault["sequence"]) == (kind, first_sequence + 1)
        assert f"{kind} at sequence {first_sequence + 1}" in call("verify", folder).output
    second.unlink()
    fault = json.loads(call("verify", folder, "--json").output)["fault"]
    assert (fault["kind"], fault["sequence"]) == ("delete", first_sequence)


def test_the_last_segment_gone_is_a_truncation(folder: Path) -> None:
    last = sorted(folder.glob("*.jsonl"))[-1]
    sequence = json.loads(last.read_bytes().splitlines()[0])["metadata"]["sequence"]
    last.unlink()
    fault = json.loads(call("verify", folder, "--json").output)["fault"]
    assert (fault["kind"], fault["sequence"]) == ("truncate", sequence)


def test_yesterdays_copy_is_seen_with_a_checkpoint_that_a_witness_kept(folder: Path, tmp_path: Path) -> None:
    notes = (folder / "checkpoints").read_bytes()
    witness = tmp_path / "witness"
    witness.write_bytes(notes[notes.rstrip(b"\n").rfind(b"\n\nscaleoutd/") + 2 :])
    assert call("verify", folder, "--checkpoint", witness).exit_code == 0
    last = sorted(folder.glob("*.jsonl"))[-1]
    sequence = json.loads(last.read_bytes().splitlines()[0])["metadata"]["sequence"]
    last.unlink()
    kept = [note + b"\n\n" for note in notes.split(b"\n\n") if note]
    pairs = [kept[place] + kept[place + 1] for place in range(0, len(kept) - 1, 2)]
    (folder / "checkpoints").write_bytes(b"".join(pair for pair in pairs if int(pair.split(b"\n")[1]) <= sequence))
    assert call("verify", folder).exit_code == 0  # the folder alone cannot tell
    assert call("verify", folder, "--checkpoint", witness).exit_code == 65


def test_the_key_of_another_trail_is_wrong(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    LedgerProcess(other).ready().stop()
    result = call("verify", folder, "--key", other / "keys" / "epoch-1.vkey")
    assert result.exit_code == 65 and "wrong-key" in result.output


def test_show_tells_what_ran_on_what_and_what_left_and_writes_nothing_on_the_terminal(folder: Path) -> None:
    result = call("show", folder)
    assert result.exit_code == 0
    for part in ("run run-1: train", "mnist version 3", "python train.py", "update, 65536 bytes", "c.example:443: acknowledged"):
        assert part in result.output
    assert "manifest-refused" in result.output and "file-changed" in result.output
    assert "\x1b" not in result.output and "\\x1b]0;x" in result.output
    assert len(call("show", folder, "--all").output.splitlines()) > 85
    told = json.loads(call("show", folder, "--json").output)
    assert told["runs"][0]["started"]["model_sha256"] == "cd" * 32 and told["counts"]["computed"] == 80


def test_a_folder_that_is_no_trail_is_an_error_not_a_success(tmp_path: Path) -> None:
    result = call("verify", tmp_path)
    assert result.exit_code != 0


def test_a_trail_that_is_being_written_verifies(tmp_path: Path) -> None:
    ledger = LedgerProcess(tmp_path / "state").ready()
    ledger.client("runner").record("computed", run="r1")
    with (tmp_path / "state" / "00000001.jsonl").open("ab") as file:
        file.write(b'{"half')
    result = call("verify", tmp_path / "state")
    assert result.exit_code == 0 and "middle of a line" in result.output
    ledger.kill()
