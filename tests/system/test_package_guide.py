# SPDX-License-Identifier: Apache-2.0
"""docs/install.md followed on a machine with Debian's own kernel: the real package, apt, the commands as they stand, their output
compared, a combiner in the same machine, two rounds over mTLS.

Once on a host as Debian makes it, once on one that was hardened before anything was installed: no user namespaces, noexec on all
that everybody may write to, umask 027, hidepid=2.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.site import Project
from tests.e2e.walkthrough import blocks, typed
from tests.system.combiner_inside import CombinerInside
from tests.system.guest import Guest
from tests.system.image import TREE
from tests.system.machine import Machine
from tests.system.walk import FOLDER, GuestWalkthrough

GUIDE = TREE / "docs/install.md"
ROUNDS = "<!-- two rounds -->"  # the place in the guide where the combiner trains
NODE = "ward-7"
WRITABLE = "/tmp /var/tmp /dev/shm /home"
HARDEN = f"""\
sysctl -qw user.max_user_namespaces=0
for place in {WRITABLE}; do
    mountpoint -q $place || mount --bind $place $place
    mount -o remount,bind,noexec,nosuid,nodev $place
done
mount -o remount,hidepid=2 /proc
"""
IS_HARD = f"""\
! unshare --user true 2>/dev/null
for place in {WRITABLE}; do cp /bin/true $place/true; ! $place/true 2>/dev/null; rm $place/true; done
! runuser -u nobody -- test -e /proc/1
"""


@pytest.fixture(params=["as Debian makes it", "hardened"])
def host(request: pytest.FixtureRequest, booted_machine: Callable[[], Machine]) -> Iterator[Guest]:
    """A machine without anything of ours; a hardened one says that it is."""
    guest = booted_machine()
    if request.param == "hardened":
        guest.script(HARDEN)
        guest.umask = 0o027
        guest.script(IS_HARD)
        assert guest.run("umask").text == "0027"
    yield guest
    if request.param == "hardened" and not guest.ended:
        guest.script(IS_HARD)
        guest.umask = Guest.umask
    if not guest.ended:
        guest.pause()


def bring(guest: Guest, deb: Path, combiner: CombinerInside, folder: Path) -> Project:
    """What the guide says a person has: the table of its first section."""
    project = Project(folder / "heart", name="heart", data_sets=("samples",))
    project.write("import os; print('SECRET-OF-A-PATIENT', os.listdir(os.environ['SCALEOUTD_DATA_SAMPLES']))")
    project.sign()
    identity = combiner.facts["clients"][NODE]
    guest.run(f"mkdir -p -m 700 {FOLDER} && mkdir -m 755 /srv/samples && echo 1 >/srv/samples/rows.csv")
    guest.push(deb, f"{FOLDER}/{deb.name}")
    guest.push(project.folder, f"{FOLDER}/heart")
    guest.write(f"{FOLDER}/root.json", project.write_trust_root(folder / "root.json").read_bytes())
    guest.write(f"{FOLDER}/enrollment", combiner.facts["enrollment_token"], mode=0o600)
    copied = {"node.pem": identity["certificate"], "node.key": identity["key"], "ca.pem": combiner.facts["ca_file"]}
    for name, path in copied.items():
        guest.run(["cp", path, f"{FOLDER}/{name}"])
    return project


def test_the_guide_gets_from_apt_to_two_rounds(host: Guest, deb: Path, tmp_path: Path) -> None:
    before, mark, after = GUIDE.read_text().partition(ROUNDS)
    assert mark
    with CombinerInside(host, NODE) as combiner:
        bring(host, deb, combiner, tmp_path)
        with GuestWalkthrough(host) as walk:
            walk.run(before)
            history = combiner.rounds(2)
            counted = [[update["counted"] for update in record["updates"].values()] for record in history]
            assert counted == [[True], [True]], history
            host.wait_units("scaleoutd.service", "StatusText=connected.*idle")  # its report of the last task is out too
            walk.run(after)
        assert len(walk.commands) == len(commands()), "the control: it was run"
    assert host.run("debsums -as scaleoutd", check=False).told == ""
    assert host.run("systemctl list-units --failed --no-legend --plain 'scaleoutd*'").text == ""
    journal = host.journal()
    assert "SECRET-OF-A-PATIENT" not in journal and "PRIVATE KEY" not in journal
    assert "SECRET-OF-A-PATIENT ['rows.csv']" in host.run("cat /var/lib/scaleoutd/runner/output/*.log").stdout, "the control"


def commands() -> list[str]:
    return [line for block in blocks(GUIDE.read_text()) if block.language == "sh" for line in typed(block.lines)]


def test_five_commands_are_five() -> None:
    section = re.split(r"^## ", GUIDE.read_text(), flags=re.MULTILINE)
    (five,) = [part for part in section if part.startswith("Five commands")]
    typed_there = [line for block in blocks(five) if block.language == "sh" for line in typed(block.lines)]
    assert len(typed_there) == 5 and typed_there[-1] == "systemctl enable --now scaleoutd"
