# SPDX-License-Identifier: Apache-2.0
"""The linters are tests: one command says whether a change is fit to land."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ["scaleoutd", "tests", "benchmarks", "tools", "packaging"]


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", *FOLDERS],
        ["ruff", "format", "--check", *FOLDERS],
        ["mypy", "--strict", *FOLDERS],
    ],
    ids=["ruff-check", "ruff-format", "mypy"],
)
def test_linter(command: list[str]) -> None:
    result = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
