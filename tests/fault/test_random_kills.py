# SPDX-License-Identifier: Apache-2.0
"""Random kills while tasks are under way.  A failure prints the seed; `FAULT_SEED=… pytest …` does the same kills again."""

from __future__ import annotations

import os
import random
import secrets
import time

from tests.fault.invariants import check_node, check_task
from tests.fault.node import LARGE, NAME, SMALL, WAIT_S, FaultSite

KILLS = 6
VICTIMS = ("agent", "runner", "ledger", "step", "template", "parent")
LONGEST_PAUSE_S = 0.4  # about as long as a task takes
POLLS = 12  # of a node that is back: what it had read far enough to write down goes along with the first


def test_random_kills(site: FaultSite, test_scale: int) -> None:
    seed = os.environ.get("FAULT_SEED") or secrets.token_hex(4)
    chance = random.Random(seed)
    models = [site.combiner.put_model(model) for model in (SMALL, LARGE)]
    done: list[str] = []
    for number in range(KILLS * test_scale):
        victim, pause_s, model_id = chance.choice(VICTIMS), chance.uniform(0, LONGEST_PAUSE_S), chance.choice(models)
        print(f"seed {seed}, kill {number}: {victim} after {pause_s * 1000:.0f} ms; so far {done[-5:]}")
        correlation_id = site.offer(model_id=model_id)
        time.sleep(pause_s)  # the moment is what is random here, not something that is waited for
        site.node.kill(victim)
        if victim == "parent":
            site.start_node()
        if victim in ("agent", "parent") and _never_arrived(site, correlation_id):
            print(f"task {correlation_id} was in the answer that the killed {victim} never read")
            site.combiner.stop_task(correlation_id)
            assert site.wait(correlation_id).status == "INTERRUPTED"
            assert not site.events("run-about-to-start", correlation_id=correlation_id)
        else:
            done.append(check_task(site, correlation_id))
        check_node(site)
    done.append(check_task(site, site.offer()))  # and one in peace: every room is back
    # One kill a task: nothing that was begun at most twice may fail.
    assert done == ["COMPLETED"] * len(done)


def _never_arrived(site: FaultSite, correlation_id: str) -> bool:
    """Nobody but the combiner has heard of this task, long after the node was back.

    A directive counts as handed out when the combiner has written it.  If the agent dies before it reads the answer, the wire
    has no second delivery: the combiner's round goes on without this node and stops the task.  What an agent has read far
    enough to write it down is reported with the next poll, and then this is False.
    """
    board = site.combiner.board
    offer, before = board.offers[correlation_id], board.clients[NAME].polls

    def decided() -> bool:
        return offer.done or _reported(site, correlation_id) or board.clients[NAME].polls >= before + POLLS

    assert board.wait_until(decided, WAIT_S), site.node.text
    if offer.done or _reported(site, correlation_id):
        return False
    return offer.handed_out_at_s is not None and not site.events(correlation_id=correlation_id)


def _reported(site: FaultSite, correlation_id: str) -> bool:
    return any(report.correlation_id == correlation_id for report in site.combiner.reports)
