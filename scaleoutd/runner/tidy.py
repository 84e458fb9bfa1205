# SPDX-License-Identifier: Apache-2.0
"""What can wait until a task's result is out: the end of its instance, and the start of the next spare.

A launcher's start is 50 ms of a processor, and leaving its cgroup a grace period of RCU.  Before the result is sent both would
take their time from it; a task that is long does not feel them.
"""

from __future__ import annotations

from collections.abc import Callable

from scaleoutd.errors import ScaleoutError
from scaleoutd.runner.instances import Instances
from scaleoutd.runner.link import Link

TIDY_AFTER_S = 1.0  # a task that is not over by then is long, or its agent is slow


def tidy_after(instances: Instances, link: Link, log: Callable[[str], None]) -> None:
    """Waits for the task of `link`; for a thread of its own."""
    link.answered.wait(TIDY_AFTER_S)
    _refill(instances, log)
    link.decided.wait()
    link.answered.wait(TIDY_AFTER_S)
    try:
        instances.end_left()
    except ScaleoutError as exc:
        log(f"a step instance did not end as it should: {exc.message}")
    _refill(instances, log)


def _refill(instances: Instances, log: Callable[[str], None]) -> None:
    try:
        instances.refill()
    except ScaleoutError as exc:
        log(f"no spare step instance: {exc.message}")
