# SPDX-License-Identifier: Apache-2.0
"""Projects in the style of the official quick start run unchanged: the same rounds with the official client and with our node.

Two clients with data of their own, two rounds; the averaged models of both sides agree within float tolerance.  Steps run with
one Python on both sides (tests/steps_python.py), ours by the active virtual environment as a user would have it.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from scaleoutd.devcombiner.npz import FlatArray
from scaleoutd.devcombiner.records import RoundRecord
from scaleoutd.devcombiner.server import DevCombiner
from tests import steps_python
from tests.e2e.official.client import official_client
from tests.e2e.official.conftest import official_bin  # noqa: F401  a fixture
from tests.e2e.site import NodeProcess

PROJECTS = Path(__file__).parent / "projects"
PYTHON = steps_python.FOLDER / "bin" / "python"
MODULES = {"quickstart-numpy": ("numpy", "sklearn", "scaleoututil"), "quickstart-torch": ("torch", "sklearn", "scaleoututil")}
SPLIT = """\
import sys
import numpy as np
from sklearn.datasets import load_digits
x, y = load_digits(return_X_y=True)
x = (x / 16).astype("float32")
for number, path in enumerate(sys.argv[1:]):
    part = slice(number * 600, number * 600 + 400 + 100 * number), slice(1400, 1700)
    pieces = zip(("train", "test"), part)
    data = {f"{kind}_{name}": value[piece] for name, piece in pieces for kind, value in (("x", x), ("y", y))}
    if path.endswith(".pt"):
        import torch
        torch.save({key: torch.from_numpy(value) for key, value in data.items()}, path)
    else:
        np.savez(path, **data)
"""


def prepare(folder: Path, project: str) -> tuple[list[Path], bytes]:
    """Two copies of the project, each with its own data, and the seed model that its build step makes."""
    copies = [folder / "ward-1", folder / "ward-2"]
    suffix = "pt" if project.endswith("torch") else "npz"
    files = [copy / "client/data/clients/1" / f"digits.{suffix}" for copy in copies]
    for copy, file in zip(copies, files, strict=True):
        shutil.copytree(PROJECTS / project, copy)
        file.parent.mkdir(parents=True)
    subprocess.run([str(PYTHON), "-c", SPLIT, *map(str, files)], check=True)
    seed = folder / "seed.npz"
    subprocess.run([str(PYTHON), "model.py", str(seed)], cwd=copies[0] / "client", check=True)
    return copies, seed.read_bytes()


def two_rounds(combiner: DevCombiner, seed: bytes) -> list[RoundRecord]:
    assert combiner.board.wait_until(lambda: len(combiner.board.connected()) == 2, 90)
    combiner.start_session(seed, rounds=2, min_clients=2, round_timeout_s=90, client_settings={"epochs": 2})
    combiner.wait_session(200)
    return combiner.history


def our_node(stack: ExitStack, combiner: DevCombiner, copy: Path, folder: Path) -> NodeProcess:
    """As a user starts it: the project folder, no policy, the virtual environment active."""
    home = folder / f"home-{copy.name}"
    home.mkdir()
    arguments = ["--api-url", combiner.api_url, "--ca", str(combiner.ca_file), "--project", str(copy / "client")]
    node = NodeProcess(
        [*arguments, "--name", copy.name, "--local-package", "--poll-interval", "0.2", "--state-dir", str(home / "state")],
        combiner.mint_enrollment(),
        {"VIRTUAL_ENV": str(steps_python.FOLDER), "HOME": str(home)},
    )
    stack.callback(node.stop)
    return node


@pytest.mark.timeout(300)
@pytest.mark.parametrize("project", sorted(MODULES))
def test_official_client_and_our_node_compute_the_same_average(project: str, tmp_path: Path, official_bin: Path) -> None:  # noqa: F811
    if cause := steps_python.missing(*MODULES[project]):
        pytest.skip(cause)
    copies, seed = prepare(tmp_path, project)
    with ExitStack() as stack:
        combiner = stack.enter_context(DevCombiner(client_certificate="none"))
        for copy in copies:
            first = [steps_python.FOLDER / "bin"]
            stack.enter_context(official_client(official_bin, combiner, copy, copy.name, "--dispatcher", first_on_path=first))
        official = two_rounds(combiner, seed)
        logs = "\n".join((copy / "client.log").read_text()[-3000:] for copy in copies)
        assert [record.status for record in official] == ["completed", "completed"], logs
        expected = combiner.arrays(official[-1].new_model_id)
    with ExitStack() as stack:
        combiner = stack.enter_context(DevCombiner(client_certificate="none"))
        nodes = [our_node(stack, combiner, copy, tmp_path) for copy in copies]
        ours = two_rounds(combiner, seed)
        said = "\n".join(node.text for node in nodes)
        assert [record.status for record in ours] == ["completed", "completed"], said
        found = combiner.arrays(ours[-1].new_model_id)
    assert_close(found, expected)
    assert sorted(update.num_examples for update in ours[0].updates.values()) == [400, 500]
    ours_of = {client: metrics["test_accuracy"] for client, metrics in ours[-1].validations.items()}
    assert sorted(ours_of.values()) == pytest.approx(
        sorted(metrics["test_accuracy"] for metrics in official[-1].validations.values()), abs=0.02
    )
    assert min(ours_of.values()) > 0.5, "it learns"


def assert_close(found: dict[str, FlatArray], expected: dict[str, FlatArray]) -> None:
    assert {name: (array.kind, array.shape) for name, array in found.items()} == {
        name: (array.kind, array.shape) for name, array in expected.items()
    }
    for name, array in found.items():
        assert all(
            math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-5) for a, b in zip(array.values, expected[name].values, strict=True)
        ), name


def test_project_that_is_started_by_a_startup_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    client = tmp_path / "client"
    client.mkdir()
    (client / "scaleout.yaml").write_text("entry_points:\n  startup: startup.py\n")
    (client / "startup.py").write_text("def startup(client):\n    pass\n")
    with DevCombiner(client_certificate="none") as combiner:
        node = NodeProcess(
            ["--api-url", combiner.api_url, "--ca", str(combiner.ca_file), "--project", str(client), "--local-package"],
            combiner.mint_enrollment(),
            {"HOME": str(tmp_path), **{key: os.environ[key] for key in ("PATH",)}},
        )
        node.process.wait(90)
        node.stop()
    assert node.process.returncode != 0, node.text
    assert "startup.py" in node.text
    assert "importer-project" in node.text
    assert combiner.board.connected() == []
