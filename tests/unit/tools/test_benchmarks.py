# SPDX-License-Identifier: Apache-2.0
"""`make bench` calls every benchmark with --json and nothing else, so none may ask for more."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROGRAMS = [path.stem for path in sorted(ROOT.glob("benchmarks/[a-z]*.py")) if "__main__" in path.read_text()]


def test_there_are_some() -> None:
    assert {"verify", "verify_beside", "sandbox", "task"} <= set(PROGRAMS)


@pytest.mark.parametrize("name", PROGRAMS)
def test_no_benchmark_needs_an_argument(name: str) -> None:
    done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    usage = " ".join(done.stdout.partition("\n\n")[0].split())
    assert "[--json]" in usage
    left, count = usage.partition(".py" if ".py" in usage else name)[2], 1
    while count:  # what may be left out stands in brackets, and those may hold others
        left, count = re.subn(r"\[[^][]*\]", "", left)
    assert not left.strip(), usage
