# SPDX-License-Identifier: Apache-2.0
"""Steps of a running node that take too much: each is bounded, reported by its code, on record, and the node goes on.

One node and one signed project; the combiner's client_settings choose what the step does wrong.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from scaleoutd.devcombiner.npz import flat, write_npz
from scaleoutd.devcombiner.server import DevCombiner
from scaleoutd.runner.runs import run_name
from tests.e2e.site import Site, wait_until
from tests.living import below, files_below
from tests.processes import descendants

MIB = 1024**2
LIMITS = {
    "wall_clock_s": 2,
    "cpu_s": 1,
    "memory_bytes": 160 * MIB,
    "processes": 24,
    "open_files": 64,
    "file_size_bytes": 8 * MIB,
    "scratch_bytes": 24 * MIB,
    "output_bytes": 2 * MIB,
    "stdout_bytes": 64 * 1024,
    "tmp_bytes": 8 * MIB,
    "shm_bytes": 8 * MIB,
    "model_bytes": 4 * MIB,
}
ATTACKS = """
import os, time
attack = json.load(open(source + "-metadata")).get("attack")
if attack == "fork bomb":
    while True:
        try:
            os.fork()
        except OSError:
            time.sleep(0.01)
elif attack == "too many processes":
    for _ in range(100):
        if os.fork() == 0:
            time.sleep(30)
elif attack == "memory":
    hog = []
    while True:
        hog.append(bytearray(b"x") * (8 << 20))
elif attack == "many files":
    for number in range(1000):
        open(f"/scratch/f{number}", "wb").write(bytes(4 << 20))
elif attack == "one file":
    with open("/scratch/big", "wb") as file:
        while True:
            file.write(bytes(1 << 20))
elif attack == "sleep":
    time.sleep(60)
elif attack == "spin":
    while True:
        pass
elif attack == "large output":
    data = bytes(3 << 20)
elif attack == "large metadata":
    open(target, "wb").write(data)
    json.dump({"num_examples": 7, "loss": "x" * 100_000}, open(target + "-metadata", "w"))
    sys.exit()
elif attack == "flood":
    for _ in range(1000):
        print("x" * 8000)
elif attack == "tmp":
    open("/tmp/big", "wb").write(bytes(7 << 20)); open("/tmp/more", "wb").write(bytes(7 << 20))
elif attack == "survivor":
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(1000)
        os._exit(0)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with DevCombiner() as combiner, Site(tmp_path_factory.mktemp("site"), combiner, train_body=ATTACKS, limits=LIMITS) as site:
        site.start()
        yield site


@dataclass(frozen=True)
class Case:
    codes: tuple[str, ...]
    at_most: dict[str, int] = field(default_factory=dict)  # of run-ended
    at_least: dict[str, int] = field(default_factory=dict)


CASES = {
    # Which of its limits it meets first depends on the machine.
    "fork bomb": Case(("limit-processes", "limit-wall-clock", "limit-cpu"), {"wall_ms": 4000}, {"cpu_ms": 100}),
    "too many processes": Case(("limit-processes",), {"wall_ms": 2000}),
    "memory": Case(("limit-memory",), {"max_rss_bytes": 200 * MIB}, {"max_rss_bytes": 40 * MIB}),
    "many files": Case(("limit-scratch",), {"scratch_bytes": 96 * MIB}, {"scratch_bytes": 24 * MIB}),
    "one file": Case(("limit-file-size",), {"scratch_bytes": 9 * MIB}),
    "sleep": Case(("limit-wall-clock",), {"wall_ms": 4000, "cpu_ms": 1000}),
    "spin": Case(("limit-cpu", "limit-wall-clock"), {"cpu_ms": 3500}, {"cpu_ms": 300}),
    "large output": Case(("limit-output",)),
    "large metadata": Case(("limit-output", "metrics-invalid")),
    "tmp": Case(("step-failed",)),  # no space left on a device of its own
}


def attack(site: Site, name: str) -> Any:
    return site.task(client_settings={"attack": name})


def ended(site: Site, correlation_id: str) -> dict[str, Any]:
    (event,) = site.events("run-ended", correlation_id=correlation_id)
    return event


def goes_on(site: Site) -> None:
    offer = site.task()
    assert offer.status == "COMPLETED", offer
    assert ended(site, offer.correlation_id)["exit_status"] == 0


@pytest.mark.parametrize("name", CASES)
def test_what_takes_too_much_is_ended_reported_by_its_code_and_the_node_goes_on(name: str, site: Site) -> None:
    case = CASES[name]
    offer = attack(site, name)
    assert offer.status == "FAILED"
    code = json.loads(offer.response)["code"]
    assert code in case.codes
    event = ended(site, offer.correlation_id)
    for key, most in case.at_most.items():
        assert event[key] <= most, (key, event)
    for key, least in case.at_least.items():
        assert event[key] >= least, (key, event)
    (failed,) = site.events("run-failed", correlation_id=offer.correlation_id)
    assert failed["code"] == code
    assert not site.events("computed", "release", correlation_id=offer.correlation_id)
    assert offer.result_at_s is None
    goes_on(site)


def test_a_step_that_floods_its_output_is_cut_not_ended(site: Site) -> None:
    """What it computed is as good as before; the text that is dropped is counted on record."""
    offer = attack(site, "flood")
    assert offer.status == "COMPLETED"
    event = ended(site, offer.correlation_id)
    assert event["stdout_bytes"] == LIMITS["stdout_bytes"]
    assert event["stdout_bytes"] + event["stdout_dropped_bytes"] == 1000 * 8001 + len("trained\n")
    output = site.state / "runner" / "output" / f"{run_name(offer.correlation_id)}.log"
    assert output.stat().st_size <= LIMITS["stdout_bytes"] + 200  # and a line that says so
    goes_on(site)


def test_a_model_above_the_limit_is_not_received(site: Site) -> None:
    assert site.combiner is not None
    model = write_npz({"0": flat("f8", (MIB,), [0.0] * MIB)})
    offer = site.task(model_id=site.combiner.put_model(model))
    assert (offer.status, json.loads(offer.response)["code"]) == ("FAILED", "limit-model")
    assert not site.events("run-about-to-start", correlation_id=offer.correlation_id)
    goes_on(site)


def test_no_process_outlives_its_step(site: Site) -> None:
    before = descendants(os.getpid())
    offer = attack(site, "survivor")
    assert offer.status == "COMPLETED"
    assert ended(site, offer.correlation_id)["killed_processes"] >= 1
    # A spare launcher may have come; a process that sleeps in train.py must be gone.
    left = [command for pid, command in descendants(os.getpid()).items() if pid not in before and "train.py" in command]
    assert not left


def test_control_the_step_is_seen_while_it_lives(site: Site) -> None:
    correlation_id = site.offer(client_settings={"attack": "sleep"})
    deadline = time.monotonic() + 60
    while not any("train.py" in command for command in descendants(os.getpid()).values()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert site.wait(correlation_id).status == "FAILED"
    assert not any("train.py" in command for command in descendants(os.getpid()).values())


def test_scratch_and_tmp_are_empty_for_the_next_run(site: Site) -> None:
    attack(site, "many files")
    goes_on(site)
    scratch = site.state / "runner" / "scratch"  # emptied when the result is out
    wait_until(lambda: not [*files_below(scratch)], 60, lambda: str([*below(scratch)]))
