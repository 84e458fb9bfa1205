# SPDX-License-Identifier: Apache-2.0
"""trust add, rotate, revoke, sign, show; signatures of OpenSSH keys; two people on two computers."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from scaleoutd.cli.init import init
from scaleoutd.cli.keygen import keygen, open_private_key
from scaleoutd.cli.sign import sign, verify
from scaleoutd.cli.signing import now
from scaleoutd.cli.trust import trust
from scaleoutd.core.manifest import MANIFEST_NAME
from scaleoutd.errors import ScaleoutError, VerificationError
from scaleoutd.runner.rootfile import read_trust_root
from tests.unit.cli.test_sign import call, code_of
from tests.unit.core.authenticator import SshSigner
from tests.unit.core.trust_samples import ALICE


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Keys root, root2, alice, bob, carol; trust/1.json: one root key, one of ml (alice) for heart*; a project."""
    for name in ("root", "root2", "alice", "bob", "carol"):
        call(keygen, "--out", tmp_path / "keys", "--name", name)
    keys = tmp_path / "keys"
    call(trust, "init", "--out", tmp_path / "trust", "--sign-with", keys / "root.key", "--key", f"ml={keys}/alice.pub")
    call(init, tmp_path / "p")
    return tmp_path


def key(site: Path, name: str, end: str = "key") -> Path:
    return site / "keys" / f"{name}.{end}"


def verified(site: Path) -> str:
    """`accepted` or the code."""
    result = CliRunner().invoke(verify, [str(site / "p"), "--trust-root", str(site / "trust")])
    return result.exception.code if isinstance(result.exception, ScaleoutError) else f"accepted {result.exception or ''}".strip()


def test_add_makes_the_next_root_with_a_rule_more(site: Path) -> None:
    call(sign, site / "p", "--key", key(site, "alice"), "--name", "heart")
    assert verified(site) == "accepted"
    call(trust, "add", site / "trust", "--key", f"security={key(site, 'bob', 'pub')}", "--sign-with", key(site, "root"))
    assert (site / "trust/2.json").exists() and (site / "trust/1.json").exists()
    assert verified(site) == "signature-threshold"
    call(sign, site / "p", "--add", "--key", key(site, "bob"))
    assert verified(site) == "accepted"


def test_new_keys_sign_only_the_projects_they_were_added_for(site: Path) -> None:
    more = ("--key", f"ml={key(site, 'bob', 'pub')}", "--project", "lung*", "--sign-with", key(site, "root"))
    call(trust, "add", site / "trust", *more)
    call(sign, site / "p", "--key", key(site, "bob"), "--name", "heart")
    assert verified(site) == "signature-threshold"
    call(sign, site / "p", "--key", key(site, "bob"), "--name", "lung-ct")
    assert verified(site) == "accepted"


def test_rotate_lets_the_old_key_count_no_more(site: Path) -> None:
    call(sign, site / "p", "--key", key(site, "alice"))
    call(trust, "rotate", site / "trust", "--old", "alice", "--new", key(site, "carol", "pub"), "--sign-with", key(site, "root"))
    assert verified(site) == "signature-threshold"
    call(sign, site / "p", "--key", key(site, "carol"))
    assert verified(site) == "accepted"


def test_rotate_and_revoke_says_so_in_the_refusal(site: Path) -> None:
    call(sign, site / "p", "--key", key(site, "alice"))
    words = ("--old", key(site, "alice", "pub"), "--new", key(site, "carol", "pub"), "--revoke")
    call(trust, "rotate", site / "trust", *words, "--sign-with", key(site, "root"))
    root = read_trust_root(site / "trust", now())
    assert root.revoked_keys and root.revoked_keys[0] in root.keys
    assert verified(site) in ("key-revoked", "signature-threshold")


def test_a_root_key_is_rotated_by_the_old_and_the_new_one(site: Path) -> None:
    new = ("--old", "root", "--new", key(site, "root2", "pub"))
    told = json.loads(call(trust, "rotate", site / "trust", *new, "--sign-with", key(site, "root"), "--json"))
    assert told["missing"] == {"2": 1} and not (site / "trust/2.json").exists()
    assert read_trust_root(site / "trust", now()).version == 1  # a draft is no root
    # The second person, on another computer.
    shutil.copytree(site / "trust", site / "usb")
    told = json.loads(call(trust, "sign", site / "usb", "--sign-with", key(site, "root2"), "--json"))
    assert told["missing"] == {} and not list((site / "usb").glob("*.draft"))
    root = read_trust_root(site / "usb", now())
    assert root.version == 2 and [root.key_name(item) for item in root.roles["root"].keys] == ["root2"]
    # The old root key alone makes no third root.
    add = ("--key", f"ml={key(site, 'bob', 'pub')}")
    assert code_of(trust, "add", site / "usb", *add, "--sign-with", key(site, "root")) == "config-invalid"
    call(trust, "add", site / "usb", *add, "--sign-with", key(site, "root2"))
    assert read_trust_root(site / "usb", now()).version == 3


def test_two_of_two_root_keys_and_a_change_drops_the_signatures_of_a_draft(site: Path) -> None:
    more = ("--key", f"root={key(site, 'root2', 'pub')}", "--threshold", "root=2")
    call(trust, "add", site / "trust", *more, "--sign-with", key(site, "root"), "--sign-with", key(site, "root2"))
    call(trust, "revoke", site / "trust", "--manifest", "0" * 64, "--sign-with", key(site, "root"))
    told = json.loads(call(trust, "revoke", site / "trust", "--manifest", "1" * 64, "--sign-with", key(site, "root2"), "--json"))
    assert told["missing"] == {"2": 1, "3": 1} and told["revoked_manifests"] == ["0" * 64, "1" * 64]
    call(trust, "sign", site / "trust", "--sign-with", key(site, "root"))
    assert read_trust_root(site / "trust", now()).revoked_manifests == ("0" * 64, "1" * 64)


def test_revoke_a_manifest_by_its_project_and_a_key_by_its_name(site: Path) -> None:
    call(sign, site / "p", "--key", key(site, "alice"))
    call(trust, "revoke", site / "trust", "--manifest", site / "p", "--sign-with", key(site, "root"))
    assert verified(site) == "manifest-revoked"
    call(sign, site / "p", "--key", key(site, "alice"))
    assert verified(site) == "accepted"
    call(trust, "add", site / "trust", "--key", f"ml={key(site, 'bob', 'pub')}", "--sign-with", key(site, "root"))
    call(trust, "revoke", site / "trust", "--key", "alice", "--sign-with", key(site, "root"))
    assert verified(site) == "key-revoked"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("add",), "nothing would change"),
        (("add", "--threshold", "ml=2"), "asks for 2 of 1"),
        (("add", "--threshold", "none=1"), "no key has it"),
        (("revoke", "--key", "alice"), "would be left"),
        (("revoke", "--key", "nobody"), "expected one of root 1"),
        (("revoke", "--manifest", "nothing"), "found none of them"),
        (("rotate", "--old", "alice", "--new", "keys/root.pub"), "has it already"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_root_that_nobody_could_use_is_not_made(site: Path, words: tuple[str, ...], said: str) -> None:
    words = tuple(str(site / word) if word.startswith("keys/") else word for word in words)
    with pytest.raises(ScaleoutError, match=said):
        call(trust, words[0], site / "trust", *words[1:], "--sign-with", key(site, "root"))
    assert sorted(path.name for path in (site / "trust").iterdir()) == ["1.json"]


def test_somebody_elses_key_does_not_sign_a_root(site: Path) -> None:
    with pytest.raises(ScaleoutError, match="expected a root key"):
        call(trust, "revoke", site / "trust", "--manifest", "0" * 64, "--sign-with", key(site, "alice"))


def test_an_expired_root_is_renewed_and_show_says_what_it_is(site: Path) -> None:
    call(trust, "revoke", site / "trust", "--manifest", "0" * 64, "--expires", "1s", "--sign-with", key(site, "root"))
    root = read_trust_root(site / "trust/1.json", now())
    late = now().__class__(now().wall_ms + 2000, 0, synchronised=True)
    with pytest.raises(VerificationError, match="expired"):
        read_trust_root(site / "trust", late)
    call(trust, "revoke", site / "trust", "--manifest", "1" * 64, "--sign-with", key(site, "root"))
    output = call(trust, "show", site / "trust")
    assert "root 3, valid" in output and "ml: 1 of alice" in output and "fingerprint" in output
    assert root.digest() in output  # the whole chain


# --- signatures of OpenSSH ------------------------------------------------------------------------------------------


def test_an_ssh_key_signs_a_project_and_a_root(site: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", site / "id"], check=True)
    call(trust, "add", site / "trust", "--key", f"security={site / 'id.pub'}", "--key", f"root={site / 'id.pub'}",
         "--threshold", "root=2", "--sign-with", key(site, "root"), "--ssh-key", site / "id")  # fmt: skip
    call(sign, site / "p", "--key", key(site, "alice"), "--ssh-key", site / "id")
    assert verified(site) == "accepted"


def test_a_request_is_signed_by_ssh_keygen_on_a_computer_without_scaleoutctl(site: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", "256", "-N", "", "-f", site / "id"], check=True)
    call(trust, "add", site / "trust", "--key", f"ml={site / 'id.pub'}", "--sign-with", key(site, "root"))
    call(sign, site / "p", "--request", site / "request")
    assert verified(site) == "envelope-invalid"  # it waits for its first signature
    subprocess.run(["ssh-keygen", "-q", "-Y", "sign", "-n", "scaleoutd", "-f", site / "id", site / "request"], check=True)
    call(sign, site / "p", "--add", "--sshsig", site / "request.sig")
    assert verified(site) == "accepted"
    subprocess.run(["ssh-keygen", "-q", "-Y", "sign", "-n", "git", "-f", site / "id", site / "p/train.py"], check=True)
    (site / "p/train.py.sig").rename(site / "git.sig")
    assert code_of(sign, site / "p", "--add", "--sshsig", site / "git.sig") == "key-invalid"


def test_an_authenticators_key_is_trusted_with_its_application(site: Path) -> None:
    signer = SshSigner(ALICE)
    (site / "sk.pub").write_text(signer.public_line)
    call(trust, "add", site / "trust", "--key", f"token={site / 'sk.pub'}", "--sign-with", key(site, "root"))
    assert "in an authenticator" in call(trust, "show", site / "trust")
    call(sign, site / "p", "--key", key(site, "alice"))
    call(sign, site / "p", "--add", "--request", site / "request")
    (site / "sig").write_text(signer.armoured((site / "request").read_bytes()))
    assert verified(site) == "signature-threshold"
    call(sign, site / "p", "--add", "--sshsig", site / "sig")
    assert verified(site) == "accepted"
    (site / "stale").write_text(signer.armoured(b"another request"))
    assert code_of(sign, site / "p", "--add", "--sshsig", site / "stale") == "signature-invalid"


# --- two people -----------------------------------------------------------------------------------------------------


def test_two_people_sign_at_once_on_two_computers(site: Path) -> None:
    call(trust, "add", site / "trust", "--key", f"security={key(site, 'bob', 'pub')}", "--sign-with", key(site, "root"))
    call(sign, site / "p", "--request", site / "unused")
    shutil.copytree(site / "p", site / "other")
    call(sign, site / "p", "--add", "--key", key(site, "alice"))
    call(sign, site / "other", "--add", "--key", key(site, "bob"))
    assert verified(site) == "signature-threshold"
    assert "2 signature(s)" in call(sign, site / "p", "--add", "--from", site / "other" / MANIFEST_NAME)
    assert verified(site) == "accepted"
    call(sign, site / "other", "--key", key(site, "bob"))
    assert code_of(sign, site / "p", "--add", "--from", site / "other" / MANIFEST_NAME) == "signature-invalid"


def test_an_encrypted_key_opens_with_its_passphrase_only(site: Path) -> None:
    (site / "phrase").write_text("correct horse\n")
    (site / "wrong").write_text("battery staple\n")
    call(keygen, "--out", site / "keys", "--name", "safe", "--passphrase-file", site / "phrase")
    assert b"ENCRYPTED" in key(site, "safe").read_bytes()
    open_private_key(key(site, "safe"), site / "phrase")
    for phrase in (None, site / "wrong"):
        with pytest.raises(ScaleoutError) as caught:
            open_private_key(key(site, "safe"), phrase)
        assert caught.value.code == "key-invalid" and caught.value.hint
    result = CliRunner().invoke(
        keygen, ["--out", str(site / "keys"), "--name", "asked", "--encrypt"], input="one\none\n", catch_exceptions=False
    )
    assert result.exit_code == 0 and b"ENCRYPTED" in key(site, "asked").read_bytes()
