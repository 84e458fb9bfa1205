# SPDX-License-Identifier: Apache-2.0
"""kill -9 of each process at each stage of "The way of a task" (DESIGN.md section 2): the task ends, on record, once.

A case is (victim, where): `room.point` is a point of points.py at which that room stands still, `combiner.point` one of
HeldCombiner; the victim is killed while it, or the other, stands there.  `step` are the step instances, `template` is
what forks them, `parent` is `scaleoutd client start` itself, which the test starts again with the same state.
"""

from __future__ import annotations

import pytest

from tests.fault.invariants import check_attempts, check_node, check_task
from tests.fault.node import LARGE, FaultSite
from tests.processes import is_alive

# The step is running: held by its data set.
EXECUTE = "step.running"

# (victim, where): before anything ran, so the first attempt is the one that counts.
BEFORE_THE_RUN = [
    ("agent", "agent.spooled"),
    ("agent", "agent.state-offered"),
    ("runner", "runner.entry-half"),
    ("runner", "runner.verify"),
    ("ledger", "runner.verify"),
    ("runner", "runner.copy-half"),
    ("runner", "runner.copied"),
    ("agent", "combiner.download"),
    ("runner", "combiner.download"),
    ("ledger", "combiner.download"),
    ("parent", "combiner.download"),
    ("agent", "agent.downloaded"),
    ("runner", "runner.received"),
    ("runner", "runner.inspect"),
    ("step", "runner.inspect"),
    ("template", "runner.inspect"),
    ("runner", "runner.inspected"),
]
# About to run, or running: what began is on record as interrupted, and the next is attempt 2.
IN_THE_RUN = [
    ("runner", "runner.record-run-about-to-start"),
    ("runner", "ledger.wrote-run-about-to-start"),
    ("runner", "runner.recorded-run-about-to-start"),
    ("step", "runner.execute"),
    ("agent", EXECUTE),
    ("runner", EXECUTE),
    ("step", EXECUTE),
    ("parent", EXECUTE),
    ("runner", "runner.executed"),
    ("runner", "runner.gate"),
    ("step", "runner.gate"),
    ("runner", "runner.gated"),
    ("runner", "runner.outbox-half"),
    ("runner", "runner.outbox-written"),
]
# The ledger dies while others wait for it, or do not need it just then: one attempt.  The template's launchers do not need it.
LEDGER = [
    ("template", EXECUTE),
    ("ledger", "ledger.write-run-about-to-start"),
    ("ledger", "ledger.torn-run-about-to-start"),
    ("ledger", "ledger.wrote-run-about-to-start"),
    ("ledger", EXECUTE),
    ("ledger", "runner.record-release"),
    ("ledger", "ledger.write-release"),
    ("ledger", "ledger.torn-release"),
    ("ledger", "ledger.wrote-release"),
    ("ledger", "ledger.write-sending"),
    ("ledger", "ledger.wrote-sending"),
    ("ledger", "ledger.write-sent"),
    ("ledger", "ledger.wrote-sent"),
    ("ledger", "ledger.write-outbox-forgotten"),
    ("ledger", "ledger.wrote-outbox-forgotten"),
]
# Computed: nothing is lost, nothing runs again.
COMPUTED = [
    ("runner", "runner.computed"),
    ("agent", "runner.computed"),
    ("step", "runner.computed"),
    ("parent", "runner.computed"),
    ("runner", "runner.record-release"),
    ("runner", "ledger.wrote-release"),
    ("runner", "runner.recorded-release"),
    ("runner", "runner.released"),
    ("agent", "runner.released"),
    ("parent", "runner.released"),
    ("agent", "agent.record-sending"),
    ("agent", "ledger.wrote-sending"),
    ("agent", "agent.recorded-sending"),
    ("runner", "agent.recorded-sending"),
]
# On its way, and nobody knows how far: unknown, on record, the same ids again.
SENDING = [
    ("agent", "agent.state-sending"),
    ("agent", "combiner.upload"),
    ("parent", "combiner.upload"),
    ("agent", "agent.uploaded"),
    ("agent", "combiner.announced"),
    ("parent", "combiner.announced"),
    ("agent", "agent.announced"),
]
# The combiner has it: it is not sent again.
ACKNOWLEDGED = [
    ("agent", "agent.state-acknowledged"),
    ("parent", "agent.state-acknowledged"),
    ("agent", "agent.record-sent"),
    ("agent", "agent.recorded-sent"),
    ("agent", "agent.state-acknowledged-recorded"),
    ("runner", "agent.tell-delivered"),
    ("agent", "agent.tell-delivered"),
    ("runner", "runner.tell-outbox-forgotten"),
    ("runner", "runner.told-outbox-forgotten"),
    ("runner", "runner.remove"),
    ("runner", "runner.removed"),
    ("agent", "agent.told-delivered"),
    ("agent", "agent.state-acknowledged-recorded-confirmed"),
    ("agent", "combiner.report"),
    ("agent", "combiner.reported"),
    ("parent", "combiner.reported"),
    ("agent", "agent.finish"),
    ("agent", "agent.state-reported"),
]


def kill_at(site: FaultSite, victim: str, where: str) -> str:
    """Offers a task, kills `victim` when it has come to `where`, and lets everything go on; the task's correlation id."""
    room, _, point = where.partition(".")
    model_id = site.combiner.put_model(LARGE) if point in ("download", "upload") else None
    if room == "step":
        with site.step_waits() as running:
            correlation_id = site.offer(model_id=model_id)
            running()
            site.node.kill(victim)
    elif room == "combiner":
        site.combiner.arm(point)
        correlation_id = site.offer(model_id=model_id)
        site.combiner.wait_reached(point)
        site.node.kill(victim)
    else:
        site.arm(where)
        correlation_id = site.offer()
        site.wait_reached(where)
        site.node.kill(victim)
    site.combiner.go()
    site.go()
    if victim == "parent":
        site.start_node()
    return correlation_id


def name_of(case: tuple[str, str]) -> str:
    return f"{case[0]} at {case[1]}"


@pytest.mark.parametrize("case", BEFORE_THE_RUN, ids=name_of)
def test_killed_before_the_run(site: FaultSite, case: tuple[str, str]) -> None:
    if "cop" in case[1]:
        site.project.version += 1  # another manifest: a copy is made
        site.project.sign()
    correlation_id = kill_at(site, *case)
    assert check_task(site, correlation_id) == "COMPLETED"
    check_attempts(site, correlation_id, 1)
    assert not site.combiner.board.duplicates()
    check_node(site)


@pytest.mark.parametrize("case", IN_THE_RUN, ids=name_of)
def test_killed_in_the_run(site: FaultSite, case: tuple[str, str]) -> None:
    correlation_id = kill_at(site, *case)
    assert check_task(site, correlation_id) == "COMPLETED"
    check_attempts(site, correlation_id, 2)
    assert not site.combiner.board.duplicates()
    check_node(site)


@pytest.mark.parametrize("case", LEDGER, ids=name_of)
def test_ledger_killed(site: FaultSite, case: tuple[str, str]) -> None:
    correlation_id = kill_at(site, *case)
    assert check_task(site, correlation_id) == "COMPLETED"
    check_attempts(site, correlation_id, 1)
    assert not site.combiner.board.duplicates()
    check_node(site)
    for name in ("run-about-to-start", "release", "sent", "outbox-forgotten"):
        assert len(site.events(name, correlation_id=correlation_id)) == 1, f"{name} is on record twice"
    if "torn" in case[1]:
        assert site.events("tail-cut")


@pytest.mark.parametrize("case", COMPUTED, ids=name_of)
def test_killed_after_computed(site: FaultSite, case: tuple[str, str]) -> None:
    correlation_id = kill_at(site, *case)
    assert check_task(site, correlation_id) == "COMPLETED"
    check_attempts(site, correlation_id, 1)
    assert not site.combiner.board.duplicates()
    check_node(site)


@pytest.mark.parametrize("case", SENDING, ids=name_of)
def test_killed_while_sending(site: FaultSite, case: tuple[str, str]) -> None:
    before = len(site.combiner.board.duplicates())
    correlation_id = kill_at(site, *case)
    assert check_task(site, correlation_id) == "COMPLETED"
    check_attempts(site, correlation_id, 1)
    again = site.combiner.board.duplicates()[before:]
    if case[0] == "parent" and site.events("sent", correlation_id=correlation_id) and not again:
        pass  # the rooms outlive their parent for a moment: here the agent had its answer, so nothing was unknown
    else:
        assert site.events("delivery-unknown", correlation_id=correlation_id)
        assert [update.correlation_id for update in again] == [correlation_id] * ("announced" in case[1])
    check_node(site)


@pytest.mark.parametrize("case", ACKNOWLEDGED, ids=name_of)
def test_killed_after_the_acknowledgement(site: FaultSite, case: tuple[str, str]) -> None:
    before = len(site.combiner.board.duplicates())
    correlation_id = kill_at(site, *case)
    assert check_task(site, correlation_id) == "COMPLETED"
    check_attempts(site, correlation_id, 1)
    assert len(site.combiner.board.duplicates()) == before, "it was sent again although the combiner had it"
    assert not site.events("delivery-unknown", correlation_id=correlation_id)
    check_node(site)


@pytest.mark.parametrize("where", ["runner.gated", "runner.computed", "agent.uploaded", "agent.announced"])
def test_a_room_that_outlives_its_parent_and_the_node_started_at_once(site: FaultSite, where: str) -> None:
    """The old room stands in the middle of a task while the new one starts: they may not both write the same state."""
    repaired = len(site.events("state-repaired"))  # by earlier cases
    site.arm(where)
    correlation_id = site.offer()
    site.wait_reached(where)
    before = site.node.children()
    site.node.kill("parent")
    site.start_node()
    assert not [room for room, pid in before.items() if room != "step" and is_alive(pid)], "two rooms have one state open"
    site.go()
    assert check_task(site, correlation_id) == "COMPLETED"
    check_attempts(site, correlation_id, 2 if where == "runner.gated" else 1)
    check_node(site)
    assert len(site.events("state-repaired")) == repaired


def test_the_first_task_without_any_fault(site: FaultSite) -> None:
    """The control of all cases: the same checks, and exactly one of everything."""
    correlation_id = site.offer()
    assert check_task(site, correlation_id) == "COMPLETED"
    check_attempts(site, correlation_id, 1)
    for name in ("run-about-to-start", "run-ended", "computed", "release", "sending", "sent", "outbox-forgotten"):
        assert len(site.events(name, correlation_id=correlation_id)) == 1, name
    assert not site.events("delivery-unknown", "run-interrupted", correlation_id=correlation_id)
