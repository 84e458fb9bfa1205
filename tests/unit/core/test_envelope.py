# SPDX-License-Identifier: Apache-2.0
"""DSSE: against another implementation, and against everything that makes one signature look like two."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope as OtherEnvelope
from securesystemslib.signer._crypto_signer import CryptoSigner
from securesystemslib.signer._key import SSlibKey

from scaleoutd.core.envelope import (
    STATEMENT_TYPE,
    TRUST_ROOT_TYPE,
    Envelope,
    Signature,
    add_signature,
    pae,
    parse_envelope,
    serialise_envelope,
    sign_payload,
    verify_envelope,
)
from scaleoutd.core.keys import PrivateKey, public_key_of
from scaleoutd.errors import FormatError, VerificationError
from tests.unit.core.trust_samples import ALICE, BOB, MALLORY, keyid

A, B = public_key_of(ALICE), public_key_of(BOB)
PAYLOAD = b'{"a":1}'


def test_pre_authentication_encoding_of_the_specification() -> None:
    assert pae("http://example.com/HelloWorld", b"hello world") == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert pae("é", b"") == b"DSSEv1 2 \xc3\xa9 0 "


@given(st.text(max_size=30).filter(lambda text: text.isprintable()), st.binary(max_size=50))
def test_pre_authentication_encoding_is_securesystemslibs(kind: str, payload: bytes) -> None:
    assert pae(kind, payload) == OtherEnvelope(payload, kind, {}).pae()


@pytest.mark.parametrize("key", [ALICE, BOB], ids=["ed25519", "p256"])
def test_securesystemslib_verifies_what_we_sign(key: PrivateKey) -> None:
    data = serialise_envelope(sign_payload(PAYLOAD, STATEMENT_TYPE, [key]))
    other = OtherEnvelope.from_dict(json.loads(data))
    public = SSlibKey.from_crypto(key.public_key(), keyid=keyid(key))
    assert set(other.verify([public], 1)) == {keyid(key)}


@pytest.mark.parametrize("key", [ALICE, BOB], ids=["ed25519", "p256"])
def test_we_verify_what_securesystemslib_signs(key: PrivateKey) -> None:
    other = OtherEnvelope(PAYLOAD, STATEMENT_TYPE, {})
    other.sign(CryptoSigner(key))
    verified = verify_envelope(parse_envelope(json.dumps(other.to_dict()).encode()), [A, B], 1)
    assert verified.payload == PAYLOAD
    assert [signer.keyid for signer in verified.signers] == [keyid(key)]


def test_two_people_reach_a_threshold_of_two() -> None:
    envelope = sign_payload(PAYLOAD, STATEMENT_TYPE, [ALICE, BOB])
    assert set(verify_envelope(envelope, [A, B], 2).signers) == {A, B}


@pytest.mark.parametrize(
    "forge",
    [
        lambda one: (one, one),
        lambda one: (one, replace(one, keyid=B.keyid)),
        lambda one: (one, replace(one, keyid="")),
        lambda one: (one, Signature(MALLORY.sign(pae(STATEMENT_TYPE, PAYLOAD)), B.keyid)),
        lambda one: (one, Signature(b"\x00" * 64, B.keyid)),
    ],
    ids=["twice", "under-anothers-id", "without-id", "mallory-as-bob", "zeros-as-bob"],
)
def test_one_key_never_counts_as_two(forge: Any) -> None:
    one = sign_payload(PAYLOAD, STATEMENT_TYPE, [ALICE]).signatures[0]
    envelope = Envelope(PAYLOAD, STATEMENT_TYPE, forge(one))
    assert verify_envelope(envelope, [A, B], 1).signers == (A,)
    with pytest.raises(VerificationError) as caught:
        verify_envelope(envelope, [A, B], 2)
    assert caught.value.code == "signature-threshold"


def test_one_key_trusted_twice_counts_once() -> None:
    with pytest.raises(VerificationError):
        verify_envelope(sign_payload(PAYLOAD, STATEMENT_TYPE, [ALICE]), [A, A, A], 2)


def test_two_different_signatures_of_one_key_count_once() -> None:
    # ECDSA is randomised: two valid signatures with different bytes.
    first, second = (sign_payload(PAYLOAD, STATEMENT_TYPE, [BOB]).signatures[0] for _ in range(2))
    assert first.sig != second.sig
    with pytest.raises(VerificationError):
        verify_envelope(Envelope(PAYLOAD, STATEMENT_TYPE, (first, second)), [A, B], 2)


def test_a_wrong_key_id_does_not_hide_a_good_signature() -> None:
    one = sign_payload(PAYLOAD, STATEMENT_TYPE, [ALICE]).signatures[0]
    assert verify_envelope(Envelope(PAYLOAD, STATEMENT_TYPE, (replace(one, keyid="nonsense"),)), [B, A], 1).signers == (A,)


def test_a_signature_is_bound_to_payload_and_type() -> None:
    envelope = sign_payload(PAYLOAD, STATEMENT_TYPE, [ALICE])
    for broken in (replace(envelope, payload=PAYLOAD + b" "), replace(envelope, payload_type=TRUST_ROOT_TYPE)):
        with pytest.raises(VerificationError):
            verify_envelope(broken, [A], 1)


def test_adding_a_signature_keeps_the_payload_and_replaces_ones_own() -> None:
    envelope = sign_payload(PAYLOAD, STATEMENT_TYPE, [ALICE])
    both = add_signature(add_signature(envelope, BOB), BOB)
    assert both.payload == PAYLOAD
    assert len(both.signatures) == 2
    assert parse_envelope(serialise_envelope(both)) == both


def good() -> dict[str, Any]:
    value: dict[str, Any] = json.loads(serialise_envelope(sign_payload(PAYLOAD, STATEMENT_TYPE, [ALICE])))
    return value


@pytest.mark.parametrize(
    "change",
    [
        {"payloadType": "application/json"},
        {"payloadType": TRUST_ROOT_TYPE},
        {"payload": base64.urlsafe_b64encode(b"\xfb\xff" * 3).decode()},
        {"payload": "eyJhIjoxfQ"},
        {"payload": "eyJhIjoxfR=="},
        {"payload": "eyJh\nIjoxfQ=="},
        {"payload": 1},
        {"signatures": []},
        {"signatures": [{"sig": "AA=A"}]},
        {"signatures": [{"keyid": "x"}]},
        {"signatures": [{"sig": "AAAA", "cert": ""}]},
        {"signatures": [{"sig": "AAAA"}] * 33},
        {"extra": 1},
    ],
    ids=lambda change: json.dumps(change)[:40],
)
def test_a_malformed_envelope_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(FormatError) as caught:
        parse_envelope(json.dumps({**good(), **change}).encode())
    assert caught.value.code == "envelope-invalid"
    parse_envelope(json.dumps(good()).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"payload":"","payload":""}', b"\xff"])
def test_what_is_no_envelope_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        parse_envelope(data)
    assert caught.value.code == "envelope-invalid"


@given(st.binary(max_size=80))
def test_any_bytes_are_refused_without_a_crash(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_envelope(data)
