# SPDX-License-Identifier: Apache-2.0
"""What a task may have to wait for before it is looked at: the end of a pause, and a second person's approval of its session.

A task that waits is neither run nor failed: it has no entry that lasts, and the agent offers it again.
"""

from __future__ import annotations

from scaleoutd.errors import PolicyDeniedError, ScaleoutError
from scaleoutd.hold import Hold
from scaleoutd.ipc.messages import TaskOffer
from scaleoutd.runner.budget import check_approval
from scaleoutd.runner.policyfile import read_policy
from scaleoutd.runner.room import Room


def admit(room: Room, offer: TaskOffer) -> None:
    """PolicyDeniedError `paused` or `approval-needed`."""
    check_hold(room.hold.now)
    try:
        policy = read_policy(room.policy_file)
    except ScaleoutError:
        return  # the pipeline reads it again, and puts on record what is wrong with it
    check_approval(room.approvals, policy, offer.session_id, offer.combiner, room.now(), room.ledger.record)


def check_hold(hold: Hold | None) -> None:
    """PolicyDeniedError `paused` when no run may begin."""
    if hold is not None and hold.kind == "pause":
        raise PolicyDeniedError(
            f"cannot run the task: {hold.operator} paused the node: {hold.reason}", code="paused", hint="`scaleoutctl resume`"
        )
