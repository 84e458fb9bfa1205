# SPDX-License-Identifier: Apache-2.0
"""`scaleoutctl build` on real projects: the same seed as the official client's, confined, checked, and on record."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scaleoutd.cli.init import write_project
from scaleoutd.devcombiner.npz import read_npz
from tests import steps_python
from tests.e2e.official.conftest import official_bin  # noqa: F401  a fixture
from tests.e2e.site import ROOT, Project, events, write_policy

PROJECTS = Path(__file__).parent / "projects"
OUT = 'import os\nout = os.environ["SCALEOUT_BUILD_OUTPUT_DIR"]\n'
# A seed without numpy: the project's own writer.
SEED = OUT + 'import model\nmodel.save(out + "/seed.npz", [0.0] * 4, 0.0)\n'


class Builder:
    """Somebody with a home and a project of the template whose build command is `script`."""

    def __init__(self, folder: Path, script: str = SEED) -> None:
        self.home, self.project = folder / "home", folder / "my-project"
        self.home.mkdir()
        write_project(self.project)
        self.write(script)

    def write(self, script: str) -> None:
        (self.project / "build.py").write_text(script)

    @property
    def state(self) -> Path:
        return self.home / ".local/state/scaleoutd/my-project-local"

    def build(self, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        given = {"PATH": os.environ["PATH"], "HOME": str(self.home), "PYTHONPATH": str(ROOT), **environment}
        command = [sys.executable, "-m", "scaleoutd.cli.scaleoutctl", "build", *map(str, arguments)]
        return subprocess.run(command, cwd=self.project, env=given, capture_output=True, text=True, timeout=120)

    def refused(self) -> str:
        """The code of a build that fails; nothing is left in the folder."""
        run = self.build("--json")
        assert run.returncode != 0, run.stdout + run.stderr
        assert not list(self.project.glob("*.npz")) and not list(self.project.glob(".seed*"))
        told = json.loads(run.stdout)
        assert not told["ok"] and f"[{told['code']}]" in run.stderr
        return str(told["code"])


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


def test_the_seed_is_written_and_its_digest_is_on_record(builder: Builder) -> None:
    run = builder.build("--json")
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    seed = builder.project / "seed.npz"
    sha256 = hashlib.sha256(seed.read_bytes()).hexdigest()
    assert (told["file"], told["sha256"], told["bytes"]) == ("seed.npz", sha256, seed.stat().st_size)
    assert (told["format"], told["arrays"]) == ("npz", 2)
    before, after = events(builder.state, "operator-command")
    assert before["command"] == after["command"] == "build"
    assert before["arguments"][2:] == ["python", "build.py"] and "exit_status" not in before
    assert after["exit_status"] == 0 and sha256 in after["note"]
    assert not list(builder.state.glob("runner/in/*")) and not list(builder.state.glob("runner/scratch/*/*"))


@pytest.mark.parametrize(
    "script",
    [
        "import model\nmodel.save('seed.npz', [0.0] * 4, 0.0)\n",
        "import model\nmodel.save('../seed.npz', [0.0] * 4, 0.0)\n",
    ],
    ids=["in the working folder", "beside the project"],
)
def test_where_official_projects_write_it(builder: Builder, script: str) -> None:
    builder.write(script)
    assert builder.build("--out", "first.npz").returncode == 0
    assert (builder.project / "first.npz").read_bytes().startswith(b"PK")


def test_an_output_folder_and_what_was_there_before(builder: Builder, tmp_path: Path) -> None:
    other = tmp_path / "seeds"
    other.mkdir()
    (other / "seed.npz").write_text("old")
    builder.write("raise SystemExit(1)\n")
    assert builder.build("-o", other).returncode == 1
    assert (other / "seed.npz").read_text() == "old" and len(list(other.iterdir())) == 1
    builder.write(SEED)
    assert builder.build("-o", other).returncode == 0
    assert (other / "seed.npz").read_bytes().startswith(b"PK")


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("print('nothing')\n", "output-missing"),
        (SEED + 'model.save(out + "/other.npz", [0.0], 0.0)\n', "output-unsafe"),
        (OUT + 'os.symlink("/etc/passwd", out + "/seed.npz")\n', "output-unsafe"),
        (OUT + 'os.mkfifo(out + "/seed.npz")\n', "step-failed"),
        (SEED + 'os.link(out + "/seed.npz", "/scratch/home-link")\nos.unlink("/scratch/home-link")\n'
         'os.mkdir("/scratch/d"); os.link(out + "/seed.npz", "/scratch/d/l")\n', "output-unsafe"),
        (OUT + 'import pickle; pickle.dump([1], open(out + "/seed.npz", "wb"))\n', "model-format-denied"),
        (OUT + 'import model; model.save(out + "/seed.npz", [float("nan")], 0.0)\n', "output-not-finite"),
        (SEED + 'os.rename(out + "/seed.npz", out + "/\\x1b[2J.npz")\n', "output-unsafe"),
        ("import socket; socket.create_connection(('127.0.0.1', 9))\n", "step-failed"),
        ("open('/project/train.py', 'a')\n", "step-failed"),
        ("open('/in/model.npz')\n", "step-failed"),
    ],
    ids=["no file", "two files", "a link", "a pipe", "two names", "a pickle", "no number", "a name that fools",
         "the network", "the project", "no model"],
)  # fmt: skip
def test_refused_with_its_code_and_the_control_is_built(builder: Builder, script: str, code: str) -> None:
    builder.write(script)
    assert builder.refused() == code
    failed = events(builder.state, "operator-command")[-1]
    assert failed["code"] == code and failed["exit_status"] != 0
    builder.write(SEED)
    assert builder.build().returncode == 0


def test_data_sets_are_not_there(tmp_path: Path) -> None:
    """With a policy: a project that names a data set trains on it, and cannot build a seed from it."""
    secret = tmp_path / "ward.csv"
    secret.write_text("patient")
    project = Project(tmp_path / "project", data_sets=("ward",))
    project.write()
    (project.folder / "build.py").write_text(
        "import os\nassert not os.path.exists('/data'), 'data'\nassert not [key for key in os.environ if 'DATA' in key]\n"
        f"assert not os.path.exists({str(secret)!r})\n"
        "import zipfile, struct\nheader = str({'descr': '<f8', 'fortran_order': False, 'shape': (1,)}).ljust(117) + chr(10)\n"
        "data = b'\\x93NUMPY\\x01\\x00' + struct.pack('<H', len(header)) + header.encode() + struct.pack('<d', 0.0)\n"
        "zipfile.ZipFile('seed.npz', 'w').writestr('0.npy', data)\n"
    )
    steps = {"train": ("python", "train.py"), "build": ("python", "build.py")}
    project.sign(steps=steps)
    root = project.write_trust_root(tmp_path / "root.json")
    policy = write_policy(tmp_path / "policy.yaml", project, root, data_sets={"ward": {"path": str(secret)}})
    home = tmp_path / "home"
    home.mkdir()

    def build() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "scaleoutd.cli.scaleoutctl", "build", "--policy", str(policy), "--json"]
        given = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=tmp_path, env=given, capture_output=True, text=True, timeout=120)

    run = build()
    assert run.returncode == 0, run.stderr
    # What is in the folder and not in the manifest does not run: the command was not signed, or the file changed.
    project.sign(version=2)
    assert json.loads(build().stdout)["code"] == "task-type-denied"
    project.sign(version=3, steps=steps)
    (project.folder / "build.py").write_text("print('changed')\n")
    assert json.loads(build().stdout)["code"] == "file-changed"


def test_a_file_in_the_place_of_the_command_is_refused_with_what_to_write(builder: Builder) -> None:
    text = (builder.project / "scaleout.yaml").read_text()
    (builder.project / "scaleout.yaml").write_text(text.replace("build:\n    command: python build.py", "build: build.py"))
    run = builder.build()
    assert run.returncode == 77
    assert "importer-project" in run.stderr and "command: python build.py" in run.stderr


@pytest.mark.timeout(180)
def test_official_client_and_ours_build_the_same_seed(tmp_path: Path, official_bin: Path) -> None:  # noqa: F811
    """`scaleout run build` in dispatcher mode, and ours, on the quick start as it is."""
    if cause := steps_python.missing("numpy", "scaleoututil"):
        pytest.skip(cause)
    for name in ("official", "ours"):
        shutil.copytree(PROJECTS / "quickstart-numpy", tmp_path / name)
    (tmp_path / "home").mkdir()
    python = steps_python.FOLDER / "bin"
    given = {"HOME": str(tmp_path / "home"), "PATH": f"{python}:{os.environ['PATH']}"}
    client = tmp_path / "official" / "client"
    subprocess.run(
        [str(official_bin / "scaleout"), "run", "build", "-p", str(client), "-d"],
        cwd=client, env=given, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    run = subprocess.run(
        [sys.executable, "-m", "scaleoutd.cli.scaleoutctl", "build", "-p", "client", "-o", "seed.npz"],
        cwd=tmp_path / "ours", capture_output=True, text=True, timeout=120,
        env={**given, "PYTHONPATH": str(ROOT), "VIRTUAL_ENV": str(steps_python.FOLDER)},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    official, ours = (read_npz(path.read_bytes()) for path in (client / "seed.npz", tmp_path / "ours" / "seed.npz"))
    assert official == ours
