# SPDX-License-Identifier: Apache-2.0
"""Certificate facts against the cryptography library, and against damage."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from scaleoutd.agent.der import certificate_facts, first_of_pem
from scaleoutd.errors import FormatError


def certificate(names: list[tuple[x509.ObjectIdentifier, str]], days: int = 30, key_kind: str = "ec") -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1()) if key_kind == "ec" else rsa.generate_private_key(65537, 2048)
    subject = x509.Name([x509.NameAttribute(oid, value) for oid, value in names])
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "issuer")])
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=days))
        .sign(key, hashes.SHA256())
    )


CERTIFICATE = certificate([(NameOID.COMMON_NAME, "ward-7")])
DER = CERTIFICATE.public_bytes(Encoding.DER)


@pytest.mark.parametrize("key_kind", ["ec", "rsa"])
@pytest.mark.parametrize("days", [30, 365 * 30])
@pytest.mark.parametrize(
    "names",
    [
        [(NameOID.COMMON_NAME, "ward-7")],
        [(NameOID.COUNTRY_NAME, "SE"), (NameOID.ORGANIZATION_NAME, "Kliniken, Östra"), (NameOID.COMMON_NAME, "#a+b <c> ")],
        [(NameOID.SERIAL_NUMBER, "12"), (NameOID.DOMAIN_COMPONENT, "example")],
        [],
    ],
)
def test_the_same_facts_as_the_library(names: list[tuple[x509.ObjectIdentifier, str]], days: int, key_kind: str) -> None:
    made = certificate(names, days, key_kind)
    facts = certificate_facts(made.public_bytes(Encoding.DER))
    spki = made.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert facts.spki_sha256 == hashlib.sha256(spki).hexdigest()
    assert facts.serial == f"{made.serial_number:x}"
    assert facts.subject == made.subject.rfc4514_string()
    assert facts.not_before == datetime(2026, 1, 2, 3, 4, 5)
    assert facts.not_after == facts.not_before + timedelta(days=days)


def test_pem_with_other_things_around_it() -> None:
    pem = b"Bag Attributes\n  name: x\n" + CERTIFICATE.public_bytes(Encoding.PEM) + b"-----BEGIN CERTIFICATE-----\nzz\n"
    assert first_of_pem(pem) == DER
    with pytest.raises(FormatError):
        first_of_pem(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")


@pytest.mark.parametrize("length", range(0, len(DER), 7))
def test_a_certificate_that_ends_too_early(length: int) -> None:
    with pytest.raises(FormatError):
        certificate_facts(DER[:length])


@given(st.integers(0, len(DER) - 1), st.integers(0, 255))
def test_a_changed_byte_gives_facts_or_a_refusal_and_nothing_else(at: int, value: int) -> None:
    try:
        certificate_facts(DER[:at] + bytes([value]) + DER[at + 1 :])
    except FormatError:
        pass


@given(st.binary(max_size=200))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        certificate_facts(b"\x30\x82" + data)
