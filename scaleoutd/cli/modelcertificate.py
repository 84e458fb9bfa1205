# SPDX-License-Identifier: Apache-2.0
"""The key of a model's signing certificate, if a CA that the caller trusts stands above it (RFC 5280 section 6, in part).

Rules:
  1. Anchors are the self-signed certificates that the caller gives; what else is given, or lies in the bundle, may only link.
  2. Every certificate is valid now.  model-signing asks whether it was when the signer's own began, so an ended one passes there.
  3. The signer's own is no CA and is for signing: keyUsage, when there, has digitalSignature, extendedKeyUsage, when there, has
     codeSigning, and one of them is there.  A client's TLS certificate of the same CA signs no model.
  4. A CA may issue (basicConstraints, its path length, keyCertSign); a critical extension that is not read here refuses.
  5. Revocation is not looked up: there is no network, and the format has no place for a list.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TypeVar

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from scaleoutd.cli.certificates import MAX_CHAIN, UNREADABLE, fingerprint, is_signed_by, not_after, not_before
from scaleoutd.core.keys import PublicKey
from scaleoutd.errors import VerificationError

_READ = {ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE, ExtensionOID.EXTENDED_KEY_USAGE}
Extension = TypeVar("Extension", bound=x509.ExtensionType)


def signing_key(chain: Sequence[bytes], given: Sequence[x509.Certificate], now: datetime) -> tuple[PublicKey, str]:
    """The key and the subject of `chain[0]` (DER); `now` is naive, UTC.

    VerificationError `signature-invalid` when no anchor of `given` stands above it; FormatError `key-invalid` for another key
    than P-256.
    """
    with _readable():
        own, *others = [x509.load_der_x509_certificate(item) for item in chain]
        anchors = {fingerprint(item) for item in given if item.subject == item.issuer and is_signed_by(item, item)}
        if not anchors:
            raise _refuse("expected a self-signed CA certificate in --certificate-chain, found none")
        _check_own(own, now)
        _check_issuers(own, (*given, *others), anchors, now)
        return PublicKey.of(own.public_key()), _name(own)


def _check_own(own: x509.Certificate, now: datetime) -> None:
    if fault := _fault_of_any(own, now):
        raise _refuse(f"{_name(own)} {fault}")
    constraints = _extension(own, x509.BasicConstraints)
    usage, extended = _extension(own, x509.KeyUsage), _extension(own, x509.ExtendedKeyUsage)
    if constraints is not None and constraints.ca:
        raise _refuse(f"expected a signer's certificate, found the CA {_name(own)}")
    may_sign = (usage is None or usage.digital_signature) and (extended is None or ExtendedKeyUsageOID.CODE_SIGNING in extended)
    if not may_sign or (usage is None and extended is None):
        raise _refuse(
            f"expected a certificate for digitalSignature or codeSigning, found that of {_name(own)} for something else"
        )


def _check_issuers(own: x509.Certificate, issuers: Sequence[x509.Certificate], anchors: set[str], now: datetime) -> None:
    current = own
    for below in range(MAX_CHAIN):
        fault = f"found none of {current.issuer.rfc4514_string()[:200]!r}"
        for issuer in sorted(issuers, key=lambda item: fingerprint(item) not in anchors):
            if issuer == current or issuer.subject != current.issuer or not is_signed_by(current, issuer):
                continue
            wrong = _fault_of_any(issuer, now) or _fault_of_issuer(issuer, below)
            if not wrong:
                break
            fault = f"found {_name(issuer)}, which {wrong}"
        else:
            raise _refuse(f"expected a CA given with --certificate-chain above {_name(current)}, {fault}")
        if fingerprint(issuer) in anchors:
            return
        current = issuer
    raise _refuse(f"expected at most {MAX_CHAIN} certificates above {_name(own)}, found no end")


def _fault_of_any(certificate: x509.Certificate, now: datetime) -> str:
    if not not_before(certificate) <= now <= not_after(certificate):
        return (
            f"is valid from {not_before(certificate):%Y-%m-%d %H:%M} to {not_after(certificate):%Y-%m-%d %H:%M} UTC,"
            f" now is {now:%Y-%m-%d %H:%M}"
        )
    unread = [item.oid.dotted_string for item in certificate.extensions if item.critical and item.oid not in _READ]
    return f"has the critical extension {unread[0]}, which is not read here" if unread else ""


def _fault_of_issuer(issuer: x509.Certificate, below: int) -> str:
    """`below`: CAs between it and the signer."""
    constraints, usage = _extension(issuer, x509.BasicConstraints), _extension(issuer, x509.KeyUsage)
    extended = _extension(issuer, x509.ExtendedKeyUsage)
    if constraints is None or not constraints.ca or (usage is not None and not usage.key_cert_sign):
        return "is no CA"
    if constraints.path_length is not None and constraints.path_length < below:
        return f"may have {constraints.path_length} CAs below it, not {below}"
    if extended is not None and not {ExtendedKeyUsageOID.CODE_SIGNING, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(
        extended
    ):
        return "issues for something else than codeSigning"
    return ""


def _extension(certificate: x509.Certificate, kind: type[Extension]) -> Extension | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _name(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string()[:200].encode("unicode_escape").decode("ascii") or "a certificate without a name"


@contextmanager
def _readable() -> Iterator[None]:
    # Fields of a certificate are parsed when they are asked for, each with an exception of its own.
    try:
        yield
    except UNREADABLE as exc:
        raise _refuse(f"expected X.509 certificates, found one that cannot be read ({type(exc).__name__})") from exc


def _refuse(cause: str) -> VerificationError:
    return VerificationError(
        f"cannot accept the model signature: {cause}",
        code="signature-invalid",
        hint="Ask who signed for their CA, then `scaleoutctl verify FOLDER --model-signature FILE --certificate-chain CA`.",
    )
