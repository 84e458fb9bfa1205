# SPDX-License-Identifier: Apache-2.0
"""What every test shares: the tier summary, the scale of repetitions, and a temporary folder an ordinary user can enter."""

from __future__ import annotations

import os
import signal
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# No folder of examples: the checkout may belong to another user than the one who runs the tests.  No deadline of 200 ms for each
# example and no health check of how fast they come: both judge what else the machine does.
settings.register_profile("scaleoutd", database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("scaleoutd")

# A shell starts what runs in the background with SIGINT ignored, and every process that a test interrupts would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

TIERS = ("unit", "fuzz", "kernel", "attack", "fault", "e2e", "packaging", "system")


def tier_of(node_id: str) -> str:
    parts = Path(node_id.split("::")[0]).parts
    return parts[1] if len(parts) > 2 and parts[1] in TIERS else "tree"


@pytest.fixture(scope="session")
def test_scale() -> int:
    """How often repetitions run; 1 unless TEST_SCALE says more."""
    return max(1, int(os.environ.get("TEST_SCALE", "1")))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What ran in each tier, and why anything did not."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    reasons: Counter[tuple[str, str]] = Counter()
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            tier = tier_of(report.nodeid)
            counts[tier][outcome] += 1
            if outcome == "skipped" and isinstance(report.longrepr, tuple):
                reasons[tier, str(report.longrepr[2])] += 1
    terminalreporter.section("tiers")
    for tier in ("tree", *TIERS):
        if counts[tier]:
            told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts[tier].items()))
            terminalreporter.line(f"{tier:<10} {told}")
    for (tier, reason), count in sorted(reasons.items()):
        terminalreporter.line(f"not run in {tier}: {count} × {reason}")
