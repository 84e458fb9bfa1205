# SPDX-License-Identifier: Apache-2.0
"""Where environments and data lie at real sites: /opt, a home folder, a name with a space; the step runs with them there."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.system.guest import Guest
from tests.system.hospital import Hospital

LOOK = """\
import os, sys
print("prefix", sys.prefix, "data", sorted(os.listdir(os.environ["SCALEOUTD_DATA_GATE"])))
for hidden in ("/home/kim/private", "/srv", "/etc/scaleoutd"):
    if os.path.exists(hidden):
        raise SystemExit(f"{hidden} is shown and was not named")
"""


@pytest.fixture(scope="module")
def site(node: Guest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    with Hospital(node, tmp_path_factory.mktemp("site"), train_body=LOOK) as hospital:
        hospital.bring()
        node.run("echo 1 > /srv/gate/rows.csv")
        hospital.start()
        yield hospital


def apply(guest: Guest, **changes: object) -> list[str]:
    """The policy with these top-level keys; the units that must be started anew."""
    policy = json.loads(guest.run("scaleoutctl policy show --json").stdout)["policy"]
    policy.pop("development", None)
    guest.write("/etc/scaleoutd/policy.yaml", json.dumps({**policy, **changes}))
    told = json.loads(guest.run("scaleoutctl policy apply --json").stdout)
    restart: list[str] = told["restart"]
    return restart


def printed(guest: Guest) -> str:
    """What all steps printed so far."""
    return guest.run("cat /var/lib/scaleoutd/runner/output/*.log").stdout


def test_an_environment_in_opt_with_a_space_in_its_name(node: Guest, site: Hospital) -> None:
    assert site.wait(site.offer()).status == "COMPLETED", printed(node) + site.told()
    node.run("python3 -m venv --without-pip '/opt/own env'")
    assert apply(node, environments={"default": {"python": "/opt/own env/bin/python3"}}) == []
    assert site.wait(site.offer()).status == "COMPLETED", printed(node) + site.told()
    assert "prefix /opt/own env data ['rows.csv']" in printed(node)


def test_data_in_a_home_folder_is_seen_alone(node: Guest, site: Hospital) -> None:
    node.run("mkdir -p /home/kim/rows /home/kim/private && echo 1 > /home/kim/rows/a.csv && chmod 700 /home/kim")
    data = {"gate": {"path": "/home/kim/rows", "mode": "listing"}}
    assert apply(node, data_sets=data) == ["scaleoutd-runner.service"]
    node.run("systemctl restart scaleoutd-runner.service", timeout_s=90)
    assert site.wait(site.offer()).status == "COMPLETED", printed(node) + site.told()
    assert "data ['a.csv']" in printed(node)


def test_data_that_went_away_is_an_error_of_its_own_and_comes_back(node: Guest, site: Hospital) -> None:
    node.run("mv /home/kim/rows /home/kim/elsewhere")
    refused = site.wait(site.offer())
    assert refused.status == "FAILED", site.told()
    assert json.loads(refused.response)["code"] in ("data-set-mismatch", "step-unavailable"), refused.response
    doctor = json.loads(node.run("scaleoutctl doctor --quick --json", check=False).stdout)["findings"]
    assert any("/home/kim/rows" in item["found"] for item in doctor if item["status"] != "ok")
    node.run("mv /home/kim/elsewhere /home/kim/rows")
    assert site.wait(site.offer()).status == "COMPLETED", printed(node) + site.told()
