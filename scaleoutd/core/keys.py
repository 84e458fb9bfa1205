# SPDX-License-Identifier: Apache-2.0
"""Public keys that sign projects and trust roots: Ed25519 and ECDSA P-256 (FIPS 186-5), no other.

Rules:
  1. A key's id is the SHA-256 (hex) of its SubjectPublicKeyInfo in DER as this library writes it, never what a document
     claims: one key in two encodings has one id (design-review F18).
  2. P-256 signatures are DER over SHA-256, Ed25519 signatures are 64 bytes (RFC 8032), as DSSE's implementations write them.
  3. Private keys are `cryptography` objects that the caller opened; nothing here reads a file.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from scaleoutd.errors import FormatError

Algorithm = Literal["ed25519", "ecdsa-p256"]
PrivateKey = Ed25519PrivateKey | ec.EllipticCurvePrivateKey

MAX_PEM_CHARS = 1024
MAX_SIGNATURE_BYTES = 128

# Points of small order (RFC 8032 section 5.1; RFC 7748 section 7): with such a key a signature exists that fits every message.
_SMALL_ORDER = frozenset(
    bytes.fromhex(text)
    for text in (
        "0100000000000000000000000000000000000000000000000000000000000000",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000080",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    )
)


@dataclass(frozen=True)
class PublicKey:
    """A usable public key.  Two are equal when they are the same key, however they were written."""

    keyid: str  # SHA-256 of the SPKI DER, hex
    algorithm: Algorithm
    pem: str = field(compare=False)
    _key: Ed25519PublicKey | ec.EllipticCurvePublicKey = field(compare=False, repr=False)

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
            if raw in _SMALL_ORDER:
                raise _refuse("it is a point of small order, which fits any message")
        elif isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp256r1":
            algorithm = "ecdsa-p256"
        else:
            raise _refuse(f"expected Ed25519 or ECDSA P-256, found {_name_of(key)}")
        spki = serialization.PublicFormat.SubjectPublicKeyInfo
        pem = key.public_bytes(serialization.Encoding.PEM, spki).decode("ascii")
        der = key.public_bytes(serialization.Encoding.DER, spki)
        return cls(hashlib.sha256(der).hexdigest(), algorithm, pem, key)

    def verify(self, signature: bytes, data: bytes) -> bool:
        """Whether `signature` over `data` was made with this key."""
        if len(signature) > MAX_SIGNATURE_BYTES:
            return False
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
