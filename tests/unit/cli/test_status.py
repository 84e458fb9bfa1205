# SPDX-License-Identifier: Apache-2.0
"""`status`, `tasks` and `audit tail` on the folder of a real node: made by `run`, stopped, running, failed and damaged."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scaleoutd.cli.init import write_project
from scaleoutd.cli.status import once_each
from scaleoutd.cli.trailtail import TrailEnd
from tests.unit.ledger.harness import LedgerProcess

PACKAGE = str(Path(__file__).resolve().parents[3])


class Person:
    """Somebody with a home and a project who calls scaleoutctl."""

    def __init__(self, folder: Path) -> None:
        self.home, self.project = folder / "home", folder / "my-project"
        self.home.mkdir()
        write_project(self.project)
        subprocess.run([sys.executable, "build.py", "seed.npz"], cwd=self.project, check=True)

    @property
    def state(self) -> Path:
        return self.home / ".local" / "state" / "scaleoutd" / "my-project-local"

    @property
    def copy(self) -> Path:
        """The state folder as it was after the first two runs."""
        return self.home / "copy"

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", "scaleoutd.cli.scaleoutctl"]

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self.home), "PYTHONPATH": PACKAGE}

    def call(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.command, *map(str, arguments)],
            cwd=self.project,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def status(self, *arguments: str | Path) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.call("status", "--json", *arguments).stdout)
        return told


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Person:
    """With one good run and one that failed."""
    someone = Person(tmp_path_factory.mktemp("person"))
    assert someone.call("run", "train", "--in", "seed.npz").returncode == 0
    text = (someone.project / "validate.py").read_text()
    (someone.project / "validate.py").write_text("raise SystemExit(3)\n")
    assert someone.call("run", "validate", "--in", "seed.npz").returncode == 1
    (someone.project / "validate.py").write_text(text)
    shutil.copytree(someone.state, someone.copy)
    return someone


def test_somebody_without_a_node_is_told_how_to_make_one(tmp_path: Path) -> None:
    nobody = Person(tmp_path)
    run = nobody.call("status")
    assert run.returncode == 3 and "scaleoutctl run" in run.stdout
    assert nobody.status()["nodes"] == []
    assert "config-missing" in nobody.call("tasks").stderr


def test_a_stopped_node(person: Person) -> None:
    run = person.call("status", "--json")
    (node,) = json.loads(run.stdout)["nodes"]
    assert run.returncode == 3 and node["running"] is None
    assert node["project"]["name"] == "my-project" and node["project"]["development"] is True
    assert node["project"]["folder"] == str(person.project) and node["project"]["version"] >= 1
    assert node["tasks"]["by_state"] == {"failed": 1, "forgotten": 1}
    assert node["tasks"]["last"]["code"] == "step-failed"
    assert node["errors"][-1]["code"] == "step-failed" and node["errors"][-1]["event"] == "run-failed"
    assert node["trail"]["events"] > 10 and node["trail"]["signed_events"] == node["trail"]["events"]
    assert node["disk"]["used_bytes"] > 0 and node["problems"] == []


def test_the_keys_that_are_documented_are_the_keys_that_are_there(person: Person) -> None:
    """docs/command-line.md is what scripts are written against."""
    text = (Path(PACKAGE) / "docs" / "command-line.md").read_text()
    (node,) = person.status()["nodes"]
    (row, *_) = json.loads(person.call("tasks", "--json").stdout)["tasks"]
    for key in (*node, *node["project"], *node["tasks"], *node["trail"], *node["disk"], *node["errors"][0], *row):
        assert f"`{key}`" in text, f"{key} is not documented"


def test_one_screen_for_people(person: Person) -> None:
    text = person.call("status").stdout
    assert len(text.splitlines()) <= 16
    for word in (
        "my-project",
        "running    no",
        "expires in",
        "2: 1 failed, 1 forgotten",
        "scaleoutctl why step-failed",
        "checkpoint",
    ):
        assert word in text, text


def test_tasks_are_listed_and_filtered(person: Person) -> None:
    rows = json.loads(person.call("tasks", "--json").stdout)["tasks"]
    assert [(row["task"], row["state"]) for row in rows] == [("train", "forgotten"), ("validate", "failed")]
    assert [row["task"] for row in json.loads(person.call("tasks", "--state", "failed", "--json").stdout)["tasks"]] == [
        "validate"
    ]
    assert "[step-failed]" in person.call("tasks", "-n", "1").stdout


def test_nothing_is_written_by_looking(person: Person) -> None:
    state = person.home / ".local" / "state"
    before = {path: path.lstat().st_mtime_ns for path in state.rglob("*")}
    for command in (["status"], ["tasks"], ["audit", "tail"]):
        person.call(*command)
    assert {path: path.lstat().st_mtime_ns for path in state.rglob("*")} == before


@pytest.fixture
def running(person: Person) -> Iterator[subprocess.Popen[str]]:
    """A node whose step waits until its parent ends it."""
    text = (person.project / "train.py").read_text()
    (person.project / "train.py").write_text("print('here', flush=True)\nimport time\ntime.sleep(600)\n")
    command = [*person.command, "run", "train", "--in", "seed.npz"]
    process = subprocess.Popen(command, cwd=person.project, env=person.environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    for line in process.stderr:
        if "here" in line:
            break
    yield process
    process.send_signal(signal.SIGINT)
    process.stderr.close()
    process.wait(60)
    (person.project / "train.py").write_text(text)


def test_a_running_node_is_found_by_its_folder(person: Person, running: subprocess.Popen[str]) -> None:
    run = person.call("status", "--json")
    told = json.loads(run.stdout)
    node = told["nodes"][0]
    assert run.returncode == 0
    assert node["running"]["pid"] == running.pid and set(node["running"]["rooms"]) == {"ledger", "runner"}
    assert abs(told["time_ms"] - node["running"]["since_ms"]) < 60_000
    assert node["tasks"]["last"]["state"] == "about-to-run"
    assert f"pid {running.pid} for" in person.call("status").stdout


def test_a_damaged_state_file_is_named_and_the_rest_is_shown(person: Person, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(person.copy, copy)
    broken = next(copy.glob("runner/runs/*/state"))
    broken.write_bytes(broken.read_bytes().replace(b'"n":0', b'"n":7'))
    run = person.call("status", "--json", "--state-dir", copy)
    (node,) = json.loads(run.stdout)["nodes"]
    assert run.returncode == 1
    assert str(broken.parent) in node["problems"][0]
    assert node["tasks"]["total"] == 1


def test_a_torn_last_line_is_not_an_error(person: Person, tmp_path: Path) -> None:
    """The node may be in the middle of an append while we look."""
    copy = tmp_path / "copy"
    shutil.copytree(person.copy, copy)
    for path in (next(copy.glob("runner/runs/*/state")), next(copy.glob("audit/*.jsonl"))):
        with path.open("ab") as file:
            file.write(b'{"half')
    (node,) = person.status("--state-dir", copy)["nodes"]
    assert node["problems"] == [] and node["tasks"]["total"] == 2


def test_a_folder_that_is_no_nodes(person: Person, tmp_path: Path) -> None:
    run = person.call("status", "--state-dir", tmp_path)
    assert run.returncode == 78 and "policy.lock" in run.stderr


# --- audit tail ---------------------------------------------------------------------------------------------------


def test_the_last_events_as_lines_and_as_json(person: Person) -> None:
    lines = person.call("audit", "tail", "-n", "3").stdout.splitlines()
    assert len(lines) == 3 and "ledger-stopped" in lines[-1]
    told = [json.loads(line) for line in person.call("audit", "tail", "-n", "3", "--json").stdout.splitlines()]
    assert [item["type"] for item in told][-1] == "ledger-stopped"
    assert told[0]["sequence"] + 2 == told[2]["sequence"]


def test_following_shows_each_event_once_over_segments(tmp_path: Path) -> None:
    """A real ledger rotates its segments while the follower reads."""
    folder = tmp_path / "audit"
    ledger = LedgerProcess(folder, "--segment-bytes", "30000").ready()
    client = ledger.client("runner")
    end = TrailEnd(folder)
    first = end.last(1)[0].sequence
    seen: list[int] = []
    writer = threading.Thread(target=lambda: [client.record("computed", run=f"r{n}", note="x" * 400) for n in range(120)])
    writer.start()
    while writer.is_alive():
        seen += [item.sequence for item in end.more()]
    writer.join()
    ledger.stop()
    seen += [item.sequence for item in end.more()]
    assert len(list(folder.glob("*.jsonl"))) >= 3
    assert seen == list(range(first + 1, first + 1 + len(seen))) and len(seen) >= 120


def test_follow_prints_what_comes_until_it_is_interrupted(tmp_path: Path) -> None:
    state = tmp_path / "state"
    ledger = LedgerProcess(state / "audit").ready()
    (state / "policy.lock").write_text("{}")
    client = ledger.client("runner")
    command = [sys.executable, "-m", "scaleoutd.cli.scaleoutctl", "audit", "tail", "-f", "-n", "1", "--state-dir", str(state)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": PACKAGE})
    assert process.stdout and "ledger-started" in process.stdout.readline()
    client.record("computed", run="after")
    assert "run=after" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    process.stdout.close()
    ledger.stop()


def test_an_error_that_comes_again_and_again_is_one_line_with_its_last_time() -> None:
    refused = {"code": "tls-failed", "message": "cannot connect", "event": "connection-refused"}
    other = {"code": "step-failed", "message": "", "event": "run-failed", "time_ms": 3}
    errors: list[dict[str, object]] = [refused | {"time_ms": 1}, refused | {"time_ms": 2}, other, refused | {"time_ms": 4}]
    assert [(error["time_ms"], times) for error, times in once_each(errors)] == [(3, 1), (4, 3)]
