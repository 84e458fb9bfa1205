# SPDX-License-Identifier: Apache-2.0
"""Two rounds over mTLS on an installed node, from the files that a person brings; and what stands there afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.site import SEED
from tests.system.container import Container
from tests.system.hospital import NODE, Hospital
from tests.system.promises import check_node

COMBINER = """\
import sys
sys.path[:0] = ["/usr/lib/scaleoutd", "/usr/lib/scaleoutd/site"]
from scaleoutd.devcombiner.__main__ import main
main()
"""
ROOMS = ("scaleoutd.service", "scaleoutd-runner.service", "scaleoutd-ledger.service")


@pytest.fixture(scope="module")
def hospital(node: Container, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    with Hospital(node, tmp_path_factory.mktemp("hospital")) as site:
        site.bring()
        yield site


def test_one_command_starts_a_node_that_connects(hospital: Hospital) -> None:
    hospital.start()
    shown = hospital.guest.show("scaleoutd.service", "ActiveState", "SubState", "Type", "UnitFileState")
    assert shown == {"ActiveState": "active", "SubState": "running", "Type": "notify", "UnitFileState": "enabled"}


def test_two_rounds(hospital: Hospital) -> None:
    hospital.rounds(2)
    assert len(hospital.combiner.history) == 2
    assert [update.counted for update in hospital.combiner.updates] == [True, True]
    check_node(hospital)


def test_no_room_has_failed_or_was_restarted(hospital: Hospital) -> None:
    for unit in ROOMS:
        assert hospital.guest.show(unit, "ActiveState", "NRestarts", "Result") == {
            "ActiveState": "active",
            "NRestarts": "0",
            "Result": "success",
        }
    assert hospital.guest.run("systemctl --failed --no-legend --plain").text == ""


def test_systemctl_status_says_what_a_person_wants_to_know(hospital: Hospital) -> None:
    told = hospital.guest.run("systemctl status scaleoutd.service").stdout
    assert "connected" in hospital.guest.show("scaleoutd.service", "StatusText")["StatusText"], told


def test_the_journal_has_no_word_of_the_step_and_no_secret(hospital: Hospital) -> None:
    journal = hospital.guest.journal()
    assert "trained" not in journal
    token = hospital.guest.read("/etc/scaleoutd/identity/token").strip()
    assert token not in journal
    assert "PRIVATE KEY" not in journal


def test_a_combiner_in_the_same_machine(hospital: Hospital, tmp_path: Path) -> None:
    """As a person tries it: combiner and node on one host, nothing of the test's between them."""
    guest = hospital.guest
    hospital.offline()
    (tmp_path / "seed.npz").write_bytes(SEED)
    guest.push(tmp_path / "seed.npz", "/srv/seed.npz")
    combiner = guest.start(["/usr/bin/python3", "-IBc", COMBINER, "--state", "/srv/combiner", "--client", NODE], stdin=None)
    facts = json.loads(combiner.wait_for(r"^\{.*\}$").group())
    identity = facts["clients"][NODE]
    guest.write("/root/brought/enrollment", facts["enrollment_token"])
    guest.script(
        f"cd /root/brought\n"
        f"scaleoutctl config init --force --api-url {facts['api_url']} --name {NODE} --client-id {NODE}\n"
        f"scaleoutctl identity install {identity['certificate']} --key {identity['key']} --ca {facts['ca_file']}\n"
        f"scaleoutctl enroll --force --token-file enrollment\n"
        f"systemctl restart scaleoutd.service\n"
    )
    combiner.send(json.dumps({"do": "connected", "count": 1, "timeout_s": 60}).encode() + b"\n")
    combiner.wait_for(r'"come": true')
    session = {"do": "session", "seed": "/srv/seed.npz", "rounds": 2, "min_clients": 1, "round_timeout_s": 60}
    combiner.send(json.dumps(session).encode() + b"\n")
    combiner.wait_for(r'"session": "completed"', timeout_s=120)
    combiner.end_input()
    combiner.wait()
