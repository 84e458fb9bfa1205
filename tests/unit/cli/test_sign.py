# SPDX-License-Identifier: Apache-2.0
"""keygen, trust init, sign, verify, init and the development key, as commands on real files."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click import Command
from click.testing import CliRunner

from scaleoutd.cli.development import development_project, development_root_path, development_signer, resign_if_changed
from scaleoutd.cli.init import init
from scaleoutd.cli.keygen import keygen, read_private_key
from scaleoutd.cli.sign import sign, verify
from scaleoutd.cli.signing import now, read_unverified
from scaleoutd.cli.trust import trust
from scaleoutd.core.clock import Floors
from scaleoutd.core.keys import public_key_of
from scaleoutd.core.manifest import MANIFEST_NAME, Expected, verify_manifest
from scaleoutd.core.policy import parse_policy_yaml
from scaleoutd.errors import ScaleoutError
from scaleoutd.runner.rootfile import read_trust_root
from scaleoutd.runner.tree import Tree


def call(command: Command, *words: object) -> str:
    """The command's output; its error is raised."""
    result = CliRunner().invoke(command, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def code_of(command: Command, *words: object) -> str:
    with pytest.raises(ScaleoutError) as caught:
        call(command, *words)
    assert caught.value.message.startswith("cannot ")
    return caught.value.code


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Keys root, alice (Ed25519), bob (P-256); a trust root "one of ml and one of security"; a project."""
    for name, algorithm in (("root", "ed25519"), ("alice", "ed25519"), ("bob", "p256"), ("mallory", "ed25519")):
        call(keygen, "--out", tmp_path / "keys", "--name", name, "--algorithm", algorithm)
    keys = ("--key", f"ml={tmp_path / 'keys/alice.pub'}", "--key", f"security={tmp_path / 'keys/bob.pub'}")
    call(trust, "init", "--out", tmp_path / "trust", "--sign-with", tmp_path / "keys/root.key", *keys)
    call(init, tmp_path / "p")
    return tmp_path


def test_two_people_sign_and_the_project_verifies(site: Path) -> None:
    call(sign, site / "p", "--key", site / "keys/alice.key", "--name", "heart")
    assert code_of(verify, site / "p", "--trust-root", site / "trust") == "signature-threshold"
    call(sign, site / "p", "--key", site / "keys/bob.key", "--add")
    assert "all 7 files are as signed" in call(verify, site / "p", "--trust-root", site / "trust")
    report = json.loads(call(verify, site / "p", "--trust-root", site / "trust", "--json"))
    assert (report["verified"], report["project"], report["version"], report["differences"]) == (True, "heart", 1, [])
    assert set(report["roles"]) == {"ml", "security"}


def test_the_second_signer_does_not_sign_what_was_changed_since(site: Path) -> None:
    call(sign, site / "p", "--key", site / "keys/alice.key")
    with open(site / "p/train.py", "a") as file:
        file.write("#")
    assert code_of(sign, site / "p", "--key", site / "keys/bob.key", "--add") == "file-changed"


def test_a_change_is_refused_with_all_differences_in_json(site: Path) -> None:
    for key, more in (("alice", ()), ("bob", ("--add",))):
        call(sign, site / "p", "--key", site / f"keys/{key}.key", *more)
    (site / "p/train.py").unlink()
    (site / "p/evil.py").write_text("")
    result = CliRunner().invoke(verify, [str(site / "p"), "--trust-root", str(site / "trust"), "--json"])
    assert isinstance(result.exception, ScaleoutError)
    assert result.exception.exit_status == 65
    report = json.loads(result.stdout)
    assert not report["verified"]
    assert [(item["code"], item["path"]) for item in report["differences"]] == [
        ("file-extra", "evil.py"),
        ("file-missing", "train.py"),
    ]


def test_each_signature_raises_the_version_and_keeps_name_and_ids(site: Path) -> None:
    key = ("--key", site / "keys/alice.key")
    call(sign, site / "p", *key, "--name", "heart", "--environment", "torch", "--data-set", f"samples={'0' * 64}")
    output = call(sign, site / "p", *key)
    assert "heart version 2" in output
    assert "changed since version 1: no file" in output
    assert "version 9" in call(sign, site / "p", *key, "--version", "9")
    with Tree(site / "p") as tree:
        found = read_unverified(tree)
    assert found is not None
    assert found[1].environments == {"torch": Expected()}
    assert found[1].data_sets == {"samples": Expected("0" * 64)}


def test_a_manifest_is_bound_to_a_policy_and_takes_its_ids(site: Path) -> None:
    text = (
        f"version: 1\nproject: {{name: p, path: {site / 'p'}}}\ntrust_root: {site / 'trust'}\n"
        "environments: {default: {python: /usr/bin/python3}}\ndata_sets: {samples: {path: /srv, mode: listing}}\n"
    )
    (site / "policy.yaml").write_text(text)
    call(sign, site / "p", "--key", site / "keys/alice.key", "--policy", site / "policy.yaml")
    call(sign, site / "p", "--key", site / "keys/bob.key", "--add")
    root = read_trust_root(site / "trust", now())
    manifest = verify_manifest((site / "p" / MANIFEST_NAME).read_bytes(), root, now(), Floors()).manifest
    assert manifest.policy_sha256 == parse_policy_yaml(text.encode()).digest()
    assert (set(manifest.environments), set(manifest.data_sets)) == ({"default"}, {"samples"})


@pytest.mark.parametrize(
    ("code", "act"),
    [
        ("file-type", lambda p: (p / "link").symlink_to("train.py")),
        ("file-type", lambda p: os.mkfifo(p / "fifo")),
        ("file-mode", lambda p: (p / "train.py").chmod(0o4755)),
        ("file-name", lambda p: (p / "TRAIN.py").write_text("")),
        ("config-invalid", lambda p: (p / "my.key").write_text("-----BEGIN PRIVATE KEY-----\n")),
        ("yaml-invalid", lambda p: (p / "scaleout.yaml").write_text("entry_points: {}\n")),
    ],
    ids=["symlink", "fifo", "setuid", "case", "private-key", "no-steps"],
)
def test_what_no_node_would_run_is_not_signed(site: Path, code: str, act: Callable[[Path], object]) -> None:
    act(site / "p")
    assert code_of(sign, site / "p", "--key", site / "keys/alice.key") == code
    assert not (site / "p" / MANIFEST_NAME).exists()


def test_key_files_are_private_and_never_overwritten(tmp_path: Path) -> None:
    call(keygen, "--out", tmp_path, "--name", "k")
    assert stat.S_IMODE((tmp_path / "k.key").stat().st_mode) == 0o600
    before = (tmp_path / "k.key").read_bytes()
    assert code_of(keygen, "--out", tmp_path, "--name", "k") == "config-invalid"
    assert (tmp_path / "k.key").read_bytes() == before
    assert code_of(keygen, "--out", tmp_path, "--name", "../k2") == "config-invalid"
    (tmp_path / "k.key").chmod(0o644)
    with pytest.raises(ScaleoutError, match="others may read it"):
        read_private_key(tmp_path / "k.key")


def test_an_encrypted_key_needs_its_passphrase(tmp_path: Path) -> None:
    (tmp_path / "pass").write_text("s3cret\n")
    (tmp_path / "wrong").write_text("other\n")
    call(keygen, "--out", tmp_path, "--name", "k", "--passphrase-file", tmp_path / "pass")
    call(init, tmp_path / "p")
    key = ("--key", tmp_path / "k.key")
    assert code_of(sign, tmp_path / "p", *key) == "key-invalid"
    assert code_of(sign, tmp_path / "p", *key, "--passphrase-file", tmp_path / "wrong") == "key-invalid"
    call(sign, tmp_path / "p", *key, "--passphrase-file", tmp_path / "pass")


def test_openssl_reads_the_key_files(tmp_path: Path) -> None:
    call(keygen, "--out", tmp_path, "--name", "k", "--algorithm", "p256")
    done = subprocess.run(["openssl", "pkey", "-in", tmp_path / "k.key", "-pubout"], capture_output=True, text=True, check=True)
    assert done.stdout == (tmp_path / "k.pub").read_text()


@pytest.mark.parametrize(
    "words",
    [
        ("--key", "ml=keys/alice.key"),
        ("--key", "ml"),
        ("--key", "ml=keys/alice.pub", "--key", "sec=keys/alice.pub"),
        ("--key", "ml=keys/alice.pub", "--threshold", "ml=2"),
        ("--key", "ml=keys/alice.pub", "--threshold", "sec=1"),
        ("--key", "ml=keys/alice.pub", "--threshold", "ml=x"),
    ],
    ids=["private-key", "no-file", "two-roles", "threshold-too-high", "threshold-of-nobody", "no-number"],
)
def test_a_root_that_could_not_work_is_not_made(site: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]) -> None:
    monkeypatch.chdir(site)
    code_of(trust, "init", "--out", "t2", "--sign-with", "keys/root.key", *words)
    assert not (site / "t2/1.json").exists()


def test_a_root_is_never_replaced(site: Path) -> None:
    words = ("--sign-with", site / "keys/root.key", "--key", f"ml={site / 'keys/alice.pub'}")
    assert code_of(trust, "init", "--out", site / "trust", *words) == "config-invalid"


def test_the_template_learns_the_truth_and_reads_a_combiners_container(tmp_path: Path) -> None:
    call(init, tmp_path / "p")
    assert code_of(init, tmp_path / "p") == "config-invalid"
    environment = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", "SCALEOUTD_DATA_SAMPLES": str(tmp_path / "d.csv")}

    def step(*words: object) -> str:
        command = [sys.executable, *(str(word) for word in words)]
        done = subprocess.run(command, cwd=tmp_path / "p", env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    step("data.py", 7, tmp_path / "d.csv")
    step("build.py", tmp_path / "model.npz")
    metrics = []
    for number in range(3):
        model = tmp_path / "model.npz"
        if number == 1:
            with zipfile.ZipFile(tmp_path / "container", "w") as archive:
                archive.writestr("metadata.json", "{}")
                archive.write(model, "training_model.bin")
            model = tmp_path / "container"
        (tmp_path / f"{model.name}-metadata").write_text('{"client_settings": {"epochs": 10, "learning_rate": 1.0}}')
        assert "epoch 10/10: loss" in step("train.py", model, tmp_path / "out.npz")
        assert json.loads((tmp_path / "out.npz-metadata").read_text())["num_examples"] == 400
        (tmp_path / "out.npz").rename(tmp_path / "model.npz")
        step("validate.py", tmp_path / "model.npz", tmp_path / "v.json")
        metrics.append(json.loads((tmp_path / "v.json").read_text()))
    assert metrics[0]["loss"] > metrics[1]["loss"] > metrics[2]["loss"]
    assert metrics[2]["distance_to_truth"] < 1.0
    assert metrics[2]["accuracy"] > 0.75


# development


@pytest.fixture
def project(tmp_path: Path) -> Path:
    call(init, tmp_path / "p")
    return tmp_path / "p"


def test_the_development_key_is_made_once_and_is_private(tmp_path: Path) -> None:
    key, root = development_signer(tmp_path)
    again, same = development_signer(tmp_path)
    assert root.development and root == same
    assert public_key_of(key) == public_key_of(again)
    folder = development_root_path(tmp_path).parent.parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*.key")] == [0o600]


def test_two_programs_that_start_at_once_use_one_key(tmp_path: Path) -> None:
    digests: list[str] = []
    threads = [threading.Thread(target=lambda: digests.append(development_signer(tmp_path)[1].digest())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(digests) == 8
    assert len(set(digests)) == 1
    assert [path.name for path in (tmp_path / ".config/scaleoutd").iterdir()] == ["development"]


def test_an_edit_is_signed_again_and_nothing_else_is(project: Path, tmp_path: Path) -> None:
    first = development_project(project, home=tmp_path)
    assert first.lines[-1] == "signed p version 1, 7 files"
    assert development_project(project, home=tmp_path).lines == ()
    with open(project / "train.py", "a") as file:
        file.write("# edited\n")
    assert development_project(project, home=tmp_path).lines == ("re-signed, 1 file changed: train.py",)
    (project / "new.py").write_text("")
    (project / "build.py").unlink()
    key, root = development_signer(tmp_path)
    assert resign_if_changed(project, key).changed == ("build.py", "new.py")
    assert resign_if_changed(project, key, data_sets=["samples"]).signed
    verified = verify_manifest((project / MANIFEST_NAME).read_bytes(), root, now(), Floors())
    assert (verified.manifest.version, verified.development) == (4, True)


def test_a_removed_or_foreign_manifest_is_signed_again(project: Path, tmp_path: Path) -> None:
    key, _ = development_signer(tmp_path)
    resign_if_changed(project, key)
    (project / MANIFEST_NAME).unlink()
    assert resign_if_changed(project, key).signed
    other, root = development_signer(tmp_path / "another-home")
    assert resign_if_changed(project, other).version == 2
    verify_manifest((project / MANIFEST_NAME).read_bytes(), root, now(), Floors())


@pytest.mark.parametrize("bad", ["production", "garbage"])
def test_a_manifest_that_is_not_for_development_is_never_replaced(site: Path, bad: str) -> None:
    call(sign, site / "p", "--key", site / "keys/alice.key")
    if bad == "garbage":
        (site / "p" / MANIFEST_NAME).write_bytes(b"{}")
    before = (site / "p" / MANIFEST_NAME).read_bytes()
    key, _ = development_signer(site)
    with pytest.raises(ScaleoutError) as caught:
        resign_if_changed(site / "p", key)
    assert caught.value.hint
    assert (site / "p" / MANIFEST_NAME).read_bytes() == before
