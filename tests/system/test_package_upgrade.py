# SPDX-License-Identifier: Apache-2.0
"""A newer package over a running node: the run that goes on ends, its update arrives once, then every room is the new one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packaging import deb as package
from tests.system.container import Container
from tests.system.hospital import Hospital
from tests.system.install import install_deb
from tests.system.promises import check_task

ROOMS = ("scaleoutd.service", "scaleoutd-runner.service", "scaleoutd-ledger.service")
NEEDRESTART = "/etc/needrestart/conf.d/scaleoutd.conf"
STEP = "pgrep -u scaleoutd-step-0,scaleoutd-step-1,scaleoutd-step-2,scaleoutd-step-3 -f train"


@pytest.fixture(scope="module")
def hospital(container: Container, deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    """A running node of version N-1: built from an earlier commit, or where the history has none the tree's, and says which."""
    with Hospital(container, tmp_path_factory.mktemp("hospital")) as site:
        earlier = package.of_earlier_commit()
        print(f"the older package: {f'commit {package.EARLIER}' if earlier else 'this tree, for want of history'}")
        install_deb(container, earlier or deb)
        site.bring()
        site.start()
        site.rounds(1)
        yield site


def pids(guest: Container) -> dict[str, int]:
    return {unit: guest.main_pid(unit) for unit in ROOMS}


@pytest.mark.timeout(400)
def test_an_upgrade_in_the_middle_of_a_run(container: Container, hospital: Hospital) -> None:
    container.run(f"echo '# of the site' >>{NEEDRESTART}")
    before = pids(container)
    with hospital.step_held() as held:
        task = hospital.offer()
        held()
        step = container.run(STEP).text
        install_deb(container, package.of_next_version())  # and apt does not wait for the run
        assert container.run("dpkg-query -W -f '${Version}' scaleoutd").text.startswith(package.NEXT_VERSION)
        assert pids(container) == before and container.run(STEP).text == step, "the run was disturbed"
        assert container.show("scaleoutd-renew.service", "ActiveState")["ActiveState"] == "activating"
    assert check_task(hospital, task) == "COMPLETED"
    assert hospital.counted(task) == 1 and len(hospital.trail("run-about-to-start")) >= 1
    assert [event["attempt"] for event in hospital.trail("run-about-to-start") if event["correlation_id"] == task] == [1]
    container.wait_unit("scaleoutd-renew.service", "inactive")
    after = pids(container)
    assert all(after[unit] not in (0, before[unit]) for unit in ROOMS), (before, after)
    hospital.wait_connected()
    hospital.rounds(1)


def test_after_it_every_room_is_new_and_what_a_person_changed_is_kept(container: Container, hospital: Hospital) -> None:
    assert container.run("scaleoutd --version").text.endswith(package.NEXT_VERSION)
    assert "# of the site" in container.read(NEEDRESTART)
    assert container.run("debsums -s scaleoutd").told == ""
    assert container.run("systemctl is-enabled scaleoutd.service").text == "enabled"
    assert "the trail verifies" in container.run("scaleoutctl audit verify /var/lib/scaleoutd/audit").text
    started = [event["version"] for event in hospital.trail("agent-started")]
    assert started == [package.VERSION, package.NEXT_VERSION]


@pytest.mark.timeout(240)
def test_a_policy_that_forbids_restarts_is_kept(container: Container, hospital: Hospital) -> None:
    """policy-rc.d of a site: 101 forbids.  Back to N, which is the same as forth to it."""
    container.write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", mode=0o755)
    before = pids(container)
    install_deb(container, package.of_this_tree(), "--allow-downgrades")
    assert pids(container) == before
    assert container.show("scaleoutd-renew.service", "ActiveState")["ActiveState"] == "inactive"
    hospital.rounds(1)  # the old rooms with step instances of the other version
    container.run("rm /usr/sbin/policy-rc.d")
    container.run("systemctl start scaleoutd-renew.service", timeout_s=120)  # a person, when it suits
    assert all(pid not in (0, before[unit]) for unit, pid in pids(container).items())
    hospital.wait_connected()
    hospital.rounds(1)


@pytest.mark.timeout(240)
def test_an_agent_that_hangs_does_not_keep_the_old_version(container: Container, hospital: Hospital) -> None:
    before = pids(container)
    container.run(["kill", "-STOP", str(before["scaleoutd.service"])])
    container.run("systemctl start scaleoutd-renew.service", timeout_s=150)
    assert "could not be drained" in container.journal("scaleoutd-renew.service")
    assert all(pid not in (0, before[unit]) for unit, pid in pids(container).items())
    hospital.wait_connected()
    hospital.rounds(1)
