# SPDX-License-Identifier: Apache-2.0
"""Which limit a failed run is told to have met, where several could be: the kernel's own event before what was only used up."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from scaleoutd.step import limits
from tests.step_client import LIMITS

KILLED, OVER_CPU = -signal.SIGKILL, LIMITS.cpu_s * 1000
REPORT = {"status": 1, "scratch_bytes": 0, "largest_bytes": 0, "cpu_ms": 0, "most_tasks": 1, "fork_refused": 0}


@pytest.fixture(params=[1, 2])
def group(request: pytest.FixtureRequest, tmp_path: Path) -> limits.Cgroup:
    """Of both versions of cgroups, with the kernel's counters as files; the run begins now."""
    found = limits.Cgroup()
    found.adopt()
    found.version, found.memory, found.pids = request.param, str(tmp_path), str(tmp_path)
    events(found, oom_kill=2)  # of a run before
    found.apply(LIMITS)
    return found


def events(group: limits.Cgroup, *, oom_kill: int) -> None:
    name = "memory.oom_control" if group.version == 1 else "memory.events"
    Path(str(group.memory), name).write_text(f"low 0\noom {oom_kill}\noom_kill {oom_kill}\n")


@pytest.mark.parametrize(
    ("oom_kill", "report", "code"),
    [
        (3, {"status": KILLED, "cpu_ms": OVER_CPU}, "limit-memory"),  # both: the event says who sent the signal
        (3, {"status": KILLED}, "limit-memory"),
        (3, {"status": 1}, "limit-memory"),  # a child was killed, and its parent gave up
        (3, {"status": -signal.SIGXCPU, "cpu_ms": OVER_CPU}, "limit-cpu"),  # a signal of its own
        (2, {"status": KILLED, "cpu_ms": OVER_CPU}, "limit-cpu"),  # the control: no event in this run
        (2, {"status": KILLED}, None),
        (2, {"status": 1, "cpu_ms": OVER_CPU}, None),
        (3, {"status": 0, "cpu_ms": OVER_CPU}, None),  # it got over it
        (3, {"status": 0, "scratch_bytes": LIMITS.scratch_bytes + 1}, "limit-scratch"),
    ],
)
def test_the_limit_behind_a_failure(group: limits.Cgroup, oom_kill: int, report: dict[str, int], code: str | None) -> None:
    events(group, oom_kill=oom_kill)
    assert limits.behind({**REPORT, **report}, LIMITS, group) == code
