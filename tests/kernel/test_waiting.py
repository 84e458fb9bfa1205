# SPDX-License-Identifier: Apache-2.0
"""The sandbox that waits for its plan: it is used once, sees the host as it is at the request, and ends with its launcher."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scaleoutd.core.plan import STEP_UID_BASE, Bind
from scaleoutd.errors import LaunchError
from tests.child import children_of
from tests.step_client import StepClient, plan_for

ROOT = os.geteuid() == 0
CLONE_NEWNS = 0x00020000
SLOT = 1022  # no node has so many, nor the benchmark this one, and the end of a run in a unit kills all of its slot's uid

needs_root = pytest.mark.skipif(not ROOT, reason="needs root: mounts, or processes that are not dumpable")


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="scaleoutd-kernel-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


def until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not come true"
        time.sleep(0.01)


def waiting_in(client: StepClient) -> tuple[int, int]:
    """Pid 1 and the main process, when both are there."""
    found: list[int] = []

    def look() -> bool:
        found[:] = children_of(client.process.pid)
        found.extend(inside for first in list(found) for inside in children_of(first))
        return len(found) == 2

    until(look)
    return found[0], found[1]


def is_over(pidfd: int, timeout_s: float = 60) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


@needs_root
def test_a_run_is_carried_out_by_the_processes_that_waited(folder: Path) -> None:
    with StepClient() as client, open(os.devnull, "w") as log:
        first, _ = waiting_in(client)
        assert client.start(plan_for(folder / "scratch", ["true"]), log.fileno()) == first
        assert client.finish().exit_status == 0


@needs_root
def test_what_was_mounted_after_they_were_forked_is_seen(folder: Path) -> None:
    """By the launcher's mounts: what waits has a copy of them from before."""
    data = folder / "data"
    data.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)

    def own_mounts() -> None:
        assert libc.unshare(CLONE_NEWNS) == 0
        assert libc.mount(b"none", b"/", None, 0x44000, None) == 0  # MS_REC | MS_PRIVATE

    plan = plan_for(folder / "scratch", ["cat", "/data/late"], more_binds=[Bind(str(data), "/data")])
    with StepClient(before_exec=own_mounts) as client:
        waiting_in(client)
        inside = ["nsenter", f"--mount=/proc/{client.process.pid}/ns/mnt", "--"]
        subprocess.run([*inside, "mount", "-t", "tmpfs", "-o", "mode=0755", "late", str(data)], check=True)
        subprocess.run([*inside, "sh", "-c", f"echo here >{data}/late"], check=True)
        assert client.execute(plan).output == "here\n"
    assert list(data.iterdir()) == []  # control: it was in the launcher's mounts only


@needs_root
@pytest.mark.parametrize("which", [0, 1], ids=["pid-1", "main"])
def test_when_one_of_them_was_killed_the_run_has_new_ones(folder: Path, which: int) -> None:
    with StepClient() as client:
        pids = waiting_in(client)
        killed = os.pidfd_open(pids[which])
        try:
            signal.pidfd_send_signal(killed, signal.SIGKILL)
            assert is_over(killed)
        finally:
            os.close(killed)
        assert client.execute(plan_for(folder / "scratch", ["sh", "-c", "echo done"])).output == "done\n"


@needs_root
@pytest.mark.parametrize("number", [signal.SIGKILL, None], ids=["killed", "hung-up"])
def test_they_end_with_their_launcher(number: signal.Signals | None) -> None:
    client = StepClient()
    watched = [os.pidfd_open(pid) for pid in waiting_in(client)]
    try:
        assert not any(is_over(pidfd, 0) for pidfd in watched)
        if number is not None:
            client.process.send_signal(number)
        client.close()
        assert all(is_over(pidfd) for pidfd in watched)
    finally:
        for pidfd in watched:
            os.close(pidfd)


@pytest.mark.parametrize("target", ["/dev/shm", "/proc/1", "/sys"])
def test_a_plan_that_binds_over_what_every_view_has_is_refused(folder: Path, target: str) -> None:
    with StepClient() as client:
        with pytest.raises(LaunchError, match="every view has"):
            client.execute(plan_for(folder / "scratch", ["true"], more_binds=[Bind("/usr", target)]))
        assert client.execute(plan_for(folder / "scratch", ["true"], more_binds=[Bind("/usr", "/data")])).result.exit_status == 0


@needs_root
def test_in_a_unit_what_lies_in_scratch_is_gone_before_the_command(folder: Path) -> None:
    scratch, uid = folder / "scratch", STEP_UID_BASE + SLOT
    plan = plan_for(scratch, ["/bin/ls", "-A", str(scratch)], backend="systemd", slot=SLOT, links=(), cwd=str(scratch))
    scratch.mkdir(0o700)
    os.chown(scratch, uid, uid)
    for left in ("out", "deep/er"):
        (scratch / left).mkdir(parents=True)
    (scratch / "deep/er/file").write_text("of a run before")
    for path in scratch.rglob("*"):
        os.chown(path, uid, uid)
    with StepClient(unit=True) as client:
        assert client.execute(plan).output == "out\n"
