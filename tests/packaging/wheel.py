# SPDX-License-Identifier: Apache-2.0
"""Building the wheel from a copy of the sources, and installing it into an empty virtual environment, without a network.

The wheel itself is installed by pip.  What it depends on cannot be downloaded here, so it is copied, file by file as their
RECORDs list them, from the environment that runs the tests: exactly the distributions that the wheel's own metadata asks for,
and what those ask for.  A dependency that the metadata forgot is therefore missing, as it would be for a user.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE")


def build_wheel(folder: Path) -> Path:
    """The wheel of what lies in the repository, built in a copy: nothing of an earlier build is in it."""
    copy = folder / "source"
    shutil.copytree(ROOT / "scaleoutd", copy / "scaleoutd", ignore=shutil.ignore_patterns("__pycache__"))
    for name in SOURCES:
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--no-deps", "-w", str(folder / "dist"), str(copy)], check=True)
    (wheel,) = (folder / "dist").glob("scaleoutd-*.whl")
    return wheel


def without(wheel: Path, pattern: str, folder: Path) -> Path:
    """A copy of the wheel that lacks the files whose names match."""
    folder.mkdir(parents=True)
    target = folder / wheel.name
    removed = 0
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(target, "w") as copy:
        for item in source.infolist():
            data = source.read(item)
            if re.search(pattern, item.filename):
                removed += 1
                continue
            if item.filename.endswith("/RECORD"):
                data = b"".join(line for line in data.splitlines(keepends=True) if not re.search(pattern, line.decode()))
            copy.writestr(item, data)
    assert removed, f"the wheel has no file that matches {pattern}"
    return target


class Installed:
    """An environment with the wheel in it and nothing of the repository; calls run there from a folder elsewhere."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.folder, self.venv = folder, folder / "venv"
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([_base_python(), "-m", "venv", "--without-pip", str(self.venv)], check=True)
        self._pip("install", "-q", "--no-index", "--no-deps", str(wheel))
        (self.site,) = self.venv.glob("lib/python3*/site-packages")
        for distribution in _needed("scaleoutd", path=self.site):
            _copy(distribution, self.site)
        self.home = folder / "home"
        self.home.mkdir()

    def _pip(self, *arguments: str) -> None:
        python = str(self.venv / "bin" / "python")
        subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, *arguments], check=True)

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": f"{self.venv / 'bin'}:/usr/bin:/bin", "HOME": str(self.home), "LANG": "C.UTF-8"}

    def call(self, program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.venv / "bin" / program), *map(str, arguments)],
            cwd=self.home,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )


def _base_python() -> str:
    return str(getattr(sys, "_base_executable", sys.executable))


def _needed(name: str, path: Path) -> Iterator[importlib.metadata.Distribution]:
    """The distributions that the one `name` in `path` asks for, and those they ask for, from the running environment."""
    (own,) = importlib.metadata.distributions(name=name, path=[str(path)])
    waiting, seen = list(own.requires or ()), {name}
    while waiting:
        requirement = waiting.pop()
        wanted, _, marker = requirement.partition(";")
        found = re.match(r"[A-Za-z0-9._-]+", wanted)
        if found is None or "extra" in marker or found[0].lower() in seen:
            continue
        seen.add(found[0].lower())
        try:
            distribution = importlib.metadata.distribution(found[0])
        except importlib.metadata.PackageNotFoundError:
            assert marker, f"{found[0]} is not installed here and has no marker that says why"
            continue  # for another Python or platform
        yield distribution
        waiting += distribution.requires or ()


def _copy(distribution: importlib.metadata.Distribution, site: Path) -> None:
    for file in distribution.files or ():
        if ".." in file.parts or file.suffix == ".pyc":
            continue  # programs of theirs, which nothing of ours calls
        if not Path(str(file.locate())).exists():
            continue  # an egg-info lists its sources, setup.py among them
        target = site / str(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(file.locate()), target)
