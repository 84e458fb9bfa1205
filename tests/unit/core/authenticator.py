# SPDX-License-Identifier: Apache-2.0
"""A FIDO authenticator in software: OpenSSH's sk keys and what `ssh-keygen -Y sign` makes of their signatures, for tests.

Written from PROTOCOL.u2f and PROTOCOL.sshsig, apart from the code that reads them; ssh-keygen itself checks it in
test_sshsig.py.
"""

from __future__ import annotations

import base64
import hashlib
import textwrap
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from scaleoutd.core.keys import PrivateKey

TOUCHED, VERIFIED = 0x01, 0x04


def string(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def mpint(value: int) -> bytes:
    return string(value.to_bytes(value.bit_length() // 8 + 1, "big"))


@dataclass(frozen=True)
class SshSigner:
    """`application` makes it an authenticator's key; every other field is what a test bends."""

    key: PrivateKey
    application: str | None = "ssh:"
    flags: int = TOUCHED
    counter: int = 7
    namespace: str = "scaleoutd"
    hash_name: str = "sha512"
    reserved: bytes = b""
    version: int = 1
    tail: bytes = b""  # after the signature
    signs: str | None = None  # another application than the key says

    @property
    def is_ed25519(self) -> bool:
        return isinstance(self.key, Ed25519PrivateKey)

    @property
    def kind(self) -> str:
        if self.application is None:
            return "ssh-ed25519" if self.is_ed25519 else "ecdsa-sha2-nistp256"
        return "sk-ssh-ed25519@openssh.com" if self.is_ed25519 else "sk-ecdsa-sha2-nistp256@openssh.com"

    @property
    def public_blob(self) -> bytes:
        public = self.key.public_key()
        if self.is_ed25519:
            body = string(public.public_bytes(Encoding.Raw, PublicFormat.Raw))
        else:
            body = string(b"nistp256") + string(public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint))
        return string(self.kind.encode()) + body + (string(self.application.encode()) if self.application is not None else b"")

    @property
    def public_line(self) -> str:
        return f"{self.kind} {base64.b64encode(self.public_blob).decode()} somebody@host"

    def sign(self, message: bytes) -> bytes:
        """The SSHSIG blob."""
        names = string(self.namespace.encode()) + string(self.reserved) + string(self.hash_name.encode())
        inner = b"SSHSIG" + names + string(hashlib.new(self.hash_name, message).digest())
        return (
            b"SSHSIG" + self.version.to_bytes(4, "big") + string(self.public_blob) + names + string(self._signature(inner))
            + self.tail
        )  # fmt: skip

    def armoured(self, message: bytes) -> str:
        lines = textwrap.wrap(base64.b64encode(self.sign(message)).decode(), 70)
        return "\n".join(["-----BEGIN SSH SIGNATURE-----", *lines, "-----END SSH SIGNATURE-----", ""])

    def _signature(self, inner: bytes) -> bytes:
        claim = b""
        if self.application is not None:
            claim = bytes([self.flags]) + self.counter.to_bytes(4, "big")
            application = (self.signs if self.signs is not None else self.application).encode()
            inner = hashlib.sha256(application).digest() + claim + hashlib.sha256(inner).digest()
        if isinstance(self.key, Ed25519PrivateKey):
            raw = self.key.sign(inner)
        else:
            r, s = decode_dss_signature(self.key.sign(inner, ec.ECDSA(hashes.SHA256())))
            raw = mpint(r) + mpint(s)
        return string(self.kind.encode()) + string(raw) + claim
