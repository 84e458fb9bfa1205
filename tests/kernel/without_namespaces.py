# SPDX-License-Identifier: Apache-2.0
"""An ordinary user's home on a host that gives no namespaces; see enter_host.py."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.attack.arena import USER
from tests.step_client import readable_copy

ENTER = Path(__file__).with_name("enter_host.py")
ROOT = os.geteuid() == 0
UID = USER if ROOT else os.geteuid()


class Host:
    """Runs programs of the package as that user, in a home of his own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.package = readable_copy()
        self.is_venv = sys.prefix != sys.base_prefix
        # The checkout may lie below a closed home, so its environment is shown at another place too.
        self.environment = home / "venv" if ROOT and self.is_venv else Path(sys.prefix)
        self.python = str(self.environment / "bin" / "python") if self.is_venv else sys.executable

    def command(self, program: str, *arguments: str) -> list[str]:
        return [self.python, "-m", f"scaleoutd.cli.{program}", *arguments]

    def start(self, command: list[str], folder: Path, log: int, **environment: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._inside(command),
            cwd=folder,
            env=self._environment(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )

    def run(self, command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._inside(command), cwd=folder, env=self._environment(environment), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False,
        )  # fmt: skip

    def give(self, *paths: Path) -> None:
        """Makes everything below `paths` the user's own."""
        for path in paths:
            for item in (path, *path.rglob("*")) if path.is_dir() else (path,):
                os.chown(item, UID, UID if ROOT else -1)

    def _environment(self, more: Mapping[str, str]) -> dict[str, str]:
        own = {"HOME": str(self.home), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONPATH": str(self.package)}
        return {**own, "PYTHONDONTWRITEBYTECODE": "1", **more}

    def _inside(self, command: list[str]) -> list[str]:
        # Not by preexec_fn: a child of a process with gRPC in it has threads again, and cannot leave its user namespace.
        return [sys.executable, "-I", str(ENTER), str(UID), sys.prefix, str(self.environment), *command]


@contextmanager
def host_without_namespaces() -> Iterator[Host]:
    # Not rmtree: folders of the content store are read-only, for their owner too.
    with tempfile.TemporaryDirectory(prefix="scaleoutd-none-") as folder:
        home = Path(folder)
        home.chmod(0o755)
        (home / "venv").mkdir()
        host = Host(home)
        host.give(home)
        yield host
