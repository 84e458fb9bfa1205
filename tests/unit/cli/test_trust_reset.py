# SPDX-License-Identifier: Apache-2.0
"""`trust reset --state-dir` with a real ledger: on record first, then in the runner's floors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from scaleoutd.cli.foreground import Folders
from scaleoutd.cli.signing import now
from scaleoutd.core.policy import parse_policy_yaml
from scaleoutd.core.trust import verify_chain
from scaleoutd.runner.room import read_floors
from tests.e2e.site import Project, write_policy

ROOT = Path(__file__).resolve().parents[3]


def reset(state: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scaleoutd.cli.scaleoutctl", "trust", "reset", "--state-dir", str(state), *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_a_reset_in_the_foreground_is_on_record_and_in_the_floors(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    project.write("x = 1\n")
    root_file = project.write_trust_root(tmp_path / "root.json")
    folders = Folders(tmp_path / "state")
    folders.make(parse_policy_yaml(write_policy(tmp_path / "policy.yaml", project, root_file).read_bytes()))
    for words in (("--reason", "lost key"), ("--clock", "--reason", "battery")):
        run = reset(folders.state, *words)
        assert run.returncode == 0, run.stderr
    digest = verify_chain([root_file.read_bytes()], now()).digest()
    floors = read_floors(folders.runner / "floors.json")
    assert (floors.root_version, floors.root_sha256) == (1, digest)
    trail = "".join(path.read_text() for path in folders.audit.glob("*.jsonl"))
    assert "trust-root-reset" in trail and "clock-floor-lowered" in trail and "lost key" in trail and digest in trail
    assert reset(folders.state).returncode == 64  # a reason is asked for


def test_where_no_node_is_the_refusal_says_how_to_name_one(tmp_path: Path) -> None:
    run = reset(tmp_path, "--reason", "lost key")
    assert run.returncode == 78 and "[config-missing]" in run.stderr
    assert str(tmp_path / "policy.lock") in run.stderr and "--state-dir" in run.stderr
