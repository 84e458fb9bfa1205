# SPDX-License-Identifier: Apache-2.0
"""The harness itself: what the other booted tests take for granted."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.folder import remove_left
from tests.system.guest import Guest
from tests.system.image import TREE


def test_systemd_is_pid_1_and_all_units_are_up(container: Guest) -> None:
    assert container.run("cat /proc/1/comm").text == "systemd"
    assert container.run("systemctl --failed --no-legend --plain").text == ""


def test_a_command_comes_back_with_its_status_and_both_streams(container: Guest) -> None:
    ran = container.run("echo out; echo err >&2; exit 7", check=False)
    assert (ran.status, ran.stdout, ran.stderr) == (7, "out\n", "err\n")
    assert container.run(["kill-is-no-program"], check=False).status == 127
    assert container.run("kill -TERM $$", check=False).status == -signal.SIGTERM
    with pytest.raises(AssertionError, match="why"):
        container.run("echo why; false")


def test_a_daemon_that_keeps_the_pipe_is_not_waited_for(container: Guest) -> None:
    pid = container.run("sleep 1000 & echo $!", timeout_s=10).text
    container.run(f"kill {pid}")


def test_a_command_past_its_time_is_killed(container: Guest) -> None:
    with pytest.raises(AssertionError, match="not over"):
        container.run("sleep 1234 & wait", timeout_s=0.2)
    assert container.run("pgrep -f 'sleep 1234'", check=False).text == ""


def test_a_command_as_another_user(container: Guest) -> None:
    assert container.run("id -un; grep CapPrm /proc/self/status", user="nobody").stdout.split() == ["nobody", "CapPrm:", "0" * 16]


def test_files_go_in_and_come_back(container: Guest, tmp_path: Path) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    (folder / "large").write_bytes(bytes(range(256)) * 20_000)
    (folder / "run").write_text("#!/bin/sh\necho ran\n")
    (folder / "run").chmod(0o755)
    container.push(folder, "/srv/pushed")
    assert container.run("/srv/pushed/run").text == "ran"
    back = container.pull("/srv/pushed", tmp_path / "back")
    assert (back / "large").read_bytes() == (folder / "large").read_bytes()
    container.write("/srv/deep/file", "text", mode=0o600, owner="nobody:root")
    assert container.run("stat -c '%U %a' /srv/deep/file").text == "nobody 600"
    assert container.read("/srv/deep/file") == "text"


def test_a_unit_is_waited_for_by_its_events(container: Guest) -> None:
    container.write(
        "/etc/systemd/system/slow.service", "[Service]\nExecStart=/bin/sh -c 'read line </run/gate; echo told; exit 3'\n"
    )
    container.run("mkfifo /run/gate; systemctl daemon-reload; systemctl start slow.service")
    assert container.wait_unit("slow.service")["SubState"] == "running"
    with pytest.raises(AssertionError, match="has not come to"):
        container.wait_unit("slow.service", "failed", timeout_s=0.3)
    container.start("sleep 0.3; echo go >/run/gate")
    assert container.wait_unit("slow.service", "failed")["Result"] == "exit-code"
    container.wait_journal("slow.service", "^told$")
    assert "told" in container.journal("slow.service")


def test_the_exposure_of_a_unit(container: Guest) -> None:
    assert 9 < container.exposure("slow.service") <= 10


def test_there_is_no_network(container: Guest) -> None:
    assert container.run("ls /sys/class/net").stdout.split() == ["lo"]


def test_limits_of_a_unit_are_in_force(container: Guest) -> None:
    grow = "systemd-run -q --wait -p MemoryMax=50M -p MemorySwapMax=0 /usr/bin/python3 -c 'bytearray({} << 20)'"
    assert container.run(grow.format(10), check=False).status == 0
    assert container.run(grow.format(200), check=False).status != 0


def test_it_reboots_and_keeps_its_files(container: Guest) -> None:
    container.write("/var/lib/kept", "kept")
    container.write("/run/gone", "gone")
    container.reboot()
    assert container.read("/var/lib/kept") == "kept"
    assert container.run("cat /run/gone", check=False).status == 1


def test_nothing_of_it_outlives_a_session_that_is_killed(container: Guest) -> None:
    hold = "from tests.system.container import Container; g = Container(); print(g.folder, g.pid(), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold], cwd=TREE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as session:
        assert session.stdin and session.stdout
        folder, pid = session.stdout.readline().split()
        cgroups = [Path(line) for line in (Path(folder) / "cgroups").read_text().splitlines()]
        outermost = os.pidfd_open(int(pid))
        session.kill()
        assert select.select([outermost], [], [], 10)[0], "systemd-nspawn goes on"
        os.close(outermost)
    remove_left()
    assert not Path(folder).exists()
    assert cgroups and not [path for path in cgroups if path.exists()]
    assert container.run("true").status == 0  # that of a living session is left alone
