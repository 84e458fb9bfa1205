# SPDX-License-Identifier: Apache-2.0
"""Real numeric work (tests/kernel/programs.py) in a step of the shipped unit, offered by a combiner as any task is.

The libraries are those of the machine that tests, bound read-only into the guest as a site has an environment: a prefix with its
own interpreter below /opt, and a venv on top of it.  So no guest's image has to carry PyTorch, and the unit shows what lies
outside /usr.
"""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kernel.programs import SHOW, WORK, lacks
from tests.system.container import Container
from tests.system.guest import Guest
from tests.system.hospital import Hospital
from tests.system.image import BOOKWORM, TRIXIE, missing_for_container
from tests.system.install import install_tree
from tests.system.promises import check_node, check_task

SUITES = (BOOKWORM, TRIXIE)
LIBRARIES = ("numpy", "sklearn", "joblib", "threadpoolctl", "torch", "numba")

PREFIX, VENV = "/opt/science/usr", "/opt/ward/venv"
# Each a process of its own, of a name that no module has; one that fails fails its own case.
RUN_ALL = """
import os, subprocess
here = os.path.dirname(os.path.abspath(__file__))
for name in sorted(os.listdir(here + "/work")):
    done = subprocess.run([sys.executable, here + "/work/" + name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print("WORK " + json.dumps([name.removesuffix("-work.py"), done.returncode, done.stdout]), flush=True)
"""
# What a unit does otherwise, and why: SystemCallFilter=~@resources, so that no step changes how its neighbours are scheduled.
IN_A_UNIT = {"nice 5": "nice refused"}
LIMITS = {"wall_clock_s": 900, "cpu_s": 900, "memory_bytes": 2 << 30, "cpus": 2, "processes": 256, "scratch_bytes": 1 << 30}


@pytest.fixture(scope="module")
def node(suite: str) -> Iterator[Guest]:
    if reason := missing_for_container(suite) or lacks("/usr/bin/python3", LIBRARIES):
        pytest.skip(reason)
    with Container(f"--bind-ro=/usr:{PREFIX}", suite=suite) as guest:
        install_tree(guest)
        # What conda's libraries carry in themselves (RUNPATH) Debian's do not: the prefix's BLAS, the guest's own, then the rest.
        libraries = f"{PREFIX}/lib/{sysconfig.get_config_var('MULTIARCH')}"
        guest.write("/etc/ld.so.conf.d/00-science.conf", f"{libraries}/openblas-pthread\n")
        guest.write("/etc/ld.so.conf.d/zz-science.conf", f"{libraries}\n{PREFIX}/lib\n")
        guest.run("ldconfig")
        guest.run([f"{PREFIX}/bin/python3", "-m", "venv", "--system-site-packages", "--without-pip", VENV], timeout_s=60)
        yield guest


@pytest.fixture(scope="module")
def hospital(node: Guest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    policy = {"environments": {"science": {"python": f"{VENV}/bin/python"}}, "limits": LIMITS}
    with Hospital(node, tmp_path_factory.mktemp("site"), train_body=RUN_ALL, **policy) as site:
        work = site.project.folder / "work"
        work.mkdir()
        for name, program in {**{name: each.program for name, each in WORK.items()}, "show": SHOW}.items():
            (work / f"{name}-work.py").write_text(program)
        site.project.sign()
        site.bring()
        site.start()
        yield site


@pytest.fixture(scope="module")
def done(hospital: Hospital) -> dict[str, tuple[int, str]]:
    """The exit status and output of each program, all of one task."""
    task = hospital.offer()
    hospital.wait(task, timeout_s=900)
    assert check_task(hospital, task) == "COMPLETED", hospital.told()
    run = next(event["run"] for event in hospital.trail("run-about-to-start") if event["correlation_id"] == task)
    printed = hospital.guest.read(f"/var/lib/scaleoutd/runner/output/{run}.log")
    lines = [json.loads(line.removeprefix("WORK ")) for line in printed.splitlines() if line.startswith("WORK ")]
    return {name: (status, output) for name, status, output in lines}


@pytest.mark.parametrize("name", WORK)
def test_it_does_its_work(name: str, done: dict[str, tuple[int, str]]) -> None:
    status, output = done[name]
    lines = {IN_A_UNIT.get(line, line) for line in WORK[name].lines}
    assert status == 0 and lines <= set(output.splitlines()), (status, output)


def test_caches_and_home_lie_in_scratch_and_the_user_has_a_name(done: dict[str, tuple[int, str]]) -> None:
    status, output = done["show"]
    assert status == 0, output
    told: dict[str, Any] = json.loads(output)
    assert told["prefix"] == VENV and told["home"].startswith("/scratch/") and told["threads"] == "2"
    assert told["user"].startswith("scaleoutd-step-")


def test_nothing_of_it_is_left(hospital: Hospital, done: dict[str, tuple[int, str]]) -> None:
    guest = hospital.guest
    guest.wait_units("scaleoutd-runner.service", "StatusText=waits for tasks.*")
    assert hospital.wait(hospital.offer("validate")).status == "COMPLETED", hospital.told()
    check_node(hospital)
