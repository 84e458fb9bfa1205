# SPDX-License-Identifier: Apache-2.0
"""Administration of a booted node: the files that systemd and the rooms read, by the commands that write them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.guest import Guest
from tests.system.hospital import Hospital

UNIT = "scaleoutd-step@.service"
DROP_IN = f"/etc/systemd/system/{UNIT}.d/50-policy.conf"
INSTANCE = "scaleoutd-step@probe.service"


@pytest.fixture(scope="module")
def site(node: Guest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    with Hospital(node, tmp_path_factory.mktemp("site")) as hospital:
        node.run("mkdir -p /srv/data && echo row > /srv/data/rows.csv")
        yield hospital


def ctl(guest: Guest, words: str, status: int = 0) -> dict[str, Any]:
    ran = guest.run(f"scaleoutctl {words} --json", check=False)
    assert ran.status == status, ran.told
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def refused(guest: Guest, words: str) -> str:
    ran = guest.run(f"scaleoutctl {words}", check=False)
    assert ran.status >= 64, ran.told
    return ran.stderr


def loads(guest: Guest) -> str:
    """When PID 1 read its files last."""
    return guest.run("systemctl show --property=UnitsLoadTimestampMonotonic --value").text


def test_config_init_puts_a_policy_into_force(node: Guest, site: Hospital) -> None:
    root = site.folder / "root.json"
    node.push(root, "/root/bring/root.json")
    words = (
        f"--api-url {site.combiner.api_url} --name ward-7 --client-id ward-7 --project echo --trust-root /root/bring/root.json"
    )
    assert ctl(node, f"config init {words} --data samples=/srv/data --metric loss")["changed"] is True
    assert ctl(node, f"config init {words} --data samples=/srv/data --metric loss")["changed"] is False
    assert ctl(node, "policy show")["current"] is True
    assert node.run("stat -c '%a %U' /etc/scaleoutd/policy.lock").text == "644 root"


def test_systemd_holds_what_the_policy_says(node: Guest, site: Hospital) -> None:
    shown = node.show(
        INSTANCE, "MemoryMax", "TasksMax", "CPUQuotaPerSecUSec", "TemporaryFileSystem", "BindReadOnlyPaths", "Environment"
    )
    lock = ctl(node, "policy show")
    assert int(shown["MemoryMax"]) == lock["policy"]["limits"]["memory_bytes"] + 24 * 1024**2
    assert shown["CPUQuotaPerSecUSec"] == "1s"
    assert f"SCALEOUTD_POLICY_DIGEST={lock['policy_sha256']}" in shown["Environment"]
    assert "/srv/data:/data/samples" in shown["BindReadOnlyPaths"]
    assert (
        shown["TemporaryFileSystem"].count("/tmp:") == 1
        and f"size={lock['policy']['limits']['tmp_bytes']}" in shown["TemporaryFileSystem"]
    )
    verified = node.run(f"systemd-analyze verify {INSTANCE}", check=False)
    assert "50-policy.conf" not in verified.told, verified.told


def test_apply_twice_changes_once_and_systemd_is_asked_once(node: Guest, site: Hospital) -> None:
    node.run("sed -i 's/^version: 1$/version: 1\\nlimits: {memory_bytes: 1GiB, cpus: 2}/' /etc/scaleoutd/policy.yaml")
    assert ctl(node, "policy apply --check", status=1)["written"] is False
    before = loads(node)
    first = ctl(node, "policy apply")
    assert first["changed"] is True and first["reloaded"] is True
    after = loads(node)
    assert after != before
    again = ctl(node, "policy apply")
    assert (again["changed"], again["reloaded"]) == (False, False) and loads(node) == after
    assert node.show(INSTANCE, "CPUQuotaPerSecUSec")["CPUQuotaPerSecUSec"] == "2s"


@pytest.mark.parametrize(
    "edit", ["s/limits/limit/", "s,/srv/data,/srv/nothing,", "s/1GiB/1Gib/", "s,/usr/bin/python3,/opt/none/python,"]
)
def test_a_broken_policy_is_refused_and_the_old_one_stays_in_force(node: Guest, site: Hospital, edit: str) -> None:
    before = node.run(f"sha256sum /etc/scaleoutd/policy.lock {DROP_IN}").text
    node.run(f"cp /etc/scaleoutd/policy.yaml /root/good.yaml; sed -i '{edit}' /etc/scaleoutd/policy.yaml")
    try:
        assert "policy" in refused(node, "policy apply")
        assert node.run(f"sha256sum /etc/scaleoutd/policy.lock {DROP_IN}").text == before
    finally:
        node.run("cp /root/good.yaml /etc/scaleoutd/policy.yaml")
    assert ctl(node, "policy apply")["changed"] is False  # the control


def test_an_ordinary_user_may_look_and_not_touch(node: Guest, site: Hospital) -> None:
    node.run("useradd --no-create-home visitor")
    for words in ("policy show", "config show", "config check", "policy check"):
        assert node.run(f"scaleoutctl {words}", user="visitor", check=False).status == 0, words
    node.run("sed -i 's/cpus: 2/cpus: 1/' /etc/scaleoutd/policy.yaml")
    for words in ("policy apply", "config init --api-url https://x --force", "identity csr --name x", "identity show", "enroll"):
        assert node.run(f"scaleoutctl {words}", user="visitor", check=False).status not in (0, 1), words
    assert ctl(node, "policy apply")["changed"] is True  # the control


def test_the_key_is_made_on_the_node_and_never_leaves_it(node: Guest, site: Hospital) -> None:
    request = ctl(node, "identity csr --name ward-7")
    assert request["changed"] is True and "PRIVATE" not in request["request"]
    assert node.run("stat -c '%a %U' /etc/scaleoutd/request/client.key").text == "600 root"
    assert node.run("cat /etc/scaleoutd/request/client.key", user="scaleoutd", check=False).status != 0
    assert ctl(node, "identity csr --name ward-7")["changed"] is False


def test_a_project_is_installed_and_only_root_and_the_runner_can_read_it(node: Guest, site: Hospital) -> None:
    node.push(site.project.folder, "/root/bring/project")
    assert ctl(node, "project install /root/bring/project")["changed"] is True
    assert ctl(node, "project install /root/bring/project")["changed"] is False
    current = "/var/lib/scaleoutd/project/current/train.py"
    assert node.run(f"cat {current}", user="scaleoutd-runner").status == 0
    for user in ("scaleoutd", "scaleoutd-step-0", "scaleoutd-ledger", "visitor"):
        assert node.run(f"cat {current}", user=user, check=False).status != 0, user
    assert node.run(f"echo x >> {current}", user="scaleoutd-runner", check=False).status != 0


def test_what_was_installed_survives_a_reboot(node: Guest, site: Hospital, tmp_path: Path) -> None:
    node.reboot()
    assert ctl(node, "policy apply")["changed"] is False
    assert ctl(node, "project show")["releases"][0]["state"] == "current"
