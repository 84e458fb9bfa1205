# SPDX-License-Identifier: Apache-2.0
"""The runner's disk is full: the task fails by that name, on record; nothing of it stays; with room again the next one runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fault.invariants import check_node, check_stopped, check_task
from tests.fault.node import LARGE, FaultSite, HeldCombiner, PrivateSite

pytestmark = pytest.mark.root


@pytest.fixture
def small_disk(tmp_path: Path, combiner: HeldCombiner) -> Iterator[PrivateSite]:
    site = PrivateSite(tmp_path, combiner, [("runner", "size=160m,mode=0700")])
    yield site
    site.go()
    if site.node.process.poll() is None:
        site.stop_node()


def fails_for_want_of_space(site: FaultSite, correlation_id: str) -> None:
    assert check_task(site, correlation_id) == "storage-full"
    assert not [update for update in site.combiner.updates if update.correlation_id == correlation_id]
    check_node(site)


@pytest.mark.parametrize("where", ["runner.snapshot-made", "runner.gated"])
def test_full(small_disk: PrivateSite, where: str) -> None:
    """Before the model is received, and before the outbox is written."""
    site = small_disk
    model_id = site.combiner.put_model(LARGE)
    site.arm(where)
    correlation_id = site.offer(model_id=model_id)
    site.wait_reached(where)
    with site.full("runner"):
        site.go()
        site.wait(correlation_id)
    fails_for_want_of_space(site, correlation_id)
    site.clear()
    assert check_task(site, site.offer(model_id=model_id)) == "COMPLETED"
    site.stop_node()
    site.state = site._own_state
    check_stopped(site)
