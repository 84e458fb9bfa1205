# SPDX-License-Identifier: Apache-2.0
"""A small certificate authority: ECDSA P-256, days of validity, keys readable by their owner only.

Rules:
  1. Certificates carry what a strict verifier asks for (RFC 5280 4.2): key usage, extended key usage, both key ids.
  2. A private key file is created 0600 and never replaced.
  3. Only cryptography 38's interface is used (Debian 12).
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from scaleoutd.durable import storage_errors
from scaleoutd.errors import FormatError

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class CertifiedKey:
    """Where a certificate and its key lie (PEM), and the SHA-256 of the certificate's DER in lower-case hex."""

    certificate: Path
    key: Path
    fingerprint: str


class CertificateAuthority:
    """Makes its own root in `folder` and issues certificates there; two authorities never share a key."""

    def __init__(self, folder: Path, name: str = "scaleoutd demo CA") -> None:
        self._folder = folder
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._issued = 0
        self.ca_file = folder / "ca.pem"
        with storage_errors(f"make the demo CA in {folder}"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.ca_file.write_bytes(self._self_signed().public_bytes(serialization.Encoding.PEM))

    def issue_server(self, label: str, hosts: Iterable[str] = LOOPBACK_HOSTS, *, expired: bool = False) -> CertifiedKey:
        """A certificate for a server that answers under `hosts` (names or addresses)."""
        names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        return self._issue(label, ExtendedKeyUsageOID.SERVER_AUTH, names, expired=expired)

    def issue_client(self, label: str, *, expired: bool = False) -> CertifiedKey:
        """A certificate whose subject is `CN=label`."""
        return self._issue(label, ExtendedKeyUsageOID.CLIENT_AUTH, None, expired=expired)

    def certify_client(self, request: bytes) -> bytes:
        """The certificate for a request, both PEM; FormatError for a request that is not signed by its own key."""
        try:
            asked = x509.load_pem_x509_csr(request)
            is_signed, key = asked.is_signature_valid, asked.public_key()
            asked.subject.rfc4514_string().encode()
        except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as exc:
            cause = f"it is no certificate request: {str(exc)[:400]}"
            raise FormatError(f"cannot certify: {cause}", code="key-invalid") from exc
        if not is_signed or not isinstance(key, ec.EllipticCurvePublicKey):
            raise FormatError("cannot certify: expected a request for an EC key, signed by that key", code="key-invalid")
        usage = ExtendedKeyUsageOID.CLIENT_AUTH
        return self._certified(asked.subject, key, usage, None, expired=False).public_bytes(serialization.Encoding.PEM)

    def _issue(
        self,
        label: str,
        usage: x509.ObjectIdentifier,
        names: x509.SubjectAlternativeName | None,
        *,
        expired: bool,
    ) -> CertifiedKey:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, label)])
        certificate = self._certified(subject, key.public_key(), usage, names, expired=expired)
        self._issued += 1
        stem = f"{self._issued:03d}-{''.join(c if c.isalnum() else '_' for c in label)[:40]}"
        return self._write(stem, certificate, key)

    def _certified(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        usage: x509.ObjectIdentifier,
        names: x509.SubjectAlternativeName | None,
        *,
        expired: bool,
    ) -> x509.Certificate:
        builder = (
            self._builder(subject, key, expired=expired)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        )
        if names is not None:
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def _write(self, stem: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> CertifiedKey:
        certificate_file = self._folder / f"{stem}.pem"
        key_file = self._folder / f"{stem}.key"
        with storage_errors(f"write the certificate {certificate_file}"):
            certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
            fd = os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(
                    key.private_bytes(
                        serialization.Encoding.PEM,
                        serialization.PrivateFormat.PKCS8,
                        serialization.NoEncryption(),
                    )
                )
        return CertifiedKey(certificate_file, key_file, fingerprint_of(certificate))

    def _self_signed(self) -> x509.Certificate:
        return (
            self._builder(self._name, self._key.public_key(), expired=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    def _builder(self, subject: x509.Name, public_key: ec.EllipticCurvePublicKey, *, expired: bool) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        first, last = (-3, -1) if expired else (-10, 30)
        issuer_key_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=first))
            .not_valid_after(now + timedelta(days=last))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(issuer_key_id, critical=False)
        )


def fingerprint_of(certificate: x509.Certificate) -> str:
    """SHA-256 of the DER form, lower-case hex: what `openssl x509 -fingerprint -sha256` shows without colons."""
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:  # not an address, so it is a name
        return x509.DNSName(host)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
