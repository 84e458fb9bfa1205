# SPDX-License-Identifier: Apache-2.0
"""Each parser keeps its promises over its seeds, the kept corpus and some thousand mutations (docs/fuzzing.md)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import corpora
from tests.fuzz.check import check
from tests.fuzz.registry import TARGETS
from tests.fuzz.target import Finding, Target

ROOT = Path(__file__).resolve().parents[2]
MAX_CORPUS_BYTES = 300_000


@pytest.mark.parametrize("name", TARGETS)
def test_a_parser_keeps_its_promises(name: str, test_scale: int) -> None:
    # In a process of its own: the limit of its memory cannot be taken back.
    environment = {**os.environ, "FUZZ_SCALE": str(test_scale)}
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-m", "tests.fuzz.check", name]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout[-8000:], done.stderr[-4000:])
    assert "accepted" in done.stdout, f"nothing was accepted, so nothing was tried: {done.stdout}"


def test_the_kept_corpus_is_small_and_of_targets_that_there_are() -> None:
    files = list(corpora.FOLDER.glob("*"))
    assert sum(path.stat().st_size for path in files) < MAX_CORPUS_BYTES
    assert {path.name.removesuffix(".b64") for path in files} <= set(TARGETS)


def _of_other_kind(data: bytes) -> None:
    if data.startswith(b"bad"):
        raise KeyError("bad")


def _slow(data: bytes) -> None:
    while data.startswith(b"bad"):
        pass


def _changing(data: bytes) -> None:
    assert not data.startswith(b"bad")


@pytest.mark.parametrize("parse", [_of_other_kind, _slow, _changing])
def test_a_broken_promise_is_a_finding(parse: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.target.CPU_S", 0.2)
    good = Target("t", parse, lambda: [b"good"], frozenset())  # type: ignore[arg-type]
    assert check(good, 0)["accepted"] == 2
    with pytest.raises(Finding, match="input in base64: YmFk"):
        check(Target("t", parse, lambda: [b"bad"], frozenset()), 0)  # type: ignore[arg-type]
