# SPDX-License-Identifier: Apache-2.0
"""The purpose budget of the policy: what of it this host could not keep."""

from __future__ import annotations

import time
from collections.abc import Iterator

from scaleoutd.cli.checks.finding import Finding, Subject, fail, ok
from scaleoutd.errors import ConfigError
from scaleoutd.runner.budget import unknown_approvers
from scaleoutd.runner.sitetime import local_time


def budget(subject: Subject) -> Iterator[Finding]:
    """Hours that this host can tell, and a second person who exists."""
    told = subject.policy.budget
    if told.hours:
        try:
            now = local_time(time.time_ns() // 1_000_000, told.time_zone)
            yield ok("budget", f"runs may begin {'; '.join(told.hours)}; here it is {now}")
        except ConfigError as exc:
            yield fail("budget", exc.message, exc.hint)
    if told.approval == "second-person":
        unknown = unknown_approvers(subject.policy)
        if unknown or not told.approvers:
            found = f"no user of this host: {', '.join(unknown)}" if unknown else "budget.approvers names nobody"
            yield fail("budget", found, "Correct budget.approvers in the policy: else no session can be approved.")
        else:
            yield ok("budget", f"each session waits for a second person: {', '.join(told.approvers)}")
