# SPDX-License-Identifier: Apache-2.0
"""What goes wrong at keygen, sign, verify and trust: each refusal names the file, what is wrong with it, the next command."""

from __future__ import annotations

import base64
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from scaleoutd.cli.diff import diff
from scaleoutd.cli.init import init
from scaleoutd.cli.keygen import keygen
from scaleoutd.cli.sign import sign, verify
from scaleoutd.cli.trust import trust
from scaleoutd.core.clock import Floors, Now
from scaleoutd.core.manifest import MANIFEST_NAME, verify_manifest
from scaleoutd.core.trust import RootPin, verify_chain
from scaleoutd.errors import CODES, ScaleoutError
from tests.unit.cli.test_sign import call
from tests.unit.core.test_second_verifier import CASES, CORPUS

# A command in backticks, or the option of the same command that mends it.
NEXT = re.compile(r"`(scaleoutctl|timedatectl)\b|--[a-z]|chmod |\.key file|\.pub file|ssh-keygen|first line")


def private_pem(key: Any) -> bytes:
    plain = serialization.NoEncryption()
    return bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    for name in ("root", "alice", "bob"):
        call(keygen, "--out", tmp_path, "--name", name)
    (tmp_path / "phrase").write_text("correct\n")
    (tmp_path / "wrong").write_text("wrong\n")
    (tmp_path / "empty").write_text("\n")
    call(keygen, "--out", tmp_path, "--name", "locked", "--passphrase-file", tmp_path / "phrase")
    for name, key in (("rsa", rsa.generate_private_key(65537, 2048)), ("p384", ec.generate_private_key(ec.SECP384R1()))):
        (tmp_path / f"{name}.key").write_bytes(private_pem(key))
        (tmp_path / f"{name}.key").chmod(0o600)
    (tmp_path / "open.key").write_bytes((tmp_path / "alice.key").read_bytes())
    (tmp_path / "open.key").chmod(0o644)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "ssh"], check=True)
    call(trust, "init", "--out", tmp_path / "trust", "--sign-with", tmp_path / "root.key", "--key", f"ml={tmp_path}/alice.pub")
    call(init, tmp_path / "p")
    call(sign, tmp_path / "p", "--key", tmp_path / "alice.key", "--request", tmp_path / "request")
    (tmp_path / "sig").write_text("no signature\n")
    words = ["ssh-keygen", "-q", "-Y", "sign", "-n", "git", "-f", str(tmp_path / "ssh"), str(tmp_path / "request")]
    subprocess.run(words, check=True, capture_output=True)
    return tmp_path


def refusal(command: Any, site: Path, words: str) -> ScaleoutError:
    result = CliRunner().invoke(command, [word.replace("@", f"{site}/") for word in words.split()])
    assert isinstance(result.exception, ScaleoutError), (words, result.output, result.exception)
    return result.exception


@pytest.mark.parametrize(
    ("command", "words", "code", "names"),
    [
        (keygen, "--out @ --name alice", "config-invalid", "alice.key"),
        (keygen, "--out @ --name ../alice", "config-invalid", "alice"),
        (keygen, "--out @ --name new --passphrase-file @empty", "config-invalid", "empty"),
        (sign, "@p", "config-invalid", "key"),
        (sign, "@p --key @nothing.key", "config-missing", "nothing.key"),
        (sign, "@p --key @alice.pub", "config-invalid", "alice.pub"),
        (sign, "@p --key @ssh.pub", "config-invalid", "ssh.pub"),
        (sign, "@p --key @ssh", "key-invalid", "ssh"),
        (sign, "@p --key @open.key", "config-invalid", "open.key"),
        (sign, "@p --key @locked.key", "key-invalid", "locked.key"),
        (sign, "@p --key @locked.key --passphrase-file @wrong", "key-invalid", "locked.key"),
        (sign, "@p --key @alice.key --passphrase-file @phrase", "key-invalid", "alice.key"),
        (sign, "@p --key @rsa.key", "key-invalid", "rsa.key"),
        (sign, "@p --key @p384.key", "key-invalid", "P-256"),
        (sign, "@trust --key @alice.key", "config-missing", "scaleout.yaml"),
        (sign, "@p --add --sshsig @sig", "key-invalid", "sig"),
        (sign, "@p --add --sshsig @request.sig", "key-invalid", "request.sig"),  # of the namespace git
        (trust, "init --out @trust --sign-with @root.key --key ml=@alice.pub", "config-invalid", "trust/1.json"),
        (trust, "add @trust --key ml=@alice.key --sign-with @root.key", "config-invalid", "alice.key"),
        (trust, "add @trust --key ml=@phrase --sign-with @root.key", "key-invalid", "phrase"),
        (trust, "add @trust --key ml=@bob.pub --sign-with @bob.key", "config-invalid", "root"),
        (trust, "rotate @trust --old nobody --new @bob.pub --sign-with @root.key", "config-invalid", "nobody"),
        (trust, "rotate @trust --old alice --new @alice.pub --sign-with @root.key", "config-invalid", "alice.pub"),
        (trust, "revoke @trust --key alice --sign-with @root.key", "config-invalid", "ml"),
        (trust, "revoke @trust --key nobody --sign-with @root.key", "config-invalid", "nobody"),
        (trust, "sign @trust --sign-with @root.key", "config-missing", "2.draft"),
        (verify, "@trust --trust-root @trust", "config-missing", "scaleout.yaml"),
        (verify, "@p --trust-root @nothing", "config-missing", "nothing"),
        (diff, "@p/train.py", "envelope-invalid", ""),
    ],
)
def test_a_refusal_names_the_file_and_the_next_command(site: Path, command: Any, words: str, code: str, names: str) -> None:
    error = refusal(command, site, words)
    assert (error.code, error.message[:7]) == (code, "cannot ")
    assert names in error.message
    assert NEXT.search(error.hint), (error.message, error.hint)


@pytest.mark.parametrize(
    ("act", "code"),
    [
        (lambda p: (p / "train.py").write_text("x"), "file-changed"),
        (lambda p: (p / "train.py").unlink(), "file-missing"),
        (lambda p: (p / "more.py").write_text(""), "file-extra"),
        (lambda p: (p / "train.py").chmod(0o755), "file-mode"),
        (lambda p: (p / "link").symlink_to("train.py"), "file-type"),
        (lambda p: (p / "TRAIN.py").write_text(""), "file-name"),
        (lambda p: (p / MANIFEST_NAME).unlink(), "manifest-missing"),
    ],
)
def test_a_project_that_is_not_as_signed(site: Path, act: Callable[[Path], object], code: str) -> None:
    act(site / "p")
    error = refusal(verify, site, "@p --trust-root @trust")
    assert error.code == code and "expected" in error.message and "found" in error.message
    assert "`scaleoutctl sign" in error.hint


@pytest.mark.parametrize("case", [case for case in CASES if case["code"] != "accepted"], ids=lambda case: case["name"])
def test_what_the_corpus_refuses(case: dict[str, Any]) -> None:
    now = Now(CORPUS["at_ms"], 0, synchronised=True)
    floors = Floors(case.get("time_ms", 0), 0, case.get("manifest_versions", {}))
    with pytest.raises(ScaleoutError) as caught:
        documents = [base64.b64decode(text) for text in case["roots_b64"]]
        pin = RootPin(*case["pin"]) if "pin" in case else None
        root = verify_chain(documents, now, floor_version=case.get("root_version", 0), pin=pin)
        verify_manifest(base64.b64decode(case["envelope_b64"]), root, now, floors, project=case.get("project"))
    assert caught.value.code in CODES
    assert caught.value.message.startswith("cannot ") and NEXT.search(caught.value.hint), caught.value.hint
