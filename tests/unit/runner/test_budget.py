# SPDX-License-Identifier: Apache-2.0
"""The purpose budget: each refusal with its control, what a restart, a kill and a wrong clock do to it, and who is a second
person."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from scaleoutd.cli.scaleoutctl import scaleoutctl
from scaleoutd.core.clock import DAY_MS, Now
from scaleoutd.core.strictjson import canonical, parse
from scaleoutd.errors import ConfigError, LedgerError, PolicyDeniedError, ScaleoutError, StorageError
from scaleoutd.ipc.control import ApproveSession, Change, Control, Done, Operator, Pause, Status, StatusReport, call
from scaleoutd.runner import budget
from scaleoutd.runner.budget import MAX_WAITING, Approvals, Uptime, check_time, runs_so_far
from scaleoutd.runner.control import RunnerDesk
from scaleoutd.runner.policyfile import read_policy
from scaleoutd.runner.runs import Runs
from scaleoutd.runner.sitetime import local_time
from tests.unit.runner.taken_agent import Bench
from tests.unit.runner.test_runs import go, offer

COMBINER = "combiner.example:443"
TWO = {"approval": "second-person", "approvers": ["*"]}
ALICE, BOB = Operator(20_001, 1, "alice"), Operator(20_002, 1, "bob")
OWN = Operator(os.geteuid(), 1, "owner")


def refused(bench: Bench, correlation_id: str, **changes: Any) -> str:
    """The code with which an offer is refused."""
    agent = bench.agent()
    agent.offer(correlation_id, **changes)
    with pytest.raises(ScaleoutError) as caught:
        agent.answer().close()
    return caught.value.code


def desk(bench: Bench) -> RunnerDesk:
    """As in the service, where the socket's mode says who may."""
    found = RunnerDesk(bench.runner)
    found._is_unit = True
    return found


def approve(bench: Bench, who: Operator, session: str = "s", combiner: str = "") -> Done:
    return desk(bench).do(ApproveSession(session, combiner), who, {})


# --- hours --------------------------------------------------------------------------------------------------------


def test_outside_the_hours_nothing_runs_and_within_them_it_does(tmp_path: Path) -> None:
    here = local_time(time.time_ns() // 1_000_000, "UTC")
    hour = here.minute // 60
    with Bench(tmp_path, budget={"hours": [f"daily {hour:02d}:00-{(hour + 2) % 24:02d}:00"], "time_zone": "UTC"}) as bench:
        room = bench.runner.room
        bench.complete("control")
        late = replace(room.now(), wall_ms=room.now().wall_ms + 3 * 3_600_000)
        bench.runner.room.now = lambda: late  # type: ignore[method-assign]
        assert refused(bench, "late") == "outside-hours"
        assert (bench.times_run("control"), bench.times_run("late")) == (1, 0)
        assert [event["code"] for event in bench.recorded("task-denied")] == ["outside-hours"]


def test_the_hours_are_the_sites_own_in_summer_and_winter() -> None:
    summer, winter = 1_782_856_800_000, 1_798_754_400_000  # 2026-06-30 and 2026-12-31, 22:00 UTC
    assert str(local_time(summer, "Europe/Stockholm")) == "Wed 00:00 Europe/Stockholm"
    assert str(local_time(winter, "Europe/Stockholm")) == "Thu 23:00 Europe/Stockholm"
    assert local_time(summer, "America/New_York").minute == 18 * 60


def test_a_zone_that_is_not_there_lets_nothing_run(tmp_path: Path) -> None:
    with Bench(tmp_path, budget={"hours": ["daily 00:00-24:00"], "time_zone": "Mars/Olympus"}) as bench:
        assert refused(bench, "one") == "config-invalid"
        with pytest.raises(ConfigError, match="no such time zone"):
            check_time(read_policy(bench.runner.room.policy_file), bench.runner.room.now())


# --- runs of a day and a session ----------------------------------------------------------------------------------


def test_runs_of_a_session_are_counted_and_another_session_has_its_own(tmp_path: Path) -> None:
    with Bench(tmp_path, budget={"runs_per_session": 1}) as bench:
        bench.complete("one")
        assert refused(bench, "two") == "budget-exhausted"
        bench.complete("three", session_id="another")


def test_a_restart_gives_no_run_back(tmp_path: Path) -> None:
    with Bench(tmp_path, budget={"runs_per_day": 1}) as bench:
        bench.complete("one")
        bench.start()
        assert refused(bench, "two") == "budget-exhausted"
        assert bench.recorded("task-authorized")[0]["budget_left"] == 0


def test_a_run_that_was_killed_is_paid_for(tmp_path: Path) -> None:
    """A process writes the line that a run begins, and is killed in its middle."""
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom scaleoutd.runner.runs import Runs\n"
        "from scaleoutd.runner.budget import Uptime\nfrom tests.unit.runner.test_runs import offer\n"
        "run = Runs(Path(sys.argv[1])).open(offer('killed'))\nrun.enter('accepted', 1)\n"
        "run.enter('about-to-run', 2, {'attempt': 1, **Uptime.now().fields()})\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path / "runs")], cwd=Path.cwd(), check=False)
    assert ended.returncode == -9
    assert runs_so_far(Runs(tmp_path / "runs"), "s", Now(3, 0, True), Uptime.now()).session == 1
    go(Runs(tmp_path / "runs"), "accepted", correlation_id="control")  # one that never began costs nothing
    assert runs_so_far(Runs(tmp_path / "runs"), "s", Now(3, 0, True), Uptime.now()).session == 1


@pytest.mark.parametrize("jump_ms", [-400 * DAY_MS, -DAY_MS, 2 * DAY_MS, 400 * DAY_MS])
def test_setting_the_clock_does_not_refill_a_day(tmp_path: Path, jump_ms: int) -> None:
    began = 1000 * DAY_MS
    runs = Runs(tmp_path)
    run = runs.open(offer("one"))
    run.enter("accepted", began)
    run.enter("about-to-run", began, {"attempt": 1, "boot": "b", "up_ms": 50})
    run.close()
    for table in (runs, Runs(tmp_path)):  # after a restart of the room too
        assert runs_so_far(table, "s", Now(began + jump_ms, 0, True), Uptime("b", 60)).day == 1
    # The control: a day later by both clocks it is over; in another boot the wall clock alone says so.
    assert runs_so_far(runs, "s", Now(began + DAY_MS + 1, 0, True), Uptime("b", DAY_MS + 51)).day == 0
    assert runs_so_far(runs, "s", Now(began + DAY_MS + 1, 0, True), Uptime("another", 60)).day == 0


def test_lines_of_an_older_version_count_by_the_wall_clock(tmp_path: Path) -> None:
    go(Runs(tmp_path), "accepted", "about-to-run", at_ms=DAY_MS)
    assert runs_so_far(Runs(tmp_path), "s", Now(DAY_MS + 5, 0, True), Uptime("b", 5)).day == 1
    assert runs_so_far(Runs(tmp_path), "s", Now(3 * DAY_MS, 0, True), Uptime("b", 5)).day == 0


# --- a second person ----------------------------------------------------------------------------------------------


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench(tmp_path, budget=TWO) as bench:
        yield bench


def test_a_session_waits_for_a_second_person_and_then_runs(bench: Bench) -> None:
    assert [refused(bench, "one"), refused(bench, "one")] == ["approval-needed"] * 2
    assert bench.times_run("one") == 0
    (waits,) = bench.recorded("session-waits")  # once, however often it is asked
    assert (waits["session_id"], waits["combiner"]) == ("s", COMBINER)
    assert approve(bench, BOB).changed
    (approved,) = bench.recorded("session-approved")
    assert (approved["operator"], approved["peer_uid"], approved["session_id"]) == ("bob", BOB.uid, "s")
    bench.complete("one")
    assert bench.times_run("one") == 1
    assert not approve(bench, BOB).changed  # again is no second event
    assert len(bench.recorded("session-approved")) == 1


def test_an_approval_and_what_waits_survive_a_restart(bench: Bench) -> None:
    assert refused(bench, "one") == "approval-needed"
    bench.start()
    assert [item["session_id"] for item in desk(bench).report().facts["sessions_waiting"]] == ["s"]
    approve(bench, BOB)
    bench.start()
    facts = desk(bench).report().facts
    assert (facts["sessions_waiting"], facts["sessions_approved"][0]["operator"]) == ([], "bob")
    bench.complete("one")


def test_another_session_another_combiner_and_another_policy_wait_for_themselves(bench: Bench) -> None:
    approve(bench, BOB, "s", COMBINER)  # ahead
    bench.complete("control")
    assert refused(bench, "two", session_id="another") == "approval-needed"
    assert refused(bench, "three", combiner="other.example:443") == "approval-needed"
    changed = replace(read_policy(bench.runner.room.policy_file), tasks=("train",))
    bench.runner.room.policy_file.write_bytes(changed.canonical())
    assert refused(bench, "four") == "approval-needed"


def refusal(bench: Bench, who: Operator) -> str:
    refused(bench, f"offer-of-{who.name}-{len(bench.ledger.events)}")
    with pytest.raises(PolicyDeniedError) as caught:
        approve(bench, who)
    assert caught.value.code == "approval-refused"
    assert bench.recorded("approval-refused")[-1]["peer_uid"] == who.uid
    assert not bench.recorded("session-approved")
    return caught.value.message


def test_who_owns_the_policy_is_no_second_person(bench: Bench) -> None:
    assert "owns the policy" in refusal(bench, OWN)
    assert approve(bench, BOB).changed


@pytest.mark.parametrize("command", ["project-install", "policy-apply", "project-rollback"])
def test_who_installed_is_no_second_person_not_even_from_behind_sudo(bench: Bench, command: str) -> None:
    desk(bench).do(Change(command, ("x",), login_uid=ALICE.uid), OWN, {})
    (on_record,) = bench.recorded("operator-command")
    assert (on_record["peer_uid"], on_record["login_uid"]) == (OWN.uid, ALICE.uid)
    bench.start()  # it is kept
    refusal(bench, ALICE)
    assert approve(bench, BOB).changed


def test_who_paused_is_no_second_person(bench: Bench) -> None:
    refused(bench, "one")
    desk(bench).do(Pause("audit"), ALICE, {})
    with pytest.raises(PolicyDeniedError, match="paused the node"):
        approve(bench, ALICE)
    assert approve(bench, BOB).changed
    assert refused(bench, "one") == "paused"  # approval and pause are two things


def test_whom_the_policy_does_not_name_is_no_second_person(tmp_path: Path) -> None:
    with Bench(tmp_path, budget={**TWO, "approvers": ["bob"]}) as bench:
        assert "the policy names bob" in refusal(bench, ALICE)
        assert approve(bench, BOB).changed


def test_an_approval_that_cannot_be_recorded_is_none(bench: Bench) -> None:
    refused(bench, "one")
    bench.ledger.fail_on("session-approved")
    with pytest.raises(LedgerError):
        approve(bench, BOB)
    bench.start()
    assert refused(bench, "one") == "approval-needed"
    bench.ledger.heal()
    assert approve(bench, BOB).changed


def test_a_session_that_cannot_be_recorded_as_waiting_does_not_wait_in_silence(bench: Bench) -> None:
    bench.ledger.fail_on("session-waits")
    assert refused(bench, "one") == "ledger-unavailable"
    bench.ledger.heal()
    assert refused(bench, "one") == "approval-needed"
    assert len(bench.recorded("session-waits")) == 1


def test_a_session_that_the_policy_does_not_allow_is_refused_and_asks_nobody(tmp_path: Path) -> None:
    with Bench(tmp_path, budget={**TWO, "sessions": ["agreed-*"]}) as bench:
        assert refused(bench, "one") == "session-denied"
        assert not bench.recorded("session-waits")
        assert refused(bench, "two", session_id="agreed-1") == "approval-needed"


def test_nobody_is_asked_where_the_policy_does_not_say_so(tmp_path: Path) -> None:
    with Bench(tmp_path) as bench:
        bench.complete("one")
        with pytest.raises(PolicyDeniedError) as caught:
            approve(bench, BOB, "s", COMBINER)
        assert caught.value.code == "command-refused"


def test_an_unknown_session_is_not_approved_by_a_slip(bench: Bench) -> None:
    refused(bench, "one")
    refused(bench, "two", combiner="other.example:443")
    for session in ("S", "s"):  # no such one; one of two combiners
        with pytest.raises(PolicyDeniedError) as caught:
            approve(bench, BOB, session)
        assert caught.value.code == "command-refused"
    assert approve(bench, BOB, "s", COMBINER).changed


def test_sessions_without_end_cost_a_bounded_list(tmp_path: Path) -> None:
    approvals = Approvals(tmp_path)
    for number in range(MAX_WAITING + 10):
        approvals.wait_for(f"s{number}", COMBINER, number)
    kept = Approvals(tmp_path).kept
    assert [item.session_id for item in kept.waiting] == [f"s{number}" for number in range(10, MAX_WAITING + 10)]


def test_a_list_that_cannot_be_read_stops_the_room(tmp_path: Path) -> None:
    Approvals(tmp_path).wait_for("s", COMBINER, 1)
    path = tmp_path / "approvals.json"
    good = path.read_bytes()
    for damage in (good[:-9], b"{}x", canonical({**dict(parse(good, max_bytes=10**6, what="x")), "more": 1})):
        path.write_bytes(damage)
        with pytest.raises(StorageError) as caught:
            Approvals(tmp_path)
        assert caught.value.code == "state-corrupt"
    path.write_bytes(good)
    assert Approvals(tmp_path).waits("s", COMBINER)


# --- over the socket: the kernel says who ------------------------------------------------------------------------

SECOND_UID = 20_777
ASK = """
import os, sys
os.setgroups([]); os.setgid({uid}); os.setuid({uid})
from scaleoutd.errors import ScaleoutError
from scaleoutd.ipc.control import *
try:
    print(call({path!r}, "runner", {word}))
except ScaleoutError as exc:
    print(exc.code)
"""


@pytest.fixture
def door(tmp_path: Path) -> Iterator[tuple[Bench, Path]]:
    """The control socket of a node in the foreground: every user of the host can connect."""
    with Bench(tmp_path / "bench", budget={**TWO, "approvers": [str(SECOND_UID)]}) as bench:
        found = RunnerDesk(bench.runner)
        # Below /tmp, not below pytest's folder, which other users cannot enter.
        path = Path("/tmp") / f"scaleoutd-test-{secrets.token_hex(8)}.control"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen()
        server = Control("runner", listener, found, lambda line: None, found.may).start()
        try:
            yield bench, path
        finally:
            server.close()
            listener.close()
            path.unlink()


def ask(path: Path, uid: int, word: str) -> str:
    code = ASK.format(uid=uid, path=str(path), word=word)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout.strip()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a second user")
def test_in_the_foreground_a_named_second_user_approves_and_nobody_else_does_anything(door: tuple[Bench, Path]) -> None:
    bench, path = door
    assert refused(bench, "one") == "approval-needed"
    with pytest.raises(PolicyDeniedError) as caught:
        call(str(path), "runner", ApproveSession("s"))  # who runs the node
    assert caught.value.code == "approval-refused"
    other = SECOND_UID + 1
    assert ask(path, other, "ApproveSession('s')") == "approval-refused"
    for word in ("Status()", "Pause('x')", "Resume()", "Change('policy-apply')", "Reload()"):
        assert ask(path, other, word) == "command-refused", word
    for word in ("Pause('x')", "Resume()", "Change('policy-apply')"):
        assert ask(path, SECOND_UID, word) == "command-refused", word
    assert "sessions_waiting" in ask(path, SECOND_UID, "Status()")
    assert "may run" in ask(path, SECOND_UID, "ApproveSession('s')")
    assert [event["peer_uid"] for event in bench.recorded("approval-refused")] == [os.geteuid(), other]
    bench.complete("one")
    # The control: whoever runs the node may do the rest.
    assert isinstance(call(str(path), "runner", Status()), StatusReport)
    assert call(str(path), "runner", Pause("x")) == Done(True, "no run begins")


def test_the_command_lists_what_waits(door: tuple[Bench, Path]) -> None:
    bench, path = door
    refused(bench, "one")
    arguments = ["approve-session", "--socket", str(path)]
    listed = CliRunner().invoke(scaleoutctl, [*arguments, "--json"], standalone_mode=False)
    assert [item["session_id"] for item in json.loads(listed.stdout)["waiting"]] == ["s"]
    assert "scaleoutctl approve-session s" in CliRunner().invoke(scaleoutctl, arguments, standalone_mode=False).stdout
    denied = CliRunner().invoke(scaleoutctl, [*arguments, "s"], standalone_mode=False)
    assert isinstance(denied.exception, PolicyDeniedError) and denied.exception.code == "approval-refused"


def test_names_under_approvers_that_are_no_users_are_found(tmp_path: Path) -> None:
    with Bench(tmp_path, budget={**TWO, "approvers": ["root", "no-such-user-here"]}) as bench:
        assert budget.unknown_approvers(read_policy(bench.runner.room.policy_file)) == ("no-such-user-here",)
