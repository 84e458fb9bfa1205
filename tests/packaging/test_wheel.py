# SPDX-License-Identifier: Apache-2.0
"""The built wheel in an empty environment: a round in the foreground, far from the repository; and what a missing file does.

What comes from where is in wheel.py.  Only the combiner of the round runs from the repository, as a server would be elsewhere.
"""

from __future__ import annotations

import json
import platform
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from scaleoutd.devcombiner.server import DevCombiner
from tests.packaging.wheel import ROOT, Installed, build_wheel, without

MACHINE = platform.machine()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed"), wheel)


@pytest.fixture
def combiner() -> Iterator[DevCombiner]:
    with DevCombiner(client_certificate="none") as started:
        yield started


def test_the_environment_has_nothing_of_the_repository(installed: Installed) -> None:
    script = (
        "import sys, scaleoutd\n"
        f"assert not [path for path in sys.path if path.startswith({str(ROOT)!r})], sys.path\n"
        "try:\n    import tests\nexcept ModuleNotFoundError:\n    print(scaleoutd.__file__)\n"
    )
    run = installed.call("python", "-c", script)
    assert run.returncode == 0, run.stderr
    assert Path(run.stdout.strip()).is_relative_to(installed.venv)


def test_the_programs_say_their_version_and_each_command_can_be_imported(installed: Installed) -> None:
    for program in ("scaleoutd", "scaleoutctl"):
        run = installed.call(program, "--version")
        assert run.returncode == 0 and "0.1.0" in run.stdout, run.stderr
    script = (
        "import importlib\nfrom scaleoutd.cli.scaleoutctl import COMMANDS\n"
        "for module, _ in COMMANDS.values():\n    importlib.import_module(f'scaleoutd.cli.{module}')\n"
        "for room in ('agent', 'runner', 'ledger'):\n    importlib.import_module(f'scaleoutd.{room}.__main__')\n"
        "import scaleoutd.step.launcher, scaleoutd.devcombiner.server\n"
    )
    run = installed.call("python", "-c", script)
    assert run.returncode == 0, run.stderr


def test_what_is_data_is_there(installed: Installed) -> None:
    """Pages of errors, the example project, the filters: read by the commands that need them."""
    assert "manifest" in installed.call("scaleoutctl", "why", "manifest-expired").stdout
    doctor = json.loads(installed.call("scaleoutctl", "doctor", "--json").stdout)
    failed = [finding for finding in doctor["findings"] if finding["status"] == "fail"]
    assert not failed
    assert (installed.site / "scaleoutd" / "py.typed").exists() and (installed.site / "scaleoutd/proto/edge.proto").exists()


def test_every_data_file_of_the_sources_is_in_the_wheel(installed: Installed) -> None:
    data = [path for path in (ROOT / "scaleoutd").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    missing = [str(path.relative_to(ROOT)) for path in data if not (installed.site / path.relative_to(ROOT)).exists()]
    assert data and not missing


@pytest.mark.timeout(120)
def test_a_round_in_the_foreground(installed: Installed, combiner: DevCombiner) -> None:
    project = installed.home / "my-project"
    assert installed.call("scaleoutctl", "init", project).returncode == 0
    built = installed.call("scaleoutctl", "build", "--project", project, "--out", "seed.npz")
    assert built.returncode == 0, built.stderr
    node = subprocess.Popen(
        [str(installed.venv / "bin/scaleoutd"), "client", "start", "--api-url", combiner.api_url, "--ca", str(combiner.ca_file),
         "--local-package", "--poll-interval", "0.2", "--name", "laptop"],
        cwd=project,
        env={**installed.environment, "SCALEOUT_AUTH_TOKEN": combiner.mint_enrollment()},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    try:
        assert combiner.board.wait_until(lambda: len(combiner.board.connected()) == 1, 30)
        combiner.start_session((installed.home / "seed.npz").read_bytes(), rounds=1, min_clients=1, round_timeout_s=60)
        combiner.wait_session(90)
    finally:
        node.send_signal(signal.SIGTERM)
        said, _ = node.communicate(timeout=120)
    (record,) = combiner.history
    assert record.status == "completed", said
    assert [update.num_examples for update in record.updates.values()] == [400]
    assert str(ROOT) not in said
    states = (installed.home / ".local/state/scaleoutd").glob("my-project-*")
    (trail,) = (state / "audit" for state in states if not state.name.endswith("-local"))  # that one is of `build`
    verified = installed.call("scaleoutctl", "audit", "verify", trail)
    assert verified.returncode == 0, verified.stdout + verified.stderr


BROKEN = {
    "the filter": rf"filters/step\.{MACHINE}\.bpf",
    "the filter of the readers": rf"filters/inspect\.{MACHINE}\.bpf",
    "what pins the filters": r"filters/filters\.json",
}


@pytest.mark.parametrize("what", BROKEN)
def test_without_a_filter_nothing_runs(wheel: Path, tmp_path: Path, what: str) -> None:
    """The control of the round above: one file less in the wheel, and the same step is refused by name."""
    broken = Installed(tmp_path / "installed", without(wheel, BROKEN[what], tmp_path / "dist"))
    project = broken.home / "my-project"
    assert broken.call("scaleoutctl", "init", project).returncode == 0
    (broken.home / "seed.npz").write_bytes(b"PK")
    run = broken.call("scaleoutctl", "run", "train", "--project", project, "--in", "seed.npz", "--json")
    assert run.returncode != 0 and not json.loads(run.stdout)["ok"], run.stdout
    assert "filter" in run.stderr and "Traceback" not in run.stderr, run.stderr
    assert "training on" not in run.stderr


@pytest.mark.parametrize(
    ("pattern", "arguments"), [(r"cli/why/.*\.md", ["why", "manifest-expired"]), (r"cli/template/train\.py", ["init", "p"])]
)
def test_without_its_data_a_command_fails_and_says_so(wheel: Path, tmp_path: Path, pattern: str, arguments: list[str]) -> None:
    broken = Installed(tmp_path / "installed", without(wheel, pattern, tmp_path / "dist"))
    run = broken.call("scaleoutctl", *arguments)
    assert run.returncode != 0
