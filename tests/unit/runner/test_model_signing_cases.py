# SPDX-License-Identifier: Apache-2.0
"""What model-signing 1.1.1 lets pass: each is refused here, or reaches no run because the copy lacks it.

The control of each is model-signing itself, where it is installed (.venv-model-signing): it accepts the same change.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from scaleoutd.cli.signing import now
from scaleoutd.core.clock import Floors
from scaleoutd.core.manifest import verify_manifest
from scaleoutd.core.policy import ProjectRule
from scaleoutd.errors import VerificationError
from scaleoutd.runner.store import take_snapshot
from scaleoutd.runner.verify import check_project, prove, read_envelope
from tests.unit.core.trust_samples import ALICE, BOB, make_root
from tests.unit.runner.signed_project import SignedProject, make_project

THEIRS = Path(__file__).resolve().parents[3] / ".venv-model-signing/bin/python"


@pytest.fixture
def project(tmp_path: Path) -> SignedProject:
    made = make_project(tmp_path / "p")
    assert check_project(made.prove()) == []  # the control of each
    return made


def copied(project: SignedProject, tmp_path: Path) -> list[str]:
    folder = take_snapshot(project.prove(), tmp_path / "store").path
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


SIGNED = ["lib", "lib/model.py", "scaleout.yaml", "train.py"]


def test_a_change_below_git_reaches_no_run(project: SignedProject, tmp_path: Path) -> None:
    (project.path / ".git/hooks").mkdir(parents=True)
    (project.path / ".git/hooks/evil.py").write_text("import os")
    assert copied(project, tmp_path) == SIGNED


def test_files_below_an_ignored_folder_reach_no_run(project: SignedProject, tmp_path: Path) -> None:
    (project.path / "__pycache__").mkdir()
    (project.path / "__pycache__/train.cpython-311.pyc").write_bytes(b"evil")
    assert copied(project, tmp_path) == SIGNED


def test_the_ignore_list_is_signed(project: SignedProject) -> None:
    (project.path / ".scaleoutignore").write_text("evil.py\n")
    (project.path / "evil.py").write_text("")
    codes = {found.code for found in check_project(project.prove())}
    assert codes == {"file-extra"}


def test_setuid_on_a_signed_file_is_refused(project: SignedProject) -> None:
    (project.path / "train.py").chmod(0o4755)
    assert [found.code for found in check_project(project.prove())] == ["file-mode"]


def test_empty_folders_reach_no_run(project: SignedProject, tmp_path: Path) -> None:
    (project.path / "empty/deep").mkdir(parents=True)
    assert copied(project, tmp_path) == SIGNED


def test_a_folder_of_another_name_is_the_same_project_and_another_project_is_not(project: SignedProject, tmp_path: Path) -> None:
    project.path.rename(tmp_path / "lung")
    prove(tmp_path / "lung", project.root, project.policy, Floors(), now())  # names of folders say nothing
    with pytest.raises(VerificationError) as caught:
        policy = replace(project.policy, project=ProjectRule("lung", str(tmp_path / "lung")))
        prove(tmp_path / "lung", project.root, policy, Floors(), now())
    assert caught.value.code == "project-mismatch"


def test_an_older_tree_with_its_older_signature_is_refused(project: SignedProject) -> None:
    older = read_envelope(project.path)
    project.sign()
    accepted = Floors(manifest_versions={"heart": project.prove().manifest.manifest.version})
    with pytest.raises(VerificationError) as caught:
        verify_manifest(older, project.root, now(), accepted)
    assert caught.value.code == "manifest-replayed"


def test_a_signer_whose_time_is_over_signs_nothing(project: SignedProject) -> None:
    with pytest.raises(VerificationError) as caught:
        prove(project.path, replace(project.root, expires_ms=now().wall_ms - 1), project.policy, Floors(), now())
    assert caught.value.code == "trust-root-invalid"


def test_one_signature_of_two_is_not_enough(project: SignedProject) -> None:
    root = make_root({"ml": ([ALICE], 1), "security": ([BOB], 1)}, expires_ms=now().wall_ms + 10**9)
    with pytest.raises(VerificationError) as caught:
        prove(project.path, root, project.policy, Floors(), now())
    assert caught.value.code == "signature-threshold"


class TheirProject:
    """A folder that model-signing signed with a P-256 key."""

    def __init__(self, folder: Path) -> None:
        self.key, self.path, self.signature = folder / "key", folder / "heart", folder / "signature"
        key = ec.generate_private_key(ec.SECP256R1())
        pem = serialization.Encoding.PEM
        self.key.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
        spki = serialization.PublicFormat.SubjectPublicKeyInfo
        self.key.with_suffix(".pub").write_bytes(key.public_key().public_bytes(pem, spki))
        self.path.mkdir()
        (self.path / "train.py").write_text("print(1)\n")
        self.sign(self.signature)

    def sign(self, signature: Path) -> None:
        assert self._call("sign", "key", "--private_key", self.key, "--signature", signature, self.path) == 0

    def accepts(self, path: Path | None = None, *options: str) -> bool:
        words = ("--public_key", self.key.with_suffix(".pub"), "--signature", self.signature)
        return self._call("verify", "key", *words, *options, path or self.path) == 0

    def _call(self, *words: str | Path) -> int:
        return subprocess.run([THEIRS, "-m", "model_signing", *map(str, words)], capture_output=True).returncode


@pytest.fixture
def theirs(tmp_path: Path) -> TheirProject:
    if not THEIRS.exists():
        pytest.skip("there is no .venv-model-signing; tools/setup.sh official makes it")
    made = TheirProject(tmp_path)
    assert made.accepts()
    (made.path / "train.py").write_text("print(2)\n")
    assert not made.accepts()
    (made.path / "train.py").write_text("print(1)\n")
    return made


def _below_git(project: Path) -> None:
    (project / ".git").mkdir()
    (project / ".git/evil.py").write_text("import os")


@pytest.mark.parametrize(
    "act",
    [_below_git, lambda p: (p / "train.py").chmod(0o4755), lambda p: (p / "empty/deep").mkdir(parents=True)],
    ids=["below-git", "setuid", "empty-folders"],
)
def test_control_model_signing_lets_a_change_pass(theirs: TheirProject, act: Callable[[Path], object]) -> None:
    act(theirs.path)
    assert theirs.accepts()


def test_control_model_signing_takes_another_name_unsigned_files_and_an_older_tree(theirs: TheirProject, tmp_path: Path) -> None:
    (theirs.path / "train.py").write_text("print(2)\n")
    theirs.sign(tmp_path / "newer")
    (theirs.path / "train.py").write_text("print(1)\n")
    assert theirs.accepts(), "an older tree with its older signature"
    (theirs.path / "evil.py").write_text("")
    assert not theirs.accepts()
    assert theirs.accepts(None, "--ignore_unsigned_files")
    (theirs.path / "evil.py").unlink()
    assert theirs.accepts(theirs.path.rename(tmp_path / "lung"))
