# SPDX-License-Identifier: Apache-2.0
"""What must hold after every fault, whatever died and when (DESIGN.md sections 2 and 9).

A task:  finished once and counted once under one id, or failed on record with its code; released before it was sent; what
         nobody can know is on record; a second attempt says that it is one.
A node:  nothing of a task that is over lies about, no process is left, the trail verifies.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from scaleoutd.cli.audit import verify_folder
from tests.e2e.site import events
from tests.fault.node import FaultSite, wait_for
from tests.living import below
from tests.processes import descendants


def leftovers(state: Path) -> list[str]:
    """What lies in the folders of tasks that are under way."""
    runner, spool = state / "runner", state / "agent" / "spool"
    found = [str(path) for folder in (runner / "in", runner / "outbox") for path in folder.iterdir()]
    found += [str(path) for path in below(runner / "scratch") if path.parent.parent == runner / "scratch"]  # below a slot
    return found + [str(path) for path in spool.iterdir() if path.name != "finished"]


def check_task(site: FaultSite, correlation_id: str) -> str:
    """The task ends, and everything that was promised about it holds; returns COMPLETED or the code of its failure."""
    offer = site.wait(correlation_id)
    wait_for(lambda: not leftovers(site.state), lambda: f"{leftovers(site.state)}\n{site.node.text}")
    types = _types(site, correlation_id)
    updates = [update for update in site.combiner.updates if update.correlation_id == correlation_id]
    assert not site.too_early
    assert len({update.model_update_id for update in updates}) <= 1, "one task, two ids"
    _check_deliveries(site, correlation_id, len(updates))
    attempts = [event["attempt"] for event in site.events("run-about-to-start", correlation_id=correlation_id)]
    assert attempts == sorted(set(attempts)), "an attempt is on record twice"
    if offer.status == "COMPLETED":
        assert [update.counted for update in updates].count(True) == 1
        assert types["sent"] >= 1
        assert types["computed"] >= 1 and types["release"] >= 1 and types["outbox-forgotten"] >= 1
        assert len({event["sha256"] for event in site.events("computed", "release", correlation_id=correlation_id)}) == 1
        assert site.run_state(correlation_id) == "forgotten"
        return "COMPLETED"
    code = str(json.loads(offer.response)["code"])
    assert not any(update.counted for update in updates), "failed, and counted all the same"
    on_record = site.events("run-failed", "task-refused", "task-dropped", correlation_id=correlation_id)
    assert code in {event["code"] for event in on_record}, (code, on_record)
    return code


def check_attempts(site: FaultSite, correlation_id: str, expected: int) -> None:
    """So many attempts are on record; each but the last was found interrupted."""
    began = [event["attempt"] for event in site.events("run-about-to-start", correlation_id=correlation_id)]
    assert began[-1:] == [expected], began
    found = site.events("run-interrupted", correlation_id=correlation_id)
    assert len([event for event in found if event["found"] == "about-to-run"]) >= expected - 1, found


def check_node(site: FaultSite) -> None:
    """The trail verifies as it stands, while the node runs."""
    verdict, _ = verify_folder(site.state / "audit")
    assert verdict.ok, verdict.fault
    assert not events(site.state, "event-refused")


def check_stopped(site: FaultSite) -> None:
    """After an orderly end: every event is signed."""
    verdict, warnings = verify_folder(site.state / "audit")
    assert verdict.ok, verdict.fault
    assert verdict.signed_size == verdict.size, warnings


def check_no_survivor() -> None:
    """No process of any node is left: this process is the reaper of all that came from it (conftest.py)."""
    wait_for(lambda: not descendants(os.getpid()), lambda: descendants(os.getpid()))


def _types(site: FaultSite, correlation_id: str) -> Counter[str]:
    return Counter(event["type"] for event in site.events(correlation_id=correlation_id))


def _check_deliveries(site: FaultSite, correlation_id: str, arrived: int) -> None:
    """Each time that something was sent is on record before, and a repetition only after its reason."""
    story = site.events("release", "sending", "sent", "delivery-unknown", correlation_id=correlation_id)
    order: list[dict[str, Any]] = [event for event in story if event["type"] != "release"]
    sendings = [event for event in order if event["type"] == "sending"]
    if sendings:
        assert story[0]["type"] == "release", story
    assert len(sendings) >= arrived, "more arrived than was on record as sending"
    assert len({event["model_update_id"] for event in sendings}) <= 1
    if arrived > 1:
        assert any(event["type"] == "delivery-unknown" for event in order), "it was sent again and nobody says why"
