# SPDX-License-Identifier: Apache-2.0
"""Public keys: which are taken, and that one key has one id however it is written."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa, x25519
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from scaleoutd.core.keys import _SMALL_ORDER, PrivateKey, PublicKey, public_key_of, sign
from scaleoutd.errors import FormatError
from tests.unit.core.trust_samples import ALICE, BOB, MALLORY

SPKI = serialization.PublicFormat.SubjectPublicKeyInfo


def pem_of(key: object) -> str:
    return key.public_bytes(serialization.Encoding.PEM, SPKI).decode()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("key", [ALICE, BOB], ids=["ed25519", "p256"])
def test_a_signature_verifies_with_its_key_and_data_only(key: PrivateKey) -> None:
    public = PublicKey.from_pem(public_key_of(key).pem)
    signature = sign(key, b"data")
    assert public.verify(signature, b"data")
    assert not public.verify(signature, b"datA")
    assert not public.verify(signature[:-1] + bytes([signature[-1] ^ 1]), b"data")
    assert not public.verify(b"", b"data")
    assert not public.verify(b"\x00" * 64, b"data")
    assert not public.verify(b"x" * 100_000, b"data")
    assert not public_key_of(MALLORY).verify(signature, b"data")


@pytest.mark.parametrize(
    "pem",
    [
        pem_of(rsa.generate_private_key(65537, 2048).public_key()),
        pem_of(ec.derive_private_key(7, ec.SECP384R1()).public_key()),
        pem_of(ec.derive_private_key(7, ec.SECP256K1()).public_key()),
        pem_of(x25519.X25519PrivateKey.generate().public_key()),
        "",
        "not a key",
        "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        public_key_of(ALICE).pem + public_key_of(BOB).pem,
        "x" * 5000,
        public_key_of(ALICE).pem.replace("M", "é", 1),
    ],
    ids=["rsa", "p384", "secp256k1", "x25519", "empty", "text", "garbage", "two-keys", "too-long", "not-ascii"],
)
def test_other_keys_are_refused(pem: str) -> None:
    with pytest.raises(FormatError) as caught:
        PublicKey.from_pem(pem)
    assert caught.value.code == "key-invalid"


def test_a_private_key_is_no_public_key() -> None:
    pem = ALICE.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with pytest.raises(FormatError):
        PublicKey.from_pem(pem.decode())


@pytest.mark.parametrize("sign", [0, 1], ids=["x", "minus-x"])
@pytest.mark.parametrize("y", sorted(_SMALL_ORDER), ids=lambda y: hex(y)[2:10])
def test_a_key_of_small_order_that_fits_any_message_is_refused(y: int, sign: int) -> None:
    raw = (y | sign << 255).to_bytes(32, "little")
    try:
        key = Ed25519PublicKey.from_public_bytes(raw)
    except ValueError:
        return  # the library refuses it itself
    with pytest.raises(FormatError):
        PublicKey.of(key)


@pytest.mark.parametrize("y", [2**255 - 19, 2**255 - 18, 2**255 - 1])
def test_a_second_spelling_of_a_point_is_refused(y: int) -> None:
    try:
        key = Ed25519PublicKey.from_public_bytes(y.to_bytes(32, "little"))
    except ValueError:
        return  # the library refuses it itself
    with pytest.raises(FormatError):
        PublicKey.of(key)


def test_one_point_in_two_encodings_has_one_id() -> None:
    public = BOB.public_key()
    point = public.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)
    # SubjectPublicKeyInfo of id-ecPublicKey, prime256v1 (RFC 5480), with the compressed point.
    der = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200") + point
    pem = "-----BEGIN PUBLIC KEY-----\n" + base64.encodebytes(der).decode() + "-----END PUBLIC KEY-----\n"
    assert PublicKey.from_pem(pem) == public_key_of(BOB)
    assert PublicKey.from_pem(pem).keyid == public_key_of(BOB).keyid
