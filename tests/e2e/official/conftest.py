# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
ENVIRONMENT = REPOSITORY / ".venv-official"


@pytest.fixture(scope="session")
def official_bin() -> Path:
    """The official client's bin folder; made from the hash-locked list when `make setup` has not."""
    bin_folder = ENVIRONMENT / "bin"
    if not (bin_folder / "scaleout").exists():
        locked = REPOSITORY / "requirements" / "official.txt"
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
        install = [str(bin_folder / "pip"), "install", "-q", "--no-deps", "--require-hashes", "-r", str(locked)]
        subprocess.run(install, check=True)
    return bin_folder
