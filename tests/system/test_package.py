# SPDX-License-Identifier: Apache-2.0
"""The life of the Debian package on one booted machine, in this order: installed, used, removed, installed again, purged.

The tests of this module go on from one another.  An upgrade in the middle of a run is in test_package_upgrade.py.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scaleoutd.cli.scaleoutctl import COMMANDS
from tests.packaging import deb as package
from tests.system.container import Container
from tests.system.guest import Guest
from tests.system.hospital import Hospital
from tests.system.install import install_deb
from tests.system.process import Ran

UNITS = "systemctl list-units --all --plain --no-legend --state=active,activating,failed 'scaleoutd*'"
PROCESSES = "ps -eo user=,args= | grep '^scaleoutd' || true"
FOLDERS = {
    "/etc/scaleoutd": "755 root:root",
    "/etc/scaleoutd/identity": "700 root:root",
    "/run/scaleoutd": "755 root:root",
    "/var/lib/scaleoutd": "755 root:root",
    "/var/lib/scaleoutd/agent": "700 scaleoutd:scaleoutd",
    "/var/lib/scaleoutd/audit": "750 scaleoutd-ledger:scaleoutd-audit",
    "/var/lib/scaleoutd/project": "750 root:scaleoutd-runner",
    "/var/lib/scaleoutd/scratch/7": "700 scaleoutd-step-7:scaleoutd-step-7",
}
ROOMS = ("scaleoutd.service", "scaleoutd-runner.service", "scaleoutd-ledger.service")
NEEDRESTART = "/etc/needrestart/conf.d/scaleoutd.conf"
KEPT_BY_REMOVE = "/etc/scaleoutd /var/lib/scaleoutd/agent /var/lib/scaleoutd/audit /var/lib/scaleoutd/project"


@pytest.fixture(scope="module")
def hospital(container: Container, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    with Hospital(container, tmp_path_factory.mktemp("hospital")) as site:
        yield site


@pytest.fixture(scope="module")
def installed(container: Container, deb: Path) -> Ran:
    """What apt said while it installed the package."""
    return install_deb(container, deb)


def apt(guest: Guest, *words: str) -> Ran:
    return guest.run(f"DEBIAN_FRONTEND=noninteractive apt-get -y {' '.join(words)} scaleoutd", timeout_s=120)


def test_apt_installs_it_and_starts_nothing(container: Container, installed: Ran) -> None:
    assert "not started" in installed.stdout and "config init" in installed.stdout
    assert container.run("systemctl is-enabled scaleoutd.service", check=False).text == "disabled"
    assert container.run(UNITS).text == "" and container.run(PROCESSES).text == ""
    assert not re.search(r"error|warning|failed", installed.told, re.IGNORECASE), installed.told


def test_users_have_no_shell_and_folders_their_owners(container: Container, installed: Ran) -> None:
    shells = container.run("getent passwd | sed -n 's/^scaleoutd[^:]*:.*://p' | sort -u").text
    assert shells == "/usr/sbin/nologin"
    found = container.run(["stat", "-c", "%n %a %U:%G", *FOLDERS]).text.splitlines()
    assert dict(line.split(" ", 1) for line in found) == FOLDERS


def test_its_commands_work_for_everybody(container: Container, installed: Ran) -> None:
    for program in ("scaleoutd", "scaleoutctl"):
        assert container.run([program, "--version"], user="nobody", cwd="/").text.endswith(package.VERSION)
    for command in COMMANDS:
        assert container.run(["scaleoutctl", command, "--help"], user="nobody", cwd="/").text.startswith("Usage: ")
    pages = ("scaleoutd", "scaleoutctl", "scaleoutd.yaml", "scaleoutd-policy", "scaleoutd-manifest", "scaleoutd.service")
    assert container.run(["man", "-w", *pages]).text.count("/usr/share/man/") == len(pages)
    assert container.run(["man", "-w", "7", "scaleoutd"]).text.endswith("man7/scaleoutd.7.gz")
    told = container.run("source /usr/share/bash-completion/completions/scaleoutctl && complete -p scaleoutctl")
    assert "_scaleoutctl_completion" in told.text


def test_nothing_in_usr_local_is_imported(container: Container, installed: Ran) -> None:
    """A package that somebody put there, and a .pth file, are not ours; python3 itself, the control, takes both."""
    place = "/usr/local/lib/python3.11/dist-packages"
    container.write(f"{place}/click/__init__.py", "raise SystemExit('taken over')\n")
    container.write(f"{place}/yaml/__init__.py", "raise SystemExit('taken over')\n")
    container.write(f"{place}/run.pth", "import os; os.write(2, b'taken over')\n")
    try:
        assert "taken over" in container.run(["python3", "-Ic", "import yaml"], check=False).told
        ran = container.run(["scaleoutctl", "doctor"], check=False)
        assert "taken over" not in ran.told and ran.stdout
        for room in ("agent", "runner", "ledger", "step"):
            assert "taken over" not in container.run(["/usr/lib/scaleoutd/room", room, "--help"], check=False).told
    finally:
        container.run(f"rm -r {place}/click {place}/yaml {place}/run.pth")


def test_started_without_a_configuration_it_says_what_to_do(container: Container, installed: Ran) -> None:
    container.run("systemctl start scaleoutd.service", check=False)
    container.wait_unit("scaleoutd.service", "failed")
    told = container.journal("scaleoutd*")
    assert "scaleoutctl config init" in told, told
    container.run("systemctl stop 'scaleoutd*'; systemctl reset-failed 'scaleoutd*'", check=False)


@pytest.mark.timeout(200)
def test_it_trains_and_debsums_finds_nothing_changed(container: Container, installed: Ran, hospital: Hospital, deb: Path) -> None:
    hospital.bring()
    hospital.start()
    hospital.rounds(2)
    assert container.run("debsums -as scaleoutd").told == ""
    written = "find /usr/lib/scaleoutd /usr/bin/scaleoutd* /usr/share/scaleoutd -newer /var/lib/dpkg/info/scaleoutd.list"
    assert container.run(f"{written} -type f ! -name '*.pyc'").text == ""
    # The control: it does look.
    container.run("echo >>/usr/share/doc/scaleoutd/README.md")
    assert "README.md" in container.run("debsums -as scaleoutd", check=False).told
    again = f"DEBIAN_FRONTEND=noninteractive apt-get install --reinstall -y /root/{deb.name}"
    container.run(f"umask 077; {again}", timeout_s=180)
    assert container.run("find /usr/lib/scaleoutd ! -perm -o+r").text == "", "a room could not read it"
    assert container.run("debsums -as scaleoutd").told == ""
    container.wait_unit("scaleoutd-renew.service", "inactive")


@pytest.mark.timeout(200)
def test_needrestart_leaves_the_rooms_to_a_person(container: Container, installed: Ran, hospital: Hospital) -> None:
    """After the upgrade of a library that they all use; without our file, the control, it restarts them at once."""
    container.run("systemctl start scaleoutd.service", timeout_s=90)
    hospital.wait_connected()
    library = "f=$(readlink -f /usr/lib/*/libcrypto.so.3) && cp -p $f $f.new && mv $f.new $f"
    restart = "DEBIAN_FRONTEND=noninteractive needrestart -r a -l"
    container.run(library)
    assert "scaleoutd-runner.service" in container.run("needrestart -b -l").stdout, "it has seen that they use the old one"
    before = [container.main_pid(unit) for unit in ROOMS]
    container.run(restart, timeout_s=120)
    assert [container.main_pid(unit) for unit in ROOMS] == before
    container.run(f"mv {NEEDRESTART} /root/ && {restart}; mv /root/scaleoutd.conf {NEEDRESTART}", timeout_s=120)
    assert not set(before) & {container.main_pid(unit) for unit in ROOMS}


@pytest.mark.timeout(200)
def test_remove_stops_everything_and_keeps_everything(
    container: Container, installed: Ran, hospital: Hospital, deb: Path
) -> None:
    before = listing(container, KEPT_BY_REMOVE)
    apt(container, "remove")
    assert container.run(UNITS).text == "" and container.run(PROCESSES).text == ""
    assert not before - listing(container, KEPT_BY_REMOVE)
    assert container.run("ls -A /usr/lib/scaleoutd /usr/bin/scaleoutd", check=False).stdout == "", "byte code stayed"
    assert container.run("getent passwd scaleoutd-ledger").status == 0


@pytest.mark.timeout(200)
def test_installed_again_it_goes_on_as_the_same_node(container: Container, installed: Ran, hospital: Hospital, deb: Path) -> None:
    clients = set(hospital.combiner.board.connected())
    first = hospital.trail()[0]
    ran = install_deb(container, deb)
    assert container.run(UNITS).text == "", "installed again is not started"
    assert "config init" not in ran.stdout, "it has its configuration"
    container.run("systemctl start scaleoutd.service", timeout_s=90)
    hospital.wait_connected()
    hospital.rounds(1)
    assert set(hospital.combiner.board.connected()) == clients or not clients
    assert hospital.trail()[0] == first
    assert "the trail verifies" in container.run("scaleoutctl audit verify /var/lib/scaleoutd/audit").text


@pytest.mark.timeout(200)
def test_purge_destroys_the_identity_and_keeps_the_trail(
    container: Container, installed: Ran, hospital: Hospital, deb: Path, tmp_path: Path
) -> None:
    key = hospital.folder / "key"
    key.write_bytes(container.read_bytes("/etc/scaleoutd/identity/client.key"))
    events = len(hospital.trail())
    told = apt(container, "purge").stdout
    assert "kept the audit trail" in told and "destroyed the node's identity" in told and "kept the users" in told
    (trail,) = container.run("echo /var/lib/scaleoutd/*").text.split()
    left = container.run("find / -xdev -path /proc -prune -o -name '*scaleoutd*' -print | sort").text.splitlines()
    assert [path for path in left if not path.startswith("/root/")] == ["/var/lib/scaleoutd"]
    assert container.run("getent passwd scaleoutd-ledger; getent group scaleoutd-audit").status == 0
    assert container.run(["stat", "-c", "%U:%G", trail]).text == "scaleoutd-ledger:scaleoutd-audit"
    kept = container.pull(trail, tmp_path / "kept")
    assert not list(kept.rglob("*.pem")), "the private key of the trail"
    assert list((kept / "keys").glob("*.vkey"))
    secret = key.read_bytes().splitlines()[1]
    search = ["grep", "-rlsF", secret.decode(), "/etc", "/var", "/run"]
    assert container.run(search, check=False).text == ""
    verify_elsewhere(kept, events)


def verify_elsewhere(trail: Path, events: int) -> None:
    """By the tree's own command, as an auditor would on another machine."""
    command = [sys.executable, "-m", "scaleoutd.cli.scaleoutctl", "audit", "verify", str(trail)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    counted = re.search(r"verifies: (\d+) events", ran.stdout)
    assert counted and int(counted.group(1)) >= events, ran.stdout


@pytest.mark.timeout(200)
def test_after_a_purge_a_new_node_begins(container: Container, installed: Ran, hospital: Hospital, deb: Path) -> None:
    install_deb(container, deb)
    hospital.bring()
    hospital.start()
    hospital.rounds(1)
    assert "the trail verifies" in container.run("scaleoutctl audit verify /var/lib/scaleoutd/audit").text
    assert len(container.run("ls -d /var/lib/scaleoutd/audit-purged-*").text.splitlines()) == 1


def listing(guest: Guest, where: str) -> set[str]:
    """Files with owner and mode; what a room writes when it stops only adds to it."""
    return set(guest.run(f"find {where} -type f -printf '%p %m %U\\n'").text.splitlines())
