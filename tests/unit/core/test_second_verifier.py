# SPDX-License-Identifier: Apache-2.0
"""Ours and tools/verify_manifest.py, which shares no code with it, on the corpus of tests/vectors/trust: the same verdicts."""

from __future__ import annotations

import ast
import base64
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from scaleoutd.core.clock import Floors, Now
from scaleoutd.core.manifest import verify_manifest
from scaleoutd.core.trust import RootPin, verify_chain
from scaleoutd.errors import ScaleoutError
from tests.vectors import make_corpus

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = ROOT / "tools/verify_manifest.py"
CORPUS: dict[str, Any] = json.loads((ROOT / "tests/vectors/trust/cases.json").read_text())
CASES: list[dict[str, Any]] = CORPUS["cases"]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("verify_manifest", PROGRAM)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SECOND = load()


def ours(case: dict[str, Any]) -> str:
    now = Now(CORPUS["at_ms"], 0, synchronised=True)
    floors = Floors(case.get("time_ms", 0), 0, case.get("manifest_versions", {}))
    pin = RootPin(*case["pin"]) if "pin" in case else None
    try:
        documents = [base64.b64decode(text) for text in case["roots_b64"]]
        root = verify_chain(documents, now, floor_version=case.get("root_version", 0), pin=pin)
        verify_manifest(base64.b64decode(case["envelope_b64"]), root, now, floors, project=case.get("project"))
    except ScaleoutError as exc:
        return exc.code
    return "accepted"


def theirs(case: dict[str, Any]) -> str:
    try:
        documents = [base64.b64decode(text) for text in case["roots_b64"]]
        pin = tuple(case["pin"]) if "pin" in case else None
        root = SECOND.verify_chain(documents, CORPUS["at_ms"], case.get("root_version", 0), pin)
        known = {"time_ms": case.get("time_ms", 0), "manifest_versions": case.get("manifest_versions", {})}
        envelope = base64.b64decode(case["envelope_b64"])
        SECOND.verify_manifest(envelope, root, CORPUS["at_ms"], known, case.get("project"))
    except SECOND.Refused as exc:
        return str(exc.code)
    return "accepted"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"].replace(" ", "-"))
def test_both_reach_the_verdict_of_the_corpus(case: dict[str, Any]) -> None:
    assert (ours(case), theirs(case)) == (case["code"], case["code"])


def test_the_corpus_is_what_its_script_makes_and_is_large() -> None:
    made = make_corpus.make_cases()
    assert [(case["name"], case["code"]) for case in made] == [(case["name"], case["code"]) for case in CASES]
    assert len({case["name"] for case in CASES}) == len(CASES) >= 100
    assert sum(case["code"] == "accepted" for case in CASES) >= 25
    for case in made:
        assert ours(case) == case["code"], case["name"]


def test_the_second_verifier_is_one_file_of_the_standard_library_for_python_3_9() -> None:
    tree = ast.parse(PROGRAM.read_text(), feature_version=(3, 9))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names <= set(sys.stdlib_module_names)
    assert not any(isinstance(node, ast.Match) for node in ast.walk(tree))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signed project and its trust root, made by the commands."""
    folder = tmp_path_factory.mktemp("second")
    for words in (
        "init p", "keygen --out k --name root", "keygen --out k --name ml --algorithm p256",
        "trust init --out trust --sign-with k/root.key --key ml=k/ml.pub", "sign p --key k/ml.key",
    ):  # fmt: skip
        command = [sys.executable, "-m", "scaleoutd.cli.scaleoutctl", *words.split()]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    return folder


def run(folder: Path, project: str = "p") -> tuple[str, str]:
    """The verdicts of both programs on a folder, as processes."""
    second = subprocess.run(
        ["/usr/bin/python3", "-I", str(PROGRAM), project, "--trust-root", "trust"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    first = subprocess.run(
        [sys.executable, "-m", "scaleoutd.cli.scaleoutctl", "verify", project, "--trust-root", "trust"],
        cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    code = second.stdout.partition("[")[2].partition("]")[0] if second.returncode else "accepted"
    assert second.returncode in (0, 1), second.stderr
    return ("accepted" if first.returncode == 0 else first.stderr.rpartition("[")[2].partition("]")[0], code)


@pytest.mark.parametrize(
    ("code", "act"),
    [
        ("accepted", lambda p: None),
        ("accepted", lambda p: (p / "__pycache__").mkdir()),
        ("file-changed", lambda p: (p / "train.py").write_text("print(2)")),
        ("file-missing", lambda p: (p / "train.py").unlink()),
        ("file-extra", lambda p: (p / "extra.py").write_text("")),
        ("file-mode", lambda p: (p / "train.py").chmod(0o755)),
        ("file-mode", lambda p: (p / "train.py").chmod(0o4644)),
        ("file-type", lambda p: (p / "link").symlink_to("train.py")),
        ("file-type", lambda p: os.mkfifo(p / "fifo")),
        ("file-type", lambda p: os.link(p / "train.py", p.parent / f"{p.name}-outside")),
        ("file-name", lambda p: (p / "TRAIN.py").write_text("")),
        ("file-name", lambda p: (p / "a\nb").write_text("")),
    ],
    ids=[
        "untouched", "ignored", "changed", "missing", "extra", "executable", "setuid", "symlink", "fifo", "hard-link", "spelling",
        "line-break",
    ],
)  # fmt: skip
def test_both_programs_say_the_same_of_a_folder(project: Path, request: pytest.FixtureRequest, code: str, act: Any) -> None:
    name = request.node.callspec.id
    subprocess.run(["cp", "-a", "p", name], cwd=project, check=True)
    act(project / name)
    assert run(project, name) == (code, code)
