# SPDX-License-Identifier: Apache-2.0
"""The combiner goes away at the start and in the middle: the node waits, connects later, and delivers once."""

from __future__ import annotations

import threading

from scaleoutd.devcombiner.listeners import keep
from tests.fault.invariants import check_attempts, check_node, check_task
from tests.fault.node import FaultSite, wait_for


def test_combiner_restarted_while_the_step_runs(site: FaultSite) -> None:
    with site.step_waits() as running:
        correlation_id = site.offer()
        running()
        site.combiner.restart_grpc()
    assert check_task(site, correlation_id) == "COMPLETED"
    check_attempts(site, correlation_id, 1)
    assert not [update for update in site.combiner.board.duplicates() if update.correlation_id == correlation_id]
    check_node(site)


def test_combiner_away_when_the_update_is_ready(site: FaultSite) -> None:
    with site.step_waits() as running:
        correlation_id = site.offer()
        running()
        site.combiner.stop_grpc()
    wait_for(lambda: site.run_state(correlation_id) == "released", lambda: site.node.text)
    site.combiner.start_grpc()
    assert check_task(site, correlation_id) == "COMPLETED"
    check_attempts(site, correlation_id, 1)
    check_node(site)


def test_combiner_restarted_before_it_could_answer(site: FaultSite) -> None:
    """It counts the update, and the answer is lost: unknown, on record, the same ids again."""
    before = len(site.combiner.board.duplicates())
    site.combiner.arm("announced")
    correlation_id = site.offer()
    site.combiner.wait_reached("announced")
    restart = threading.Thread(target=site.combiner.restart_grpc)
    restart.start()  # it cuts the connection and then waits for the call that is held
    wait_for(lambda: site.events("delivery-unknown", correlation_id=correlation_id), lambda: site.node.text)
    site.combiner.go()
    restart.join()
    assert check_task(site, correlation_id) == "COMPLETED"
    assert len(site.combiner.board.duplicates()) == before + 1
    check_node(site)


def test_combiner_unreachable_at_the_start(site: FaultSite) -> None:
    site.stop_node()
    before = site.connects()
    site.combiner.stop_grpc()
    site.launch_node()
    site.node.wait_for("connection-refused")
    assert site.node.process.poll() is None
    site.combiner.start_grpc()
    site.wait_connected(before + 1)
    assert check_task(site, site.offer()) == "COMPLETED"
    check_node(site)


def test_api_unreachable_at_the_start(site: FaultSite) -> None:
    site.stop_node()
    before = site.connects()
    rest = site.combiner._rest
    assert rest is not None
    port = rest.server_address[1]
    rest.stop()
    with keep(int(port)):
        site.launch_node()
        site.node.wait_for("connection-refused")
        assert site.node.process.poll() is None
        site.combiner._start_rest(int(port))
    site.wait_connected(before + 1)
    assert check_task(site, site.offer()) == "COMPLETED"
    check_node(site)
