# SPDX-License-Identifier: Apache-2.0
"""Ours and tools/verify_manifest.py, which shares no code with it, on the corpus of tests/vectors/trust: the same verdicts."""

from __future__ import annotations

import ast
import base64
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scaleoutd.core.clock import Floors, Now
from scaleoutd.core.ignore import IgnoreRules
from scaleoutd.core.manifest import MANIFEST_NAME, verify_manifest
from scaleoutd.core.trust import RootPin, verify_chain
from scaleoutd.errors import ScaleoutError
from tests.second_verifier import second
from tests.vectors import make_corpus

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = ROOT / "tools/verify_manifest.py"
CORPUS: dict[str, Any] = json.loads((ROOT / "tests/vectors/trust/cases.json").read_text())
CASES: list[dict[str, Any]] = CORPUS["cases"]


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
        root = second.verify_chain(documents, CORPUS["at_ms"], case.get("root_version", 0), pin)
        known = {"time_ms": case.get("time_ms", 0), "manifest_versions": case.get("manifest_versions", {})}
        envelope = base64.b64decode(case["envelope_b64"])
        second.verify_manifest(envelope, root, CORPUS["at_ms"], known, case.get("project"))
    except second.Refused as exc:
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


def older_pythons() -> Iterator[str]:
    """Interpreters of 3.9 and 3.10 that this machine has, on PATH or of pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for version in ("3.9", "3.10"):
        for program in (f"python{version}", *map(str, sorted(pyenv.glob(f"{version}.*/bin/python{version}")))):
            try:
                found = subprocess.run([program, "-c", "import sys; print(sys.version)"], capture_output=True, text=True)
            except FileNotFoundError:
                continue
            if found.returncode == 0 and found.stdout.startswith(f"{version}."):
                yield program
                break


ALL_CASES = """
import base64, importlib.util, json, sys
spec = importlib.util.spec_from_file_location("verify_manifest", sys.argv[1])
second = importlib.util.module_from_spec(spec)
spec.loader.exec_module(second)
corpus = json.load(open(sys.argv[2]))
for case in corpus["cases"]:
    try:
        pin = tuple(case["pin"]) if "pin" in case else None
        documents = list(map(base64.b64decode, case["roots_b64"]))
        root = second.verify_chain(documents, corpus["at_ms"], case.get("root_version", 0), pin)
        known = {"time_ms": case.get("time_ms", 0), "manifest_versions": case.get("manifest_versions", {})}
        second.verify_manifest(base64.b64decode(case["envelope_b64"]), root, corpus["at_ms"], known, case.get("project"))
        print("accepted")
    except second.Refused as exc:
        print(exc.code)
"""


def test_an_older_python_reaches_the_same_verdicts(tmp_path: Path) -> None:
    programs = list(older_pythons())
    if not programs:
        pytest.skip("this machine has no Python 3.9 or 3.10; the syntax alone was checked")
    for program in programs:
        command = [program, "-I", "-c", ALL_CASES, str(PROGRAM), str(ROOT / "tests/vectors/trust/cases.json")]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.stdout.split() == [case["code"] for case in CASES], (program, done.stderr)


def test_both_ignore_the_same() -> None:
    """Random patterns and paths of the few characters that mean something."""
    source = random.Random(6)
    decided = {True: 0, False: 0, None: 0}
    for _ in range(20_000):
        parts = [source.choice(["**", "**/", "/**", "a", "b", *"ab*?[]!^-\\/&|~.x "]) for _ in range(source.randint(1, 7))]
        patterns = ["".join(parts), source.choice(["b*", "!a", "[a-b]/", "x"])]
        names = ["".join(source.choice("ab-]^!x\\.&") for _ in range(source.randint(1, 3))) for _ in range(source.randint(1, 4))]
        path, is_folder = "/".join(names), source.random() < 0.3
        try:
            first: bool | None = IgnoreRules(patterns).ignores(path, is_folder=is_folder)
        except ScaleoutError as exc:
            assert exc.code == "manifest-invalid"
            first = None
        try:
            found = second.is_ignored(path, is_folder, [rule for rule in map(second.ignore_rule, patterns) if rule])
        except second.Refused as exc:
            assert exc.code == "manifest-invalid"
            found = None
        assert first == found, (patterns, path, is_folder)
        decided[first] += 1
    assert min(decided.values()) > 10


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


MOUNTED = ("unshare", "-m", "--propagation", "private", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"')


def run(folder: Path, project: str = "p", within: tuple[str, ...] = ()) -> tuple[str, str]:
    """The verdicts of both programs on a folder, as processes."""
    second = subprocess.run(
        [*within, "/usr/bin/python3", "-I", str(PROGRAM), project, "--trust-root", "trust"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    first = subprocess.run(
        [*within, sys.executable, "-m", "scaleoutd.cli.scaleoutctl", "verify", project, "--trust-root", "trust"],
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
        ("file-name", lambda p: Path(os.fsdecode(bytes(p) + b"/\xff")).write_text("")),
        ("file-type", lambda p: (p / "/".join("d" * 66)).mkdir(parents=True)),
        ("accepted", lambda p: (p / "/".join("d" * 64)).mkdir(parents=True)),
        ("manifest-missing", lambda p: (p / MANIFEST_NAME).unlink()),
        ("file-type", lambda p: ((p / MANIFEST_NAME).rename(p.parent / f"{p.name}-m"),
                                 (p / MANIFEST_NAME).symlink_to(p.parent / f"{p.name}-m"))),
        ("envelope-invalid", lambda p: (p / MANIFEST_NAME).write_text("{}")),
    ],
    ids=[
        "untouched", "ignored", "changed", "missing", "extra", "executable", "setuid", "symlink", "fifo", "hard-link", "spelling",
        "line-break", "not-utf-8", "too-deep", "deep", "no-manifest", "manifest-is-a-link", "no-envelope",
    ],
)  # fmt: skip
def test_both_programs_say_the_same_of_a_folder(project: Path, request: pytest.FixtureRequest, code: str, act: Any) -> None:
    name = request.node.callspec.id
    subprocess.run(["cp", "-a", "p", name], cwd=project, check=True)
    act(project / name)
    assert run(project, name) == (code, code)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")
def test_a_folder_of_another_file_system_is_refused_by_both(project: Path) -> None:
    subprocess.run(["cp", "-a", "p", "mounted"], cwd=project, check=True)
    (project / "mounted/data").mkdir()
    assert run(project, "mounted") == ("accepted", "accepted")  # the control: the same folder without the mount
    assert run(project, "mounted", (*MOUNTED, "mounted/data")) == ("file-type", "file-type")
