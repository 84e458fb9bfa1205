# SPDX-License-Identifier: Apache-2.0
"""Client certificates, looked at before they are installed: the pair belongs together, is in date, and comes from its CA.

Written out for what cryptography 38 has (no x509.verification).  It keeps mistakes out; who is let in is the server's decision.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from scaleoutd.errors import CredentialError

MAX_CHAIN = 8
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
# What cryptography raises for bytes that are none, or of a kind that it does not know.
UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True)
class Pair:
    """A certificate with what stands above it in its file, and its key as PEM."""

    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    key_pem: bytes


def make_key() -> bytes:
    """A new P-256 key, which FIPS hosts and every TLS 1.3 server take; PKCS #8 PEM without a password."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def make_request(key_pem: bytes, common_name: str) -> bytes:
    """A PKCS #10 request for a client certificate, PEM."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    )
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    key = load_key(key_pem)
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, digest).public_bytes(serialization.Encoding.PEM)


def load_key(pem: bytes) -> PrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, None)
    except UNREADABLE as exc:
        raise _refuse(
            "the key is no PEM private key that can be used here, or has a password",
            "A node starts alone: the key has no password.",
        ) from exc
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size < 2048:
        raise _refuse(f"the RSA key has {key.key_size} bits, at least 2048 are expected")
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
        raise _refuse("the key is of a kind that is not used here; expected EC, Ed25519 or RSA")
    return key


def load_certificates(pem: bytes, what: str) -> tuple[x509.Certificate, ...]:
    """All certificates of a PEM file, at least one; what is read of them later can be read."""
    found = _PEM.findall(pem)
    if not found or len(found) > MAX_CHAIN:
        raise _refuse(f"{what} has {len(found)} PEM certificates, expected 1 to {MAX_CHAIN}")
    try:
        loaded = tuple(x509.load_pem_x509_certificate(item + b"\n") for item in found)
        for certificate in loaded:
            _read_all(certificate)
    except UNREADABLE as exc:
        raise _refuse(f"{what} is no certificate: {str(exc)[:400]}") from exc
    return loaded


def load_pair(certificate_pem: bytes, key_pem: bytes) -> Pair:
    """CredentialError `client-certificate-invalid` when the two do not belong together."""
    first, *rest = load_certificates(certificate_pem, "the certificate")
    if public_bytes(load_key(key_pem).public_key()) != public_bytes(first.public_key()):
        raise _refuse(
            f"the certificate of {first.subject.rfc4514_string()} is for another key",
            "Install the certificate that was made from this node's request: `scaleoutctl identity csr`.",
        )
    return Pair(first, tuple(rest), key_pem)


def belongs(certificate_pem: bytes, key_pem: bytes) -> bool:
    (first, *_) = load_certificates(certificate_pem, "the certificate")
    return public_bytes(load_key(key_pem).public_key()) == public_bytes(first.public_key())


def check_pair(pair: Pair, authorities: Sequence[x509.Certificate], now: datetime) -> None:
    """In date (`now` is naive, UTC), for clients, and signed by one of `authorities`, maybe through its chain."""
    certificate = pair.certificate
    if not not_before(certificate) <= now <= not_after(certificate):
        raise _refuse(
            f"it is valid from {not_before(certificate):%Y-%m-%d %H:%M} to {not_after(certificate):%Y-%m-%d %H:%M} UTC,"
            f" now is {now:%Y-%m-%d %H:%M}",
            "Ask the CA for a new one; check this host's clock.",
        )
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        usage = None
    if usage is not None and ExtendedKeyUsageOID.CLIENT_AUTH not in usage:
        raise _refuse("its extended key usage is not for clients", "Ask the CA for a certificate with clientAuth.")
    _check_chain(certificate, (*pair.chain, *authorities), frozenset(map(fingerprint, authorities)), now)


def check_authorities(authorities: Sequence[x509.Certificate], now: datetime) -> None:
    for authority in authorities:
        if not _is_authority(authority):
            raise _refuse(f"{authority.subject.rfc4514_string()} in the CA file is no CA's certificate")
        if not_after(authority) < now:
            raise _refuse(f"the CA {authority.subject.rfc4514_string()} ended {not_after(authority):%Y-%m-%d %H:%M} UTC")


def not_before(certificate: x509.Certificate) -> datetime:
    """Naive, UTC; the property without _utc is gone from new releases, the one with it is not in old ones."""
    found: datetime = getattr(certificate, "not_valid_before_utc", None) or certificate.not_valid_before
    return found.replace(tzinfo=None)


def not_after(certificate: x509.Certificate) -> datetime:
    found: datetime = getattr(certificate, "not_valid_after_utc", None) or certificate.not_valid_after
    return found.replace(tzinfo=None)


def fingerprint(certificate: x509.Certificate) -> str:
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


def public_bytes(key: Any) -> bytes:
    """SubjectPublicKeyInfo, DER, of a public key of any kind."""
    return bytes(key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))


def _check_chain(
    certificate: x509.Certificate, issuers: Sequence[x509.Certificate], roots: frozenset[str], now: datetime
) -> None:
    current = certificate
    for _ in range(MAX_CHAIN):
        issuer = next((item for item in issuers if item.subject == current.issuer and is_signed_by(current, item)), None)
        if issuer is None:
            raise _refuse(
                f"no certificate given has signed {current.subject.rfc4514_string()}, expected {current.issuer.rfc4514_string()}",
                "Give the CA of the client certificate with --issuer when it is another than the server's.",
            )
        if not _is_authority(issuer) or not not_before(issuer) <= now <= not_after(issuer):
            raise _refuse(f"{issuer.subject.rfc4514_string()}, which signed it, is no CA that is valid now")
        if fingerprint(issuer) in roots:
            return
        current = issuer
    raise _refuse("its chain does not end")


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def is_signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether the key of `issuer` signed it; names, dates and constraints are not looked at."""
    key, digest = issuer.public_key(), certificate.signature_hash_algorithm
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(certificate.signature, certificate.tbs_certificate_bytes)
        elif isinstance(key, ec.EllipticCurvePublicKey) and digest is not None:
            key.verify(certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(digest))
        elif isinstance(key, rsa.RSAPublicKey) and digest is not None:
            key.verify(certificate.signature, certificate.tbs_certificate_bytes, padding.PKCS1v15(), digest)
        else:
            return False
    except (InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _read_all(certificate: x509.Certificate) -> None:
    """cryptography reads a field when it is asked for, and raises only then."""
    public_bytes(certificate.public_key())
    for name in (certificate.subject, certificate.issuer):
        name.rfc4514_string().encode()
    not_before(certificate), not_after(certificate), list(certificate.extensions), certificate.signature_hash_algorithm


def _refuse(cause: str, hint: str = "") -> CredentialError:
    return CredentialError(f"cannot use the client certificate: {cause}", code="client-certificate-invalid", hint=hint)
