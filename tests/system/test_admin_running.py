# SPDX-License-Identifier: Apache-2.0
"""An administrator and a node that runs: from an installed package in five commands, then status, pause, drain, reload."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.model import MIB, random_model
from tests.system.guest import Guest
from tests.system.hospital import Hospital


@pytest.fixture(scope="module")
def site(node: Guest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    with Hospital(node, tmp_path_factory.mktemp("site")) as hospital:
        node.run("useradd --no-create-home visitor; useradd --no-create-home -G scaleoutd-admin kim")
        yield hospital


def ctl(guest: Guest, words: str, status: int = 0, user: str = "root") -> dict[str, Any]:
    ran = guest.run(f"scaleoutctl {words} --json", check=False, user=user, timeout_s=90)
    assert ran.status == status, ran.told
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def instances(guest: Guest) -> list[str]:
    """Units of steps that run, spares too."""
    return guest.run("systemctl list-units --plain --no-legend 'scaleoutd-step@*' | cut -d' ' -f1").text.split()


def test_before_configuration_status_says_so(node: Guest, site: Hospital) -> None:
    assert "no node" in node.run("scaleoutctl status", check=False).stdout


def test_five_commands_from_installed_to_healthy(node: Guest, site: Hospital) -> None:
    assert len(site.commands()) + 1 <= 5
    site.bring()  # by those commands
    node.run("systemctl enable --now scaleoutd.service", timeout_s=90)
    assert ctl(node, "status --wait healthy --timeout 1m")["health"] == "healthy", site.told()


def test_status_says_what_a_person_wants_to_know(node: Guest, site: Hospital) -> None:
    shown = node.run("scaleoutctl status").stdout
    for word in (
        "healthy",
        "agent",
        "runner",
        "ledger",
        "connected to localhost",
        "ward-7",
        "policy",
        "version 1",
        "events",
        "free",
    ):
        assert word in shown, shown


def test_group_admin_may_and_others_may_not(node: Guest, site: Hospital) -> None:
    assert ctl(node, "status", user="kim")["health"] == "healthy"
    assert ctl(node, "drain", user="kim")["changed"] is True
    assert ctl(node, "resume", user="kim")["changed"] is True
    for words in ("drain", "pause --reason x", "resume", "reload"):
        ran = node.run(f"scaleoutctl {words}", user="visitor", check=False)
        assert ran.status != 0 and "scaleoutd-admin" in ran.stderr, ran.told
    assert "scaleoutd-admin" in ctl(node, "status", user="visitor", status=1)["problems"][0]["fix"]
    commands = [(event["command"], event["operator"]) for event in site.trail("operator-command")]
    assert ("drain", "kim") in commands and ("resume", "kim") in commands
    assert not [operator for _, operator in commands if operator == "visitor"]


@pytest.mark.parametrize("user", ["scaleoutd", "scaleoutd-runner", "scaleoutd-ledger", "scaleoutd-launch", "scaleoutd-step-0"])
def test_a_taken_room_commands_no_room(node: Guest, site: Hospital, user: str) -> None:
    for room in ("agent", "runner", "ledger"):
        assert connect(node, room, "kim") == "connected"  # the control
        assert connect(node, room, user) == "Permission denied"


def connect(guest: Guest, room: str, user: str) -> str:
    text = (
        "import socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        f"try: s.connect('/run/scaleoutd/{room}.control'); print('connected')\n"
        "except OSError as exc: print(exc.strerror)"
    )
    return guest.run(["/usr/bin/python3", "-I", "-c", text], user=user).text


def test_paused_over_a_restart_nothing_runs_and_resumed_it_does(node: Guest, site: Hospital) -> None:
    ctl(node, 'pause --reason "audit of ward 7"', user="kim")
    node.run("systemctl restart scaleoutd.service", timeout_s=90)
    assert ctl(node, "status", status=1)["health"] == "held"
    waiting = site.offer()
    assert not site.trail("run-about-to-start")
    assert not site.combiner.board.offers[waiting].done
    ctl(node, "resume", user="kim")
    assert site.wait(waiting).status == "COMPLETED", site.told()
    reasons = [event.get("reason") for event in site.trail("operator-command")]
    assert "audit of ward 7" in reasons


def test_a_new_certificate_is_taken_without_a_restart_and_a_bad_one_is_not(node: Guest, site: Hospital) -> None:
    pid = node.main_pid("scaleoutd.service")
    new, key = site.combiner.issue_client_certificate("ward-7")
    other, _ = site.combiner.issue_client_certificate("other")
    for source, name in ((new, "new.pem"), (key, "new.key"), (other, "other.pem")):
        node.push(source, f"/root/brought/{name}")
    before = node.run("sha256sum /etc/scaleoutd/identity/*").text
    assert node.run("scaleoutctl identity install /root/brought/other.pem --key /root/brought/new.key", check=False).status == 77
    assert node.run("sha256sum /etc/scaleoutd/identity/*").text == before
    assert ctl(node, "identity install /root/brought/new.pem --key /root/brought/new.key")["changed"] is True
    node.run("systemctl reload scaleoutd.service", timeout_s=60)
    assert node.main_pid("scaleoutd.service") == pid
    serial = ctl(node, "identity show", status=1)["serial"].lower().lstrip("0")
    loaded = [event["serial"].lower().lstrip("0") for event in site.trail("credential-loaded")]
    assert serial in loaded, (serial, loaded)
    assert "identity-install" in [event["command"] for event in site.trail("operator-command")]


def test_a_reload_in_the_middle_of_an_upload_loses_no_call(node: Guest, site: Hospital) -> None:
    """The pair is replaced while the first chunk of an update is at the combiner; the same connection ends the upload."""
    certificate, key = site.combiner.issue_client_certificate("ward-7")
    node.push(certificate, "/root/brought/next.pem")
    node.push(key, "/root/brought/next.key")
    loaded = len(site.trail("credential-loaded"))
    reached = site.arm("upload")
    waiting = site.offer(model=random_model(200 * MIB))
    reached()
    node.run("scaleoutctl identity install /root/brought/next.pem --key /root/brought/next.key && systemctl reload scaleoutd")
    site.combiner.go()
    assert site.wait(waiting).status == "COMPLETED", site.told()
    assert [update.correlation_id for update in site.combiner.updates].count(waiting) == 1
    assert len(site.trail("credential-loaded")) == loaded + 1
    assert not [event for event in site.trail("sending") if event["correlation_id"] == waiting][1:], "it was sent twice"


def test_drain_waits_for_the_step_in_hand_and_takes_no_other(node: Guest, site: Hospital) -> None:
    with site.step_held() as started:
        first = site.offer()
        started()
        late = ctl(node, "drain --wait --timeout 1s", status=75)
        assert late["drained"] is False
        second = site.offer()
        assert ctl(node, "status", status=1)["health"] == "held"
    assert ctl(node, "drain --wait --timeout 1m")["drained"] is True
    assert site.combiner.board.offers[first].status == "COMPLETED" and not site.combiner.board.offers[second].done
    node.run("systemctl restart scaleoutd.service", timeout_s=90)  # what a drain is for; it ends with it
    assert site.wait(second).status == "COMPLETED", site.told()


def test_limits_of_a_new_policy_reach_a_run_in_progress(node: Guest, site: Hospital) -> None:
    with site.step_held() as started:
        waiting = site.offer()
        started()
        (unit,) = [name for name in instances(node) if int(node.show(name, "TasksCurrent")["TasksCurrent"]) > 2]
        before = int(node.show(unit, "MemoryMax")["MemoryMax"])
        node.run("echo 'limits: {memory_bytes: 1GiB}' >> /etc/scaleoutd/policy.yaml")
        assert ctl(node, "policy apply")["reloaded"] is True
        after = int(node.show(unit, "MemoryMax")["MemoryMax"])
        assert before != after == 1024**3 + 24 * 1024**2
    assert site.wait(waiting).status == "COMPLETED", site.told()
    assert site.wait(site.offer()).status == "COMPLETED", site.told()  # spares of the old policy are not used
    assert len({event["policy_sha256"] for event in site.trail("run-about-to-start")}) == 2


def test_without_a_certificate_only_where_the_policy_says_so(node: Guest, site: Hospital) -> None:
    node.write("/etc/scaleoutd/scaleoutd.d/90-none.yaml", "tls: {client_certificate: none}\n")
    node.run("systemctl restart scaleoutd.service", check=False, timeout_s=90)
    told = ctl(node, "status", status=3)
    assert any("client_certificate" in problem["what"] for problem in told["problems"]), told
    node.run("rm /etc/scaleoutd/scaleoutd.d/90-none.yaml && systemctl restart scaleoutd.service", timeout_s=90)
    assert ctl(node, "status --wait healthy --timeout 1m")["health"] == "healthy", site.told()


def test_a_policy_that_changed_by_hand_is_refused_with_a_clear_word(node: Guest, site: Hospital) -> None:
    node.run('sed -i \'s/"runs_per_day":[0-9]*/"runs_per_day":499/\' /etc/scaleoutd/policy.lock')
    refused = site.wait(site.offer())
    assert refused.status == "FAILED" and json.loads(refused.response)["code"] == "policy-mismatch", refused
    assert any("scaleoutctl policy apply" in problem["fix"] for problem in ctl(node, "status", status=1)["problems"])
    ctl(node, "policy apply")
    assert site.wait(site.offer()).status == "COMPLETED", site.told()


def test_a_broken_lock_does_not_break_the_boot(node: Guest, site: Hospital) -> None:
    node.run("echo '{' > /etc/scaleoutd/policy.lock")
    node.reboot()
    assert node.run("systemctl is-system-running --wait", check=False, timeout_s=120).text in ("running", "degraded")
    told = ctl(node, "status", status=1)
    runner = [problem for problem in told["problems"] if problem["what"].startswith("runner")]
    assert runner and "policy" in runner[0]["what"], told["problems"]
    ctl(node, "policy apply")
    node.run("systemctl restart scaleoutd.service", timeout_s=90)
    site.online()
    assert ctl(node, "status --wait healthy --timeout 1m")["health"] == "healthy", site.told()


def test_group_audit_reads_the_trail_and_others_do_not(node: Guest, site: Hospital) -> None:
    node.run("useradd --no-create-home -G scaleoutd-audit ada")
    shown = node.run("scaleoutctl audit tail -n 400", user="ada").stdout
    assert "agent-started" in shown and "connected" in shown
    assert json.loads(node.run("scaleoutctl audit verify --json", user="ada").stdout)["ok"] is True
    for words in ("audit tail", "audit verify", "tasks"):
        ran = node.run(f"scaleoutctl {words}", user="visitor", check=False)
        assert ran.status >= 64 and "Traceback" not in ran.stderr, ran.told
    assert site.wait(site.offer()).status == "COMPLETED", site.told()
    assert "forgotten" in node.run("scaleoutctl tasks").stdout
