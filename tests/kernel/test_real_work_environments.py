# SPDX-License-Identifier: Apache-2.0
"""Environments and what libraries expect around them: a venv, a conda-style prefix, caches and HOME in scratch, a user's name."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kernel.programs import SHOW
from tests.kernel.real_work import MODES, sandbox
from tests.step_client import PYTHON


@pytest.fixture
def place() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="scaleoutd-environment-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def make_venv(prefix: Path) -> Path:
    subprocess.run([PYTHON, "-m", "venv", "--without-pip", str(prefix)], check=True)
    return next(prefix.glob("lib/python3*/site-packages"))


def make_conda(prefix: Path) -> Path:
    """As conda lays it out: the interpreter itself in bin, its library beside it, found relative to where it lies."""
    real = Path(PYTHON).resolve()
    for name in ("bin", "conda-meta", "lib"):
        (prefix / name).mkdir(parents=True)
    shutil.copy(real, prefix / "bin" / "python")
    library = prefix / "lib" / real.name
    shutil.copytree(f"/usr/lib/{real.name}", library, ignore=shutil.ignore_patterns("__pycache__", "test"))
    return library  # Debian's interpreter does not look into site-packages


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("make", [make_venv, make_conda], ids=["venv", "conda"])
def test_an_environment_of_its_own(make: Callable[[Path], Path], mode: str, place: Path) -> None:
    prefix = place / "environment"
    packages = make(prefix)
    (packages / "mine.py").write_text("NAME = 'of the environment'\n")
    with sandbox(mode, SHOW) as work:
        done = work.run(python=str(prefix / "bin" / "python"))
    assert f'"prefix": "{prefix}"' in done.output, done
    assert '"user": "step"' in done.output and '"home": "/scratch/home"' in done.output, done
    assert '"threads": "2"' in done.output, done
    assert "of the environment" in done.output, done
