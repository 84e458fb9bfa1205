# SPDX-License-Identifier: Apache-2.0
"""Each administrator's command as root, as a member of each of the package's groups, and as nobody: answers and refusals."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.guest import Guest
from tests.system.hospital import Hospital

USERS = {"kim": "scaleoutd-admin", "ada": "scaleoutd-audit", "dan": "scaleoutd-data", "visitor": ""}
EVERYBODY = {"root", *USERS}
# Who is answered; everybody else is refused with a sentence, and nothing happens.
ANSWERED = {
    "status": EVERYBODY,
    "doctor --quick": EVERYBODY,
    "why manifest-expired": EVERYBODY,
    "config check": EVERYBODY,
    "config show --origin": EVERYBODY,
    "policy check": EVERYBODY,
    "policy show": EVERYBODY,
    "pause --reason table": {"root", "kim"},
    "resume": {"root", "kim"},
    "drain": {"root", "kim"},
    "reload": {"root", "kim"},
    "audit show": {"root", "ada"},
    "audit tail": {"root", "ada"},
    "audit verify": {"root", "ada"},
    "tasks": {"root"},
    "identity show": {"root"},
    "project show": {"root"},
    "project install /srv/project": {"root"},
}
HINT = "  → "  # what to do about a refusal


@pytest.fixture(scope="module")
def site(node: Guest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    with Hospital(node, tmp_path_factory.mktemp("site")) as hospital:
        hospital.bring()
        hospital.start()
        node.push(hospital.project.folder, "/srv/project")
        assert hospital.wait(hospital.offer()).status == "COMPLETED", hospital.told()
        for user, group in USERS.items():
            node.run(f"useradd --no-create-home {f'-G {group}' if group else ''} {user}")
        yield hospital


@pytest.mark.parametrize("words", ANSWERED)
def test_who_is_answered_and_who_is_refused(node: Guest, site: Hospital, words: str) -> None:
    for user in sorted(EVERYBODY):
        ran = node.run(f"scaleoutctl {words}", user=user, cwd="/", check=False)
        assert "Traceback" not in ran.told, (user, ran.told)
        if user in ANSWERED[words]:
            assert HINT not in ran.stderr and ran.told, (user, ran.status, ran.told)
        else:
            assert ran.status not in (0, 64) and HINT in ran.stderr and not ran.stdout, (user, ran.status, ran.told)
    node.run("scaleoutctl resume")


def test_what_steps_print_is_read_by_root_and_group_data(node: Guest, site: Hospital) -> None:
    assert site.wait(site.offer()).status == "COMPLETED", site.told()
    for user in sorted(EVERYBODY):
        ran = node.run("cat /var/lib/scaleoutd/runner/output/*.log", user=user, check=False, cwd="/")
        assert (ran.status == 0 and "trained" in ran.stdout) == (user in ("root", "dan")), (user, ran.told)
