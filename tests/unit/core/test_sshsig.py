# SPDX-License-Identifier: Apache-2.0
"""SSHSIG: made by ssh-keygen and read here, made here and read by ssh-keygen, and everything that must not count."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleoutd.core.envelope import STATEMENT_TYPE, Envelope, Signature, pae, verify_envelope, with_signature
from scaleoutd.core.keys import PublicKey, public_key_of, sign
from scaleoutd.core.sshsig import NAMESPACE, parse_key_line, parse_signature, unarmour
from scaleoutd.errors import FormatError, VerificationError
from tests.unit.core.authenticator import TOUCHED, VERIFIED, SshSigner
from tests.unit.core.trust_samples import ALICE, BOB, MALLORY

MESSAGE = b"DSSEv1 something"
SIGNERS = [SshSigner(ALICE), SshSigner(BOB), SshSigner(ALICE, None), SshSigner(BOB, None)]
EACH = pytest.mark.parametrize("signer", SIGNERS, ids=lambda signer: signer.kind)


def key_of(signer: SshSigner) -> PublicKey:
    return PublicKey.from_ssh(parse_key_line(signer.public_line))


@EACH
@pytest.mark.parametrize("hash_name", ["sha256", "sha512"])
def test_ssh_keygen_takes_what_the_authenticator_of_the_tests_makes(tmp_path: Path, signer: SshSigner, hash_name: str) -> None:
    signer = replace(signer, hash_name=hash_name)
    (tmp_path / "signers").write_text(f"kim {signer.public_line}\n")
    (tmp_path / "sig").write_text(signer.armoured(MESSAGE))
    words = ["ssh-keygen", "-Y", "verify", "-f", "signers", "-I", "kim", "-n", NAMESPACE, "-s", "sig"]
    run = subprocess.run(words, input=MESSAGE, cwd=tmp_path, capture_output=True, check=False)
    assert run.returncode == 0, run.stderr
    assert key_of(signer).verify(unarmour(signer.armoured(MESSAGE)), MESSAGE)
    other = subprocess.run(words, input=MESSAGE + b".", cwd=tmp_path, capture_output=True, check=False)
    assert other.returncode != 0
    assert not key_of(signer).verify(unarmour(signer.armoured(MESSAGE)), MESSAGE + b".")


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa"])
def test_what_ssh_keygen_signs_is_verified_here(tmp_path: Path, kind: str) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-b", "256", "-N", "", "-f", tmp_path / "k"], check=True)
    (tmp_path / "m").write_bytes(MESSAGE)
    subprocess.run(["ssh-keygen", "-q", "-Y", "sign", "-n", NAMESPACE, "-f", tmp_path / "k", tmp_path / "m"], check=True)
    key = PublicKey.from_ssh(parse_key_line((tmp_path / "k.pub").read_text()))
    blob = unarmour((tmp_path / "m.sig").read_text())
    assert key.verify(blob, MESSAGE)
    assert not key.verify(blob, MESSAGE[1:])
    assert not public_key_of(MALLORY).verify(blob, MESSAGE)


@EACH
def test_it_is_the_same_key_as_in_pem_and_never_counts_twice(signer: SshSigner) -> None:
    key = key_of(signer)
    assert key == public_key_of(signer.key)
    envelope = Envelope(b"{}", STATEMENT_TYPE, ())
    data = pae(STATEMENT_TYPE, b"{}")
    envelope = replace(envelope, signatures=(Signature(signer.sign(data)), Signature(sign(signer.key, data))))
    assert verify_envelope(envelope, [key], 1).signers == (key,)
    with pytest.raises(VerificationError):
        verify_envelope(envelope, [key, public_key_of(MALLORY)], 2)


SK = SshSigner(ALICE)
BENT = {
    "another-namespace": replace(SK, namespace="git"),
    "no-namespace": replace(SK, namespace=""),
    "reserved": replace(SK, reserved=b"x"),
    "hash-sha1": replace(SK, hash_name="sha1"),
    "version-2": replace(SK, version=2),
    "something-follows": replace(SK, tail=b"x"),
    "not-touched": replace(SK, flags=0),
    "verified-but-not-touched": replace(SK, flags=VERIFIED),
    "another-application": replace(SK, application="web:"),
    "signed-for-another-application": replace(SK, signs="web:"),
    "another-key": replace(SK, key=MALLORY),
    "as-a-key-without-authenticator": replace(SK, application=None),
}


@pytest.mark.parametrize("bent", BENT.values(), ids=BENT.keys())
def test_what_an_authenticators_key_must_not_count_for(bent: SshSigner) -> None:
    key = key_of(SK)
    assert key.verify(SK.sign(MESSAGE), MESSAGE)
    assert not key.verify(bent.sign(MESSAGE), MESSAGE)


def test_the_flags_and_the_counter_are_signed() -> None:
    blob = SK.sign(MESSAGE)
    assert key_of(SK).verify(blob, MESSAGE)
    for at in (-5, -4, -1):  # flags; first and last byte of the counter
        changed = bytearray(blob)
        changed[at] ^= 0x04
        assert not key_of(SK).verify(bytes(changed), MESSAGE)
    claim = parse_signature(blob).claim
    assert claim is not None and (claim.flags, claim.counter) == (TOUCHED, 7)


def test_where_the_trust_root_asks_a_touch_alone_is_not_enough() -> None:
    key = replace(key_of(SK), verify_required=True)
    assert not key.verify(SK.sign(MESSAGE), MESSAGE)
    assert key.verify(replace(SK, flags=TOUCHED | VERIFIED).sign(MESSAGE), MESSAGE)


def test_a_key_in_an_authenticator_has_no_plain_signatures() -> None:
    """Somebody who got at the key itself must not sign without the touch."""
    assert not key_of(SK).verify(sign(ALICE, MESSAGE), MESSAGE)
    assert public_key_of(ALICE).verify(sign(ALICE, MESSAGE), MESSAGE)
    assert not public_key_of(ALICE).verify(SK.sign(MESSAGE), MESSAGE)  # and the plain key none of an authenticator


def test_a_signature_that_does_not_fit_is_not_added() -> None:
    envelope = Envelope(b"{}", STATEMENT_TYPE, ())
    with pytest.raises(VerificationError) as caught:
        with_signature(envelope, SK.sign(b"another"), key_of(SK))
    assert caught.value.code == "signature-invalid"
    assert len(with_signature(envelope, SK.sign(pae(STATEMENT_TYPE, b"{}")), key_of(SK)).signatures) == 1


@pytest.mark.parametrize(
    "line",
    [
        "", "ssh-ed25519", "ssh-ed25519 ????", "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAAQD= x",
        SshSigner(BOB, None).public_line.replace("ecdsa-sha2-nistp256", "ssh-ed25519", 1),
    ],
    ids=["empty", "no-key", "no-base64", "rsa", "another-kind"],
)  # fmt: skip
def test_a_line_that_is_no_key_of_ours_is_refused(line: str) -> None:
    with pytest.raises(FormatError):
        parse_key_line(line)


@EACH
def test_every_truncation_is_refused(signer: SshSigner) -> None:
    blob = signer.sign(MESSAGE)
    for end in range(len(blob)):
        with pytest.raises(FormatError):
            parse_signature(blob[:end])


@given(st.binary(max_size=300), st.integers(0, 250), st.binary(min_size=1, max_size=4))
def test_any_bytes_are_a_signature_or_one_error(data: bytes, at: int, more: bytes) -> None:
    blob = SK.sign(MESSAGE)
    for mutated in (data, b"SSHSIG" + data, blob[:at] + more + blob[at + len(more) :]):
        try:
            parse_signature(mutated)
        except FormatError:
            pass
        key_of(SK).verify(mutated, MESSAGE)


def test_ssh_keygen_is_here() -> None:
    assert os.access("/usr/bin/ssh-keygen", os.X_OK)
