# SPDX-License-Identifier: Apache-2.0
"""A look at processes, some of which end meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.processes import descendants, descriptors_of, is_alive, process, read_process


def test_control_a_child_is_seen_with_its_parent_and_command_line() -> None:
    command = [sys.executable, "-c", "print(flush=True); input()", "mark"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline()  # in the middle of execve(2) it has no command line
        found = process(child.pid)
        assert found is not None and found.parent == os.getpid() and is_alive(child.pid)
        assert "mark" in descendants(os.getpid())[child.pid]
        assert set(descriptors_of(child.pid)) >= {0, 1, 2}
        child.communicate(b"\n")


def test_a_zombie_does_not_live_and_one_that_was_waited_for_is_gone() -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    found = process(child.pid)
    assert found is not None and not found.lives and not is_alive(child.pid) and child.pid not in descendants(os.getpid())
    child.wait()
    assert process(child.pid) is None and read_process(child.pid, "stat") == b"" and not is_alive(child.pid)


def test_a_file_that_was_opened_before_its_process_went_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """ESRCH comes from the read, not from the open."""
    with (
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child,
        open(f"/proc/{child.pid}/stat", "rb") as file,
    ):
        child.communicate(b"\n")
        with pytest.raises(ProcessLookupError):
            file.read()
        monkeypatch.setattr("pathlib.Path.read_bytes", lambda _: file.read())
        assert read_process(child.pid, "stat") == b"" and process(child.pid) is None
