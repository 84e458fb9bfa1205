# SPDX-License-Identifier: Apache-2.0
"""The emulated machine itself: what the other booted tests take for granted."""

from __future__ import annotations

import time

import pytest

from tests.system.guest import Guest
from tests.system.machine import Machine
from tests.system.process import GuestGone


def test_it_has_a_kernel_and_cgroups_of_its_own(machine: Guest) -> None:
    assert "cloud-amd64" in machine.run("uname -r").text
    assert machine.run("stat -fc %T /sys/fs/cgroup").text == "cgroup2fs"
    assert machine.run("systemctl --failed --no-legend --plain").text == ""
    assert machine.run("ls /sys/class/net").text == "lo"


def test_apparmor_and_the_audit_daemon_are_on(machine: Guest) -> None:
    assert machine.run("aa-status --enabled", check=False).status == 0
    assert machine.show("auditd.service", "ActiveState") == {"ActiveState": "active"}


def test_a_unit_that_takes_too_much_memory_is_killed_and_counted(machine: Guest) -> None:
    grow = "systemd-run -q --wait --unit grow -p MemoryMax=50M -p MemorySwapMax=0 /usr/bin/python3 -c 'bytearray(200 << 20)'"
    assert machine.run(grow, check=False).status != 0
    assert machine.show("grow.service", "Result") == {"Result": "oom-kill"}


def test_user_namespaces_can_be_forbidden(machine: Guest) -> None:
    assert machine.run("unshare --user true", user="nobody").status == 0
    machine.run("sysctl -qw user.max_user_namespaces=0")
    assert machine.run("unshare --user true", user="nobody", check=False).status != 0


def test_it_goes_back_to_a_state_with_the_clock_going_on(machine: Machine) -> None:
    machine.keep("here")
    machine.write("/etc/after", "x")
    machine.run("sysctl -qw kernel.panic=7; date -s @1000000000")
    machine.back_to("here")
    assert machine.run("cat /etc/after", check=False).status == 1
    assert machine.run("sysctl -n kernel.panic").text == "-1"
    assert abs(float(machine.run("date +%s.%N").text) - time.time()) < 30


def test_a_power_cut_loses_what_was_not_written_through(machine: Machine) -> None:
    machine.run("echo kept >/var/lib/kept; sync /var/lib/kept; sync /var/lib")
    machine.run("echo lost >/var/lib/lost")
    process = machine.start("sleep 1000")
    machine.cut_power()
    assert machine.read("/var/lib/kept") == "kept\n"
    assert machine.run("cat /var/lib/lost", check=False).text == ""
    with pytest.raises(GuestGone):
        process.wait()
