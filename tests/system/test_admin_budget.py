# SPDX-License-Identifier: Apache-2.0
"""The purpose budget of an installed node: a second person's word for a session, and each refusal with what would have run.

Who is who: kim installs the project from behind sudo, bob and ada are named as approvers, carl is in the group and not named,
visitor is in no group.  The kernel says to the runner who is at its control socket.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from scaleoutd.devcombiner.npz import flat, write_npz
from tests.system.guest import Guest
from tests.system.hospital import BROUGHT, ETC, Hospital
from tests.system.process import Ran
from tests.system.promises import check_node, check_task
from tests.system.test_admin_doctor import findings

SEED = write_npz({"0": flat("f8", (3,), [1.0, 2.0, 3.0])})
APPROVERS = ["kim", "bob", "ada"]
TWO = {"approval": "second-person", "approvers": APPROVERS}
SESSION, LATER, PAUSED = "heart-2026", "heart-2027", "heart-2028"


@pytest.fixture(scope="module")
def hospital(node: Guest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    node.run("for user in kim bob ada carl; do useradd --no-create-home -G scaleoutd-admin $user; done")
    node.run("useradd --no-create-home visitor")
    with Hospital(node, tmp_path_factory.mktemp("site")) as site:
        site.bring()
        node.run(f"cp {ETC}/policy.yaml /root/policy-without-budget.yaml")
        site.start()
        yield site


def write_budget(guest: Guest, **rules: Any) -> None:
    guest.run(f"cp /root/policy-without-budget.yaml {ETC}/policy.yaml && echo 'budget: {json.dumps(rules)}' >> {ETC}/policy.yaml")


def budget(hospital: Hospital, **rules: Any) -> None:
    """In force from the next task on."""
    write_budget(hospital.guest, **rules)
    hospital.guest.run("scaleoutctl policy apply")


def ctl(guest: Guest, words: str, user: str = "root") -> Ran:
    return guest.run(f"scaleoutctl {words}", check=False, user=user)


def approve(hospital: Hospital, user: str, session: str) -> Ran:
    return ctl(hospital.guest, f"approve-session --json {session}", user)


def facts(hospital: Hospital) -> dict[str, Any]:
    """What the runner says of itself."""
    found: dict[str, Any] = json.loads(ctl(hospital.guest, "status --json").stdout)["rooms"]["runner"]["facts"]
    return found


def waits(hospital: Hospital, session: str) -> str:
    """An offer of the session, when the runner has put it to those that wait."""
    task = hospital.offer(session_id=session)
    hospital.guest.wait_journal("scaleoutd.service", f'"correlation_id": "{task}".*"code": "approval-needed"|'
                                                     f'"code": "approval-needed".*"correlation_id": "{task}"')  # fmt: skip
    return task


def ended(hospital: Hospital, **offer: Any) -> str:
    return check_task(hospital, hospital.offer(**offer))


# --- what the doctor says -----------------------------------------------------------------------------------------


def test_the_doctor_says_what_the_budget_asks_for_and_what_of_it_cannot_be_kept(hospital: Hospital) -> None:
    def found() -> list[tuple[str, str]]:
        return [(item["status"], item["found"]) for item in findings(hospital.guest) if item["check"] == "budget"]

    write_budget(hospital.guest, **{**TWO, "approvers": ["bob", "nobody-here"]})
    ((status, text),) = found()
    assert status == "fail" and "nobody-here" in text and "bob" not in text
    write_budget(hospital.guest, **TWO, hours=["daily 00:00-24:00"], time_zone="Mars/Olympus")
    status, text = found()[0]
    assert status == "fail" and "Mars/Olympus" in text
    write_budget(hospital.guest, **TWO, hours=["daily 00:00-24:00"], time_zone="Europe/Stockholm")
    (_, hours), (_, second) = found()  # the control: mended
    assert "daily 00:00-24:00" in hours and "Europe/Stockholm" in hours and "kim, bob, ada" in second
    assert {status for status, _ in found()} == {"ok"}


# --- the two-person rule ------------------------------------------------------------------------------------------


def test_a_session_waits_for_a_second_person_and_then_does_its_rounds(hospital: Hospital) -> None:
    """A whole session of the combiner's: what is offered before the approval is run after it."""
    guest = hospital.guest
    budget(hospital, **TWO)
    hospital.project.version = 2
    hospital.project.sign()
    guest.push(hospital.project.folder, f"{BROUGHT}/project-2")
    # As sudo leaves it: root, and the kernel knows who logged in.
    guest.run(f"echo $(id -u kim) > /proc/self/loginuid && scaleoutctl project install {BROUGHT}/project-2")
    now = guest.journal_cursor()
    hospital.combiner.start_session(SEED, 2, 1, 120)
    guest.wait_journal("scaleoutd.service", '"code": "approval-needed"', after=now)
    (waiting,) = json.loads(ctl(guest, "approve-session --json", "bob").stdout)["waiting"]
    session = waiting["session_id"]
    assert not [event for event in hospital.trail("run-about-to-start") if event["session_id"] == session]
    for user, why in (
        ("root", "applied the policy"),  # and owns it
        ("kim", "installed the project"),
        ("kim", "installed the project"),  # the same person twice is one person
        ("carl", "the policy names kim, bob, ada"),
    ):
        ran = approve(hospital, user, session)
        assert ran.status == 77 and "approval-refused" in ran.told, ran.told
        assert why in ran.told or "owns the policy" in ran.told
    ran = approve(hospital, "visitor", session)
    assert ran.status != 0 and "scaleoutd-admin" in ran.stderr, ran.told
    assert not hospital.combiner.updates and not hospital.trail("session-approved")

    assert json.loads(approve(hospital, "bob", session).stdout)["changed"] is True
    assert json.loads(approve(hospital, "bob", session).stdout)["changed"] is False
    done = hospital.combiner.wait_session(300)
    assert done.status == "completed" and [update.counted for update in hospital.combiner.updates] == [True, True], (
        hospital.told()
    )
    check_node(hospital)


def test_the_trail_names_both_persons_and_who_was_none(hospital: Hospital) -> None:
    uid = {user: int(hospital.guest.run(["id", "-u", user]).text) for user in ("root", "kim", "bob", "carl")}
    (approved,) = hospital.trail("session-approved")
    assert (approved["operator"], approved["peer_uid"]) == ("bob", uid["bob"])
    refused = [(event["operator"], event["peer_uid"]) for event in hospital.trail("approval-refused")]
    assert refused == [(user, uid[user]) for user in ("root", "kim", "kim", "carl")]
    installs = [event for event in hospital.trail("operator-command") if event["command"] == "project-install"]
    assert (installs[-1]["operator"], installs[-1].get("login_uid")) == ("root", uid["kim"]), installs[-1]
    (waited,) = hospital.trail("session-waits")
    runs = [event for event in hospital.trail("run-about-to-start") if event["session_id"] == waited["session_id"]]
    assert waited["session_id"] == approved["session_id"] and len(runs) == 4  # two rounds, each with a validation
    assert {event["policy_sha256"] for event in runs} == {approved["policy_sha256"]}


def test_an_approval_outlives_the_rooms_and_is_for_one_session_under_one_policy(hospital: Hospital) -> None:
    guest = hospital.guest
    first = waits(hospital, SESSION)
    assert json.loads(approve(hospital, "bob", SESSION).stdout)["changed"] is True
    assert check_task(hospital, first) == "COMPLETED"
    guest.run("systemctl restart scaleoutd-runner.service scaleoutd-ledger.service", timeout_s=90)
    assert ended(hospital, session_id=SESSION) == "COMPLETED"
    other = waits(hospital, LATER)
    assert ended(hospital, session_id=SESSION) == "COMPLETED"  # what waits for a person holds nothing up
    budget(hospital, **TWO, min_num_examples=2)
    again = waits(hospital, SESSION)
    shown = guest.run("scaleoutctl status", check=False).stdout
    assert f"scaleoutctl approve-session {LATER}" in shown and f"scaleoutctl approve-session {SESSION}" in shown, shown
    for session in (SESSION, LATER):
        assert json.loads(approve(hospital, "ada", session).stdout)["changed"] is True
    assert {check_task(hospital, task) for task in (other, again)} == {"COMPLETED"}
    assert facts(hospital)["sessions_waiting"] == []


def test_who_pauses_becomes_a_first_person_and_a_pause_holds_what_is_approved(hospital: Hospital) -> None:
    guest = hospital.guest
    held = waits(hospital, PAUSED)
    assert ctl(guest, "pause --reason 'no consent yet'", "visitor").status != 0
    assert ctl(guest, "pause --reason 'no consent yet'", "ada").status == 0
    assert "paused the node" in approve(hospital, "ada", PAUSED).told
    assert json.loads(approve(hospital, "bob", PAUSED).stdout)["changed"] is True
    assert ctl(guest, "resume", "carl").status == 0
    assert check_task(hospital, held) == "COMPLETED"
    commands = [event for event in hospital.trail("operator-command") if event["command"] in ("pause", "resume")]
    assert {(event["operator"], event["command"], event.get("reason")) for event in commands} == {
        ("ada", "pause", "no consent yet"),
        ("carl", "resume", None),
    }
    of_session = [event for event in hospital.trail() if event.get("session_id") == PAUSED or event in commands]
    story = [event["command"] if event in commands else event["type"] for event in of_session]
    approved, resumed, began = (story.index(name) for name in ("session-approved", "resume", "run-about-to-start"))
    assert approved < resumed < began, story


# --- refusals -----------------------------------------------------------------------------------------------------


def test_outside_the_hours_no_run_begins(hospital: Hospital) -> None:
    hour = datetime.now(UTC).hour
    window = "daily {:02d}:00-{:02d}:00".format
    budget(hospital, hours=[window((hour + 8) % 24, (hour + 10) % 24)], time_zone="UTC")
    assert ended(hospital) == "outside-hours"
    budget(hospital, hours=[window((hour + 22) % 24, (hour + 4) % 24)], time_zone="UTC")
    assert ended(hospital) == "COMPLETED"


@pytest.mark.parametrize("what", ["combiners", "sessions"])
def test_another_combiner_or_session_than_the_policy_names_is_refused(hospital: Hospital, what: str) -> None:
    budget(hospital, **{what: ["agreed-*"]})
    assert ended(hospital, session_id="another") == "session-denied"
    budget(hospital, **{what: ["agreed-*", "localhost:*", "anoth*"]})
    assert ended(hospital, session_id="another") == "COMPLETED"


def test_the_runs_of_a_session_are_used_up_and_a_restart_gives_none_back(hospital: Hospital) -> None:
    budget(hospital, runs_per_session=1)
    assert ended(hospital, session_id="one-run") == "COMPLETED"
    hospital.guest.run("systemctl restart scaleoutd-runner.service", timeout_s=90)
    assert ended(hospital, session_id="one-run") == "budget-exhausted"
    assert ended(hospital, session_id="its-own") == "COMPLETED"


def test_the_runs_of_a_day_are_used_up_and_a_restart_gives_none_back(hospital: Hospital) -> None:
    guest = hospital.guest
    used = facts(hospital)["runs_last_day"]
    budget(hospital, runs_per_day=used + 1)
    assert ended(hospital) == "COMPLETED"
    guest.run("systemctl restart scaleoutd-runner.service", timeout_s=90)
    assert ended(hospital) == "budget-exhausted"
    assert f"{used + 1} of {used + 1} runs in the last 24 hours" in guest.run("scaleoutctl status", check=False).stdout
    budget(hospital, runs_per_day=used + 2)
    assert ended(hospital) == "COMPLETED"
    denied = [event["code"] for event in hospital.trail("task-denied")]
    assert denied == ["outside-hours", "session-denied", "session-denied", "budget-exhausted", "budget-exhausted"]
    check_node(hospital)
