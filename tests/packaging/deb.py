# SPDX-License-Identifier: Apache-2.0
"""Building the Debian package for tests: by packaging/deb.py, of this tree or of a copy that says another version."""

from __future__ import annotations

import atexit
import functools
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
WHEELS = ROOT / "dist/wheels"
TOOLS = ("dpkg-deb", "dpkg-parsechangelog", "strip", "objdump")
VERSION, NEXT_VERSION = "0.1.0", "0.1.1"
EARLIER = "be9c033"  # 2026-11-24, with all that an upgrade needs; formats of then must be read by now


def missing(*more: str) -> str:
    """Why no package can be built here, or ''."""
    absent = [tool for tool in (*TOOLS, *more) if not shutil.which(tool)]
    return f"{', '.join(absent)} not found: tools/setup.sh package installs what they belong to" if absent else ""


def build(
    into: Path,
    tree: Path = ROOT,
    *,
    wheels: Path = WHEELS,
    before: Sequence[str] = (),
    distribution: str = "bookworm",
    python: str = sys.executable,
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Path:
    """The package, in the folder `into`; `before` goes before the command (unshare, setpriv)."""
    command = [*before, python, "-B", str(tree / "packaging/deb.py"), "--into", str(into), "--wheels", str(wheels)]
    command += ["--distribution", distribution, *options]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return Path(ran.stdout.strip().splitlines()[-1].split("  ")[0])


@functools.cache
def of_this_tree(distribution: str = "bookworm") -> Path:
    """The package of the tree as it is, built once for all tests of a session."""
    folder = tempfile.TemporaryDirectory(prefix="scaleoutd-deb-")
    atexit.register(folder.cleanup)
    return build(Path(folder.name), distribution=distribution)


@functools.cache
def of_earlier_commit() -> Path | None:
    """The package as EARLIER built it, by that commit's own code; None where the history does not have it (a shallow clone)."""
    archived = subprocess.run(["git", "archive", EARLIER], cwd=ROOT, capture_output=True)
    if archived.returncode:
        return None
    folder = tempfile.TemporaryDirectory(prefix="scaleoutd-deb-")
    atexit.register(folder.cleanup)
    tree = Path(folder.name) / "tree"
    with tarfile.open(fileobj=io.BytesIO(archived.stdout)) as archive:
        archive.extractall(tree)
    command = [sys.executable, "-B", str(tree / "packaging/deb.py"), "--into", folder.name, "--wheels", str(WHEELS)]
    ran = subprocess.run(command, env={**os.environ, "SOURCE_DATE_EPOCH": "1790000000"}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return next(Path(folder.name).glob("*.deb"))


@functools.cache
def of_next_version() -> Path:
    """The same as version 0.1.1: what an upgrade brings."""
    folder = tempfile.TemporaryDirectory(prefix="scaleoutd-deb-")
    atexit.register(folder.cleanup)
    tree = copy_tree(Path(folder.name) / "tree", NEXT_VERSION)
    return build(Path(folder.name), tree, environment={**os.environ, "SOURCE_DATE_EPOCH": "1800000000"})


def copy_tree(into: Path, version: str = VERSION) -> Path:
    """The files that git knows or would add, in a new folder, as `version` of the package."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            target = into / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
    if version != VERSION:
        for name, was, becomes in (
            ("pyproject.toml", f'version = "{VERSION}"', f'version = "{version}"'),
            ("scaleoutd/__init__.py", f'"{VERSION}"', f'"{version}"'),
            ("packaging/debian/changelog", f"({VERSION}-", f"({version}-"),
        ):
            text = (into / name).read_text()
            assert was in text, name
            (into / name).write_text(text.replace(was, becomes))
    return into


def members(deb: Path, what: str = "--fsys-tarfile") -> dict[str, tarfile.TarInfo]:
    """The package's files and folders by name without "./"; with --ctrl-tarfile those of its control part."""
    packed = subprocess.run(["dpkg-deb", what, deb], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        return {member.name.removeprefix("./"): member for member in archive.getmembers()}


def unpack(deb: Path, into: Path) -> Path:
    subprocess.run(["dpkg-deb", "-R", deb, into], check=True)
    return into
