# SPDX-License-Identifier: Apache-2.0
"""Limits of the policy in the step unit: each is hit, reported with its code, and survived by the node."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.guest import Guest
from tests.system.hospital import GATE, Hospital
from tests.system.promises import check_node, check_task

MIB = 1 << 20
LIMITS = {
    "wall_clock_s": 30, "cpu_s": 4, "memory_bytes": 256 * MIB, "processes": 40, "scratch_bytes": 64 * MIB,
    "file_size_bytes": 48 * MIB, "tmp_bytes": 64 * MIB, "shm_bytes": 32 * MIB,
}  # fmt: skip
# The step does what the data set says.
BODY = """
import os, signal, time
def memory():
    held = []
    while True:
        held.append(b"x" * (1 << 20))
def small_memory():
    b"x" * (100 << 20)
def tasks():
    while True:
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)
def few_tasks():
    for _ in range(20):
        if os.fork() == 0:
            time.sleep(600)
def cpu():
    while True:
        pass
def two_cpus():
    for _ in range(2):
        if os.fork() == 0:
            cpu()
    time.sleep(600)
def file_size():
    with open(os.path.dirname(target) + "/large", "wb") as file:
        while True:
            file.write(bytes(1 << 20))
def tmp():
    with open("/tmp/large", "wb") as file:
        while True:
            file.write(bytes(1 << 20))
def daemons():
    for _ in range(3):
        if os.fork() == 0:
            os.setsid()
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            if os.fork() == 0:
                time.sleep(600)
            os._exit(0)
def nothing():
    pass
try:
    with open(os.environ["SCALEOUTD_DATA_GATE"] + "/what") as file:
        what = file.read().strip()
except FileNotFoundError:
    what = "nothing"
globals()[what]()
"""
KILLED = {"few_tasks": 20, "daemons": 3, "two_cpus": 3}  # processes that live at the end
# What is asked of the step, and what is reported.
CASES = {
    "memory": "limit-memory",
    "tasks": "limit-processes",
    "cpu": "limit-cpu",
    "two_cpus": "limit-cpu",  # none of them has used it up alone
    "file_size": "limit-file-size",
    "tmp": "step-failed",  # ENOSPC, and no OOM kill
    "small_memory": "COMPLETED",
    "few_tasks": "COMPLETED",
    "daemons": "COMPLETED",
}


@pytest.fixture(scope="module")
def hospital(node: Guest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    with Hospital(node, tmp_path_factory.mktemp("site"), train_body=BODY, limits=LIMITS) as site:
        site.bring()
        site.start()
        yield site


def outcome_of(hospital: Hospital, what: str) -> str:
    hospital.guest.write(f"{GATE}/what", what)
    return check_task(hospital, hospital.offer())


@pytest.mark.parametrize("what", CASES)
def test_a_limit_is_hit_reported_and_survived(hospital: Hospital, what: str) -> None:
    outcome = outcome_of(hospital, what)
    ended = hospital.trail("run-ended")[-1]
    assert outcome == CASES[what], ended
    check_node(hospital)
    assert ended["killed_processes"] == KILLED.get(what, 0) or (what == "tasks" and ended["killed_processes"] >= 20)
    if what == "two_cpus":
        assert ended["cpu_ms"] >= 1000 * LIMITS["cpu_s"]
    assert outcome_of(hospital, "nothing") == "COMPLETED"


def test_limits_are_those_of_the_policy(hospital: Hospital) -> None:
    shown = hospital.guest.show(
        "scaleoutd-step@test.service", "MemoryMax", "TasksMax", "CPUQuotaPerSecUSec", "Slice", "OOMPolicy"
    )
    assert int(shown["MemoryMax"]) == LIMITS["memory_bytes"] + 24 * MIB and int(shown["TasksMax"]) == LIMITS["processes"] + 8
    assert shown["Slice"] == "scaleoutd-step.slice" and shown["OOMPolicy"] == "continue"
    ended = hospital.trail("run-ended")
    assert ended and any("cgroup" in item for item in ended[-1]["enforced"])
