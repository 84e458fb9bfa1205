# SPDX-License-Identifier: Apache-2.0
"""The doctor on a booted node: before configuration, as root and as a user, and for each thing that breaks at real sites.

Every broken thing is mended with the command that the doctor names, and named no more: the control of each case.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.system.guest import Guest
from tests.system.hospital import Hospital


@pytest.fixture(scope="module")
def site(node: Guest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    with Hospital(node, tmp_path_factory.mktemp("site")) as hospital:
        node.run("useradd --no-create-home visitor")
        yield hospital


def findings(guest: Guest, user: str = "root") -> list[dict[str, Any]]:
    ran = guest.run("scaleoutctl doctor --quick --json", check=False, user=user, cwd="/")
    assert ran.status in (0, 1, 2), ran.told
    found: list[dict[str, Any]] = json.loads(ran.stdout)["findings"]
    return found


def failed(guest: Guest, check: str) -> list[dict[str, Any]]:
    return [item for item in findings(guest) if item["check"] == check and item["status"] == "fail"]


@pytest.mark.parametrize("user", ["root", "visitor"])
def test_before_configuration_and_offline(node: Guest, site: Hospital, user: str) -> None:
    found = findings(node, user)
    assert {"kernel", "clock", "fapolicyd", "fips", "noexec", "security-modules"} <= {item["check"] for item in found}
    assert all(item["fix"] for item in found if item["status"] != "ok")


def test_a_configured_node_has_nothing_to_mend(node: Guest, site: Hospital) -> None:
    site.bring()
    found = findings(node)
    assert not [item for item in found if item["status"] == "fail"], found
    assert {"configuration", "users", "folders", "drop-ins", "policy-file", "step-user"} <= {item["check"] for item in found}


def test_an_ordinary_user_gets_an_answer_too(node: Guest, site: Hospital) -> None:
    found = {item["check"]: item for item in findings(node, "visitor")}
    assert found["configuration"]["status"] == "ok" and "sudo" in found["identity"]["fix"]


@pytest.mark.parametrize(
    ("check", "damage", "named"),
    [
        ("folders", "chmod 755 /etc/scaleoutd/identity", "/etc/scaleoutd/identity"),
        ("folders", "chown root /var/lib/scaleoutd/audit", "/var/lib/scaleoutd/audit"),
        ("folders", "chmod 777 /var/lib/scaleoutd", "/var/lib/scaleoutd"),
        ("identity", "chmod 640 /etc/scaleoutd/identity/client.key", "client.key"),
        ("enrollment", "chmod 644 /etc/scaleoutd/identity/token", "token"),
        ("drop-ins", "sed -i s/TasksMax=/TasksMax=9/ /etc/systemd/system/scaleoutd-step@.service.d/50-policy.conf", "stale"),
        ("drop-ins", "rm /etc/systemd/system/scaleoutd-step.slice.d/50-policy.conf", "missing"),
        ("policy-in-force", "rm /etc/scaleoutd/policy.lock", "policy.lock"),
        ("step-user", "echo x > /srv/gate/rows.csv; chmod 600 /srv/gate/rows.csv", "/srv/gate/rows.csv"),
        ("step-user", "chmod 700 /srv/gate", "/srv/gate"),
    ],
)
def test_what_breaks_is_named_and_mended_by_the_command_that_is_named(
    node: Guest, site: Hospital, check: str, damage: str, named: str
) -> None:
    assert not failed(node, check)
    node.run(damage)
    found = failed(node, check)
    assert found and named in found[0]["found"], found
    node.run(found[0]["fix"].partition("   (")[0].replace("Put one into force: `", "").rstrip("`."))
    assert not failed(node, check), findings(node)


def test_an_environment_made_under_umask_077_is_named(node: Guest, site: Hospital) -> None:
    node.run(
        "mkdir -p /opt/env/lib/python3.11/site-packages /opt/env/bin && ln -sf /usr/bin/python3 /opt/env/bin/python3"
        " && echo 'home = /usr/bin' > /opt/env/pyvenv.cfg && echo x=1 > /opt/env/lib/python3.11/site-packages/m.py"
    )
    node.run("sed -i 's,/usr/bin/python3,/opt/env/bin/python3,' /etc/scaleoutd/policy.yaml && scaleoutctl policy apply")
    assert not failed(node, "step-user")
    node.run("chmod 700 /opt/env/lib/python3.11")
    found = failed(node, "step-user")
    assert found and "/opt/env/lib/python3.11" in found[0]["found"] and found[0]["fix"].startswith("chmod o+rx"), found
    node.run(found[0]["fix"].partition("   (")[0])
    assert not failed(node, "step-user")


def test_missing_users_are_named(node: Guest, site: Hospital) -> None:
    node.run("cp /etc/passwd /root/passwd && sed -i /scaleoutd-step-7/d /etc/passwd")
    found = failed(node, "users")
    assert found and "scaleoutd-step-7" in found[0]["found"] and found[0]["fix"] == "systemd-sysusers"
    node.run("cp /root/passwd /etc/passwd")
    assert not failed(node, "users")
