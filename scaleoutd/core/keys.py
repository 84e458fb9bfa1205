# SPDX-License-Identifier: Apache-2.0
"""Public keys that sign projects and trust roots: Ed25519 and ECDSA P-256 (FIPS 186-5), no other.

Rules:
  1. A key's id is the SHA-256 (hex) of its SubjectPublicKeyInfo in DER as this library writes it, never what a document
     claims: one key in two encodings has one id (design-review F18).
  2. P-256 signatures are DER over SHA-256, Ed25519 signatures are 64 bytes (RFC 8032), as DSSE's implementations write them.
  3. A signature of `ssh-keygen -Y sign` (core/sshsig.py) by the same key is one of it too.  A key with an `application` is in an
     authenticator: only such signatures count for it, made with a touch, and with its owner verified where the trust root asks.
  4. Private keys are `cryptography` objects that the caller opened; nothing here reads a file.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from scaleoutd.core import sshsig
from scaleoutd.errors import FormatError

Algorithm = Literal["ed25519", "ecdsa-p256"]
PrivateKey = Ed25519PrivateKey | ec.EllipticCurvePrivateKey

MAX_PEM_CHARS = 1024
MAX_SIGNATURE_BYTES = sshsig.MAX_BLOB_BYTES
MAX_RAW_SIGNATURE_BYTES = 128

_PRIME = 2**255 - 19
# Points of small order (RFC 8032 section 5.1; RFC 7748 section 7): with such a key a signature exists that fits every message.
# Compared without the sign of x: -0 is written by some, and read as 0 by all.
_SMALL_ORDER = frozenset(
    int.from_bytes(bytes.fromhex(text), "little")
    for text in (
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    )
)


@dataclass(frozen=True)
class PublicKey:
    """A usable public key.  Two are equal when they are the same key, however they were written."""

    keyid: str  # SHA-256 of the SPKI DER, hex
    algorithm: Algorithm
    pem: str = field(compare=False)
    _key: Ed25519PublicKey | ec.EllipticCurvePublicKey = field(compare=False, repr=False)
    application: str | None = field(default=None, compare=False)  # of an authenticator's key: "ssh:" and so on
    verify_required: bool = field(default=False, compare=False)

    @classmethod
    def from_pem(cls, pem: str) -> PublicKey:
        """FormatError `key-invalid` for anything but one PEM public key of a known kind."""
        if len(pem) > MAX_PEM_CHARS:
            raise _refuse(f"it has {len(pem)} characters, at most {MAX_PEM_CHARS} are read")
        if pem.count("-----BEGIN") != 1:
            raise _refuse("it is not exactly one PEM block")
        try:
            key = serialization.load_pem_public_key(pem.encode("ascii"))
        except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
            raise _refuse(f"it is no PEM public key ({type(exc).__name__})") from exc
        return cls.of(key)

    @classmethod
    def of(cls, key: object) -> PublicKey:
        """From a `cryptography` public key object."""
        algorithm: Algorithm
        if isinstance(key, Ed25519PublicKey):
            algorithm = "ed25519"
            raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
            y = int.from_bytes(raw, "little") % 2**255
            if y >= _PRIME:
                raise _refuse("it is not in canonical form (RFC 8032 section 5.1.3)")
            if y in _SMALL_ORDER:
                raise _refuse("it is a point of small order, which fits any message")
        elif isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp256r1":
            algorithm = "ecdsa-p256"
        else:
            raise _refuse(f"expected Ed25519 or ECDSA P-256, found {_name_of(key)}")
        spki = serialization.PublicFormat.SubjectPublicKeyInfo
        pem = key.public_bytes(serialization.Encoding.PEM, spki).decode("ascii")
        der = key.public_bytes(serialization.Encoding.DER, spki)
        return cls(hashlib.sha256(der).hexdigest(), algorithm, pem, key)

    @classmethod
    def from_ssh(cls, key: sshsig.SshKey) -> PublicKey:
        """From OpenSSH's form; the id is the same as that of the PEM form."""
        found: Ed25519PublicKey | ec.EllipticCurvePublicKey
        try:
            if len(key.raw) == 32:
                found = Ed25519PublicKey.from_public_bytes(key.raw)
            else:
                found = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), key.raw)
        except ValueError as exc:
            raise _refuse("its point is not on the curve") from exc
        return replace(cls.of(found), application=key.application)

    def verify(self, signature: bytes, data: bytes) -> bool:
        """Whether `signature` over `data` was made with this key."""
        if signature.startswith(sshsig.MAGIC) and len(signature) > MAX_RAW_SIGNATURE_BYTES:
            return self._verify_ssh(signature, data)
        return self.application is None and len(signature) <= MAX_RAW_SIGNATURE_BYTES and self._verify(signature, data)

    def _verify_ssh(self, blob: bytes, data: bytes) -> bool:
        try:
            found = sshsig.parse_signature(blob)
            if PublicKey.from_ssh(found.key) != self or found.key.application != self.application:
                return False
        except FormatError:
            return False
        if found.claim is not None and not (found.claim.touched and (found.claim.user_verified or not self.verify_required)):
            return False
        return self._verify(found.signature, found.signed_bytes(data))

    def _verify(self, signature: bytes, data: bytes) -> bool:
        try:
            if isinstance(self._key, Ed25519PublicKey):
                self._key.verify(signature, data)
            else:
                self._key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


def sign(private_key: PrivateKey, data: bytes) -> bytes:
    """The signature of `data`; FormatError `key-invalid` for a key of another kind."""
    PublicKey.of(private_key.public_key())
    if isinstance(private_key, Ed25519PrivateKey):
        return private_key.sign(data)
    return private_key.sign(data, ec.ECDSA(hashes.SHA256()))


def public_key_of(private_key: PrivateKey) -> PublicKey:
    return PublicKey.of(private_key.public_key())


def _name_of(key: object) -> str:
    curve = getattr(key, "curve", None)
    return f"an EC key on {curve.name}" if curve is not None else type(key).__name__


def _refuse(cause: str) -> FormatError:
    return FormatError(
        f"cannot use the key: {cause}", code="key-invalid", hint="Make one with `scaleoutctl keygen` (Ed25519 or P-256)."
    )
