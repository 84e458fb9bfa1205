# SPDX-License-Identifier: Apache-2.0
"""`startup` of a dispatcher project: once before the first task of a start and after a change, confined, on record, signed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from scaleoutd.errors import ScaleoutError
from scaleoutd.runner.runs import run_name
from tests.unit.runner.taken_agent import Bench

STARTUP = """
import os, sys
print("started up", sys.argv[1:], os.getcwd(), os.environ["SCALEOUTD_TASK"], os.listdir("/in"), flush=True)
open("/scratch/out/left", "w").write("x")
"""
STEPS = {"train": ("python", "train.py"), "startup": ("python", "startup.py")}


class StartingUp(Bench):
    """A bench whose project has a startup command."""

    version = 1

    def change(self, startup: str) -> None:
        self.version += 1
        (self.project.folder / "startup.py").write_text(startup)
        self.project.sign(version=self.version, steps=STEPS)

    def said(self, correlation_id: str) -> str:
        path = self.state / "output" / f"{run_name(correlation_id)}.log"
        return path.read_text() if path.exists() else ""

    def fail(self, correlation_id: str) -> ScaleoutError:
        agent = self.agent()
        agent.offer(correlation_id)
        agent.send_model()
        with pytest.raises(ScaleoutError) as caught:
            agent.answer()
        return caught.value


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[StartingUp]:
    with StartingUp(tmp_path) as bench:
        yield bench


def test_it_runs_once_without_a_model_and_before_the_task(bench: StartingUp) -> None:
    bench.change(STARTUP)
    bench.complete("one")
    bench.complete("two")
    assert bench.said("one").splitlines() == ["started up [] /project startup []", "ran", "trained"]
    assert bench.said("two").splitlines() == ["ran", "trained"]


def test_it_runs_again_after_a_change_and_after_a_start_of_the_node(bench: StartingUp) -> None:
    bench.change(STARTUP)
    bench.complete("one")
    bench.change(STARTUP + "\nprint('changed')\n")
    bench.complete("two")
    assert "started up" in bench.said("two") and "changed" in bench.said("two")
    bench.complete("three")
    assert "started up" not in bench.said("three")
    bench.settle()
    bench.runner.room.instances.close()
    bench.start()
    bench.complete("four")
    assert "started up" in bench.said("four")


def test_what_it_leaves_is_gone_when_the_task_runs(bench: StartingUp) -> None:
    (bench.project.folder / "train.py").write_text(
        "import os\nassert not os.path.exists('/scratch/out/left')\n" + (bench.project.folder / "train.py").read_text()
    )
    bench.change(STARTUP)
    bench.complete("one")


def test_when_it_fails_no_task_runs_and_the_next_task_tries_it_again(bench: StartingUp) -> None:
    bench.change("raise SystemExit(3)\n")
    error = bench.fail("one")
    assert error.code == "step-failed"
    failed = bench.recorded("run-failed")[-1]
    assert failed["stage"] == "startup" and failed["message"].startswith("cannot finish startup: ")
    assert not bench.recorded("run-about-to-start") and bench.times_run("one") == 0
    bench.change(STARTUP)
    bench.complete("two")


def test_it_is_on_record_before_it_runs(bench: StartingUp) -> None:
    bench.change(STARTUP)
    bench.complete("one")
    before = bench.recorded("startup-about-to-run")
    ended = [body for body in bench.recorded("run-ended") if body["task"] == "startup"]
    assert len(before) == len(ended) == 1
    assert before[0]["command"] == ["python", "startup.py"] and before[0]["run"] == run_name("one")
    assert (ended[0]["ended"], ended[0]["exit_status"]) == ("exited", 0)
    types = bench.ledger.types()
    assert types.index("startup-about-to-run") < types.index("run-ended") < types.index("run-about-to-start")


def test_without_a_record_it_does_not_run(bench: StartingUp) -> None:
    bench.change(STARTUP)
    bench.ledger.fail_on("startup-about-to-run")
    assert bench.fail("one").code.startswith("ledger")
    assert bench.said("one") == ""
    bench.ledger.heal()
    bench.complete("one")
    assert "started up" in bench.said("one")


ATTEMPTS = {
    "a socket": "import socket; socket.create_connection(('127.0.0.1', 9))",
    "the project": "open('/project/train.py', 'a')",
    "the host": "open('/etc/shadow')",
}


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=str)
def test_it_is_as_confined_as_a_step(bench: StartingUp, attempt: str) -> None:
    bench.change(ATTEMPTS[attempt] + "\n")
    assert bench.fail("one").code == "step-failed"
    assert "Error" in bench.said("one")
    bench.change("open('/tmp/fine', 'w').write('control')\n")
    bench.complete("two")


def test_only_a_command_that_was_signed_runs(bench: StartingUp) -> None:
    """scaleout.yaml in the folder says more than the manifest: the file differs from what was signed, so nothing runs."""
    (bench.project.folder / "scaleout.yaml").write_text(
        "entry_points:\n  train: {command: python train.py}\n  startup: {command: python startup.py}\n"
    )
    agent = bench.agent()
    agent.offer("one")
    with pytest.raises(ScaleoutError) as caught:
        agent.take_file()
    assert caught.value.code == "file-changed"
    assert not bench.recorded("startup-about-to-run")
    # The control: the same words, signed without the command, run no startup; signed with it, they do.
    bench.project.sign(version=2)
    bench.complete("two")
    assert not bench.recorded("startup-about-to-run")
    bench.version = 2
    bench.change(STARTUP)
    bench.complete("three")
    assert bench.recorded("startup-about-to-run")


def test_settings_and_what_the_combiner_says_do_not_reach_it(bench: StartingUp) -> None:
    bench.change("import os; print(dict(os.environ), flush=True)\n")
    bench.complete("mark-correlation", settings=json.dumps({"mark": "mark-settings"}), round_id="mark-round")
    assert "SCALEOUTD_TASK" in bench.said("mark-correlation") and "mark-" not in bench.said("mark-correlation")
