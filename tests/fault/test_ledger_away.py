# SPDX-License-Identifier: Apache-2.0
"""No record, no work: the ledger away, its disk full, its folder read-only.  Nothing runs, nothing leaves, the agent lives."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.fault.invariants import check_attempts, check_node, check_stopped, check_task
from tests.fault.node import FaultSite, HeldCombiner, PrivateSite, wait_for


def test_a_running_step_may_finish_and_nothing_is_released_until_the_ledger_is_back(site: FaultSite) -> None:
    before = len(site.combiner.updates)
    with site.step_waits() as running:
        correlation_id = site.offer()
        running()
        site.arm("ledger.write-ledger-started")  # the next ledger comes no further than this
        site.node.kill("ledger")
        site.wait_reached("ledger.write-ledger-started")
    wait_for(lambda: site.run_state(correlation_id) == "computed", lambda: site.node.text)
    site.wait_heartbeat()
    assert site.run_state(correlation_id) == "computed"
    assert not site.events("release", "sending", correlation_id=correlation_id)
    assert len(site.combiner.updates) == before
    site.go()
    assert check_task(site, correlation_id) == "COMPLETED"
    check_attempts(site, correlation_id, 1)
    check_node(site)


def test_a_task_that_comes_while_the_ledger_is_away_waits_for_it(site: FaultSite) -> None:
    site.arm("ledger.write-ledger-started")
    site.node.kill("ledger")
    site.wait_reached("ledger.write-ledger-started")
    correlation_id = site.offer()
    site.wait_heartbeat()
    assert site.run_state(correlation_id) in ("", "accepted")
    site.go()
    assert check_task(site, correlation_id) == "COMPLETED"
    check_attempts(site, correlation_id, 1)


@pytest.mark.root
def test_the_disk_of_the_trail_is_full(tmp_path: Path, combiner: HeldCombiner) -> None:
    site = PrivateSite(tmp_path, combiner, [("audit", "size=512k,mode=0700")])
    assert check_task(site, site.offer()) == "COMPLETED"  # the control: on this very disk while it has room
    before = len(site.combiner.updates)
    with site.full("audit"):
        correlation_id = site.offer()
        wait_for(lambda: "cannot record" in site.node.text, lambda: site.node.text)
        site.wait_heartbeat()
        # A full disk still takes what fits into the last page of the journal: what is there is there, what is not did not happen.
        state = site.run_state(correlation_id)  # first: what a state stands for is on record before it
        there = {event["type"] for event in site.events(correlation_id=correlation_id)}
        assert state != "released" or "release" in there
        assert state != "computed" or "run-about-to-start" in there
        assert "sending" not in there
        assert len(site.combiner.updates) == before
    assert check_task(site, correlation_id) == "COMPLETED"
    check_node(site)
    site.stop_node()
    site.state = site._own_state
    check_no_step_ran_without_record(site)


@pytest.mark.root
def test_the_disk_of_the_trail_fills_up_before_the_update_is_sent(tmp_path: Path, combiner: HeldCombiner) -> None:
    site = PrivateSite(tmp_path, combiner, [("audit", "size=512k,mode=0700")])
    site.arm("runner.computed")
    correlation_id = site.offer()
    site.wait_reached("runner.computed")
    with site.full("audit"):
        site.go()
        wait_for(lambda: "cannot record" in site.node.text, lambda: site.node.text)
        site.wait_heartbeat()
        # See above: the release itself may still have fitted; then it is `sending` that does not.
        wait_for(
            lambda: site.run_state(correlation_id) == ("released" if site.events("release") else "computed"),
            lambda: (site.run_state(correlation_id), site.events("release")),
        )
        assert not site.combiner.updates and not site.events("sending")
    assert check_task(site, correlation_id) == "COMPLETED"
    check_attempts(site, correlation_id, 1)
    check_node(site)
    site.stop_node()


@pytest.mark.root
def test_the_folder_of_the_trail_is_read_only(tmp_path: Path, combiner: HeldCombiner) -> None:
    """As after an error of the disk.  The ledger cannot start; the others wait for it, and it is started again and again."""
    site = PrivateSite(tmp_path, combiner)
    assert check_task(site, site.offer()) == "COMPLETED"
    before = len(site.combiner.updates)
    ledger = site.node.children()["ledger"]
    os.kill(ledger, signal.SIGSTOP)
    site.inside("mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(site._own_state / "audit"))
    os.kill(ledger, signal.SIGKILL)
    site.node.wait_for("Read-only file system")
    correlation_id = site.offer()
    site.wait_heartbeat()
    assert site.run_state(correlation_id) in ("", "accepted")
    assert len(site.combiner.updates) == before
    site.inside("umount", str(site._own_state / "audit"))
    assert check_task(site, correlation_id) == "COMPLETED"
    check_attempts(site, correlation_id, 1)
    site.stop_node()
    site.state = site._own_state
    check_stopped(site)


def check_no_step_ran_without_record(site: FaultSite) -> None:
    """What steps printed, one file for each run, beside the trail's word on it (the trail's disk went with the node)."""
    runs = {path.stem for path in (site.state / "runner" / "output").iterdir()}
    assert runs == {path.name for path in (site.state / "runner" / "runs").iterdir()}
