# SPDX-License-Identifier: Apache-2.0
"""`scaleoutctl run` as the README has it: init, build, run, without a server and without a policy; an edit is signed again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.e2e.site import ROOT


def control(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    home = folder.parent / "home"
    home.mkdir(exist_ok=True)
    dropped = ("VIRTUAL_ENV", "CONDA_PREFIX", "XDG_STATE_HOME")
    environment = {key: value for key, value in os.environ.items() if key not in dropped}
    environment |= {"HOME": str(home), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "scaleoutd.cli.scaleoutctl", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_the_readme_s_step_alone_runs_in_development_mode(tmp_path: Path) -> None:
    project = tmp_path / "my-project"
    project.mkdir()
    assert control(project, "init", ".").returncode == 0
    subprocess.run(["/usr/bin/python3", "-B", "build.py", "seed.npz"], cwd=project, check=True, capture_output=True)
    trained = control(project, "run", "train", "--in", "seed.npz", "--out", "update.zip", "--json")
    assert trained.returncode == 0, trained.stdout + trained.stderr
    told = json.loads(trained.stdout)
    assert told["ok"] and told["result"]["num_examples"] > 0
    with zipfile.ZipFile(project / "update.zip") as archive:
        assert archive.testzip() is None and "training_model.bin" in archive.namelist()
    assert control(project, "audit", "verify", told["trail"]).returncode == 0
    script = project / "train.py"
    script.write_text(script.read_text() + "\nprint('edited')\n")
    again = control(project, "run", "validate", "--in", "seed.npz")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "train.py" in again.stderr + again.stdout, "the edit was signed again without a word"
