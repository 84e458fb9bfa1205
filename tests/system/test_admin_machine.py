# SPDX-License-Identifier: Apache-2.0
"""What only a machine of its own shows: the doctor beside AppArmor, an impossible clock, no user namespaces, noexec mounts."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.system.guest import Guest
from tests.system.hospital import Hospital


@pytest.fixture(scope="module")
def site(node_machine: Guest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    with Hospital(node_machine, tmp_path_factory.mktemp("site")) as hospital:
        hospital.bring()
        hospital.start()
        yield hospital


def findings(guest: Guest) -> dict[str, dict[str, Any]]:
    ran = guest.run("scaleoutctl doctor --quick --json", check=False)
    assert ran.status in (0, 1, 2), ran.told
    return {item["check"]: item for item in json.loads(ran.stdout)["findings"]}


def test_a_node_that_runs_has_nothing_to_mend(node_machine: Guest, site: Hospital) -> None:
    assert site.wait(site.offer(), 120).status == "COMPLETED", site.told()
    found = findings(node_machine)
    assert not [item for item in found.values() if item["status"] == "fail"], found
    assert "AppArmor" in found["security-modules"]["found"] and found["node"]["status"] == "ok"


def test_hardened_mounts_and_no_user_namespaces_are_told_and_do_not_matter(node_machine: Guest, site: Hospital) -> None:
    node_machine.run("sysctl -qw user.max_user_namespaces=0")
    node_machine.run(
        "for path in /tmp /var/tmp /dev/shm /home /var; do"
        " mountpoint -q $path || mount --bind $path $path; mount -o remount,bind,noexec $path; done"
    )
    node_machine.run("systemctl restart scaleoutd.service", timeout_s=90)
    assert site.wait(site.offer(), 120).status == "COMPLETED", site.told()
    found = findings(node_machine)
    assert "/var" in found["noexec"]["found"] and found["noexec"]["status"] == "ok"
    assert found["user-namespaces"]["status"] == "ok"


def test_a_clock_that_cannot_be_right_is_the_cause_that_is_named(node_machine: Guest, site: Hospital) -> None:
    """As a machine whose battery is empty boots."""
    node_machine.run("date -s '2020-01-01 00:00:00'")
    found = findings(node_machine)["clock"]
    assert found["status"] == "fail" and "2020-01-01" in found["found"] and "timedatectl" in found["fix"], found
    node_machine.run(f"date -s @{int(time.time())}")
    assert findings(node_machine)["clock"]["status"] != "fail"
