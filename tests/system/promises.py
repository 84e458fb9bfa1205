# SPDX-License-Identifier: Apache-2.0
"""What must hold after every fault of an installed node, whatever died and when (DESIGN.md sections 2 and 9).

The same promises as tests/fault/invariants.py, asked of a booted node: from its trail, its combiner and its folders.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from tests.system.hospital import Hospital

# What lies in the folders of tasks that are under way; none of it may stay.
LEFT = (
    "find /var/lib/scaleoutd/runner/in /var/lib/scaleoutd/runner/outbox /var/lib/scaleoutd/agent/spool "
    "/var/lib/scaleoutd/scratch -mindepth 1 ! -path '/var/lib/scaleoutd/scratch/[0-9]' ! -path '*/scratch/probe' "
    "! -name finished ! -path '*/finished/*'"
)

STEP_PROCESSES = """\
for uid in $(getent passwd | sed -n 's/^scaleoutd-step-[0-9]*:[^:]*:\\([0-9]*\\):.*/\\1/p'); do
    ps -o pid=,user=,args= -u "$uid" || true
done
"""


def check_task(hospital: Hospital, correlation_id: str) -> str:
    """The task ends, and everything that was promised about it holds; returns COMPLETED or the code of its failure."""
    offer = hospital.wait(correlation_id)
    story = [event for event in hospital.trail() if event.get("correlation_id") == correlation_id]
    types = Counter(event["type"] for event in story)
    updates = [update for update in hospital.combiner.updates if update.correlation_id == correlation_id]
    assert len({update.model_update_id for update in updates}) <= 1, "one task, two ids"
    attempts = [event["attempt"] for event in story if event["type"] == "run-about-to-start"]
    assert attempts == sorted(set(attempts)), "an attempt is on record twice"
    check_deliveries(story, len(updates))
    if offer.status == "COMPLETED":
        assert [update.counted for update in updates].count(True) == 1
        assert min(types[name] for name in ("computed", "release", "sending", "sent")) >= 1, types
        assert len({event["sha256"] for event in story if event["type"] in ("computed", "release")}) == 1
        return "COMPLETED"
    code = str(json.loads(offer.response)["code"])
    assert not any(update.counted for update in updates), "failed, and counted all the same"
    on_record = [event for event in story if event["type"] in ("run-failed", "task-refused", "task-dropped", "task-denied")]
    assert code in {event["code"] for event in on_record}, (code, on_record)
    return code


def check_deliveries(story: list[dict[str, Any]], arrived: int) -> None:
    """Each time that something was sent is on record before, and what may have been counted only after its reason."""
    order = [event for event in story if event["type"] in ("release", "sending", "sent", "delivery-unknown")]
    sendings = [event for event in order if event["type"] == "sending"]
    assert not sendings or order[0]["type"] == "release", order
    assert len(sendings) >= arrived, "more arrived than was on record as sending"
    assert len({event["model_update_id"] for event in sendings}) <= 1
    if arrived > 1:
        assert any(event["type"] == "delivery-unknown" for event in order), "it was sent again and nobody says why"


def check_node(hospital: Hospital) -> None:
    """The trail verifies as it stands, nothing of a task that is over lies about, no step instance is left."""
    guest = hospital.guest
    guest.run("scaleoutctl audit verify /var/lib/scaleoutd/audit")
    assert not hospital.trail("event-refused")
    # What a task leaves is cleared away after its result is out.
    left = guest.run(f'for i in $(seq 600); do [ -z "$({LEFT})" ] && break; sleep 0.1; done; {LEFT}', check=False).text
    assert left == "", left
    # A spare instance is a launcher of its own uid; a process of a step's uid is a run.
    assert guest.script(STEP_PROCESSES).text == ""
