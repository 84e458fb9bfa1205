# SPDX-License-Identifier: Apache-2.0
"""Starts that fail: each ends by itself with the exit status of its kind, names what is wrong and the next command.

The statuses are those of docs/command-line.md (sysexits.h); a supervisor decides by them whether to start again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from scaleoutd.cli.init import write_project
from tests.e2e.site import ROOT

NOWHERE = "https://127.0.0.1:9"  # discard: nobody listens, and nothing here comes as far as a connection


def _write(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


@dataclass(frozen=True)
class Failure:
    """`arguments` after a good command line; `prepare` changes a good project; `names` must all be in what it says."""

    status: int
    code: str
    names: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    prepare: Callable[[Path], object] = lambda folder: None
    url: str = NOWHERE
    token: str = "a.b.c"


FAILURES = {
    "unknown flag": Failure(64, "", ("--bogus", "--help"), ("--bogus",)),
    "no project": Failure(
        78, "config-missing", ("scaleout.yaml", "client", "scaleoutctl init"), prepare=lambda f: (f / "scaleout.yaml").unlink()
    ),
    "project that is not there": Failure(78, "config-missing", ("nowhere", "--project"), ("--project", "nowhere")),
    "project file that is no YAML": Failure(
        78, "yaml-invalid", ("scaleout.yaml", "line 2"), prepare=_write("scaleout.yaml", "entry_points: [\n")
    ),
    "importer project": Failure(
        77, "importer-project", ("startup.py", "train:"),
        prepare=lambda f: (_write("scaleout.yaml", "entry_points:\n  startup: startup.py\n")(f), _write("startup.py", "")(f)),
    ),
    "link in the project": Failure(
        65, "file-type", ("link", "regular file", ".scaleoutignore"), prepare=lambda f: (f / "link").symlink_to("/etc/passwd")
    ),
    "no address": Failure(78, "config-missing", ("--api-url",), url=""),
    "plaintext address": Failure(78, "tls-required", ("http://127.0.0.1:9", "https"), url="http://127.0.0.1:9"),
    "token that is none": Failure(77, "token-invalid", ("token", "JWT"), token="garbage"),
    "no token": Failure(78, "config-missing", ("token", "--token-file"), token=""),
    "token file that is not there": Failure(78, "config-missing", ("nowhere", "token"), ("--token-file", "nowhere"), token=""),
    "policy that is not there": Failure(78, "config-missing", ("nowhere.yaml", "--policy"), ("--policy", "nowhere.yaml")),
    "policy with an unknown key": Failure(
        78, "yaml-invalid", ("bad.yaml", "line 2", "bogus"), ("--policy", "bad.yaml"), _write("bad.yaml", "version: 1\nbogus: 2")
    ),
    "data without a name": Failure(78, "config-invalid", ("ID=PATH",), ("--data", "samples")),
    "data that is not there": Failure(78, "config-missing", ("/no/such/file",), ("--data", "samples=/no/such/file")),
    "CA that is not there": Failure(78, "config-missing", ("nowhere.pem",), ("--ca", "nowhere.pem")),
    "certificate without key": Failure(78, "config-invalid", ("without its key", "--key"), ("--cert", "scaleout.yaml")),
    "state folder that cannot be": Failure(74, "storage-failed", ("/proc/no",), ("--state-dir", "/proc/no")),
    "code from a server": Failure(78, "config-invalid", ("--remote-package", "--project"), ("--remote-package",)),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILURES)
def test_a_start_that_fails_ends_with_its_status_and_says_what_to_do(name: str, tmp_path: Path) -> None:
    failure, project, home = FAILURES[name], tmp_path / "project", tmp_path / "home"
    write_project(project)
    home.mkdir()
    failure.prepare(project)
    given = [*(["--api-url", failure.url] if failure.url else []), *(["--token", failure.token] if failure.token else [])]
    done = subprocess.run(
        [sys.executable, "-m", "scaleoutd.cli.scaleoutd", "client", "start", *given, "--local-package", *failure.arguments],
        cwd=project,
        env={"HOME": str(home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8", "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == failure.status, done.stderr
    assert done.stdout == "", "what was asked for goes there, and nothing was"
    assert failure.code in done.stderr
    for part in failure.names:
        assert part in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and "\x1b" not in done.stderr
