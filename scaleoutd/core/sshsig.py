# SPDX-License-Identifier: Apache-2.0
"""Signatures of `ssh-keygen -Y sign` and public keys as OpenSSH writes them: how hardware keys sign here.

Sources: OpenSSH's PROTOCOL.sshsig (the armour and what is signed), PROTOCOL.u2f (keys and signatures of FIDO authenticators),
RFC 4251 section 5 (string, mpint), RFC 5656 section 3.1.2 and RFC 8709 section 6 (signature blobs).

Rules:
  1. The namespace is `scaleoutd`: a signature that somebody made for git or e-mail is none on a project.
  2. What an authenticator signs is SHA-256(application), flags, counter, SHA-256(message); `U2fClaim` has the first three.  That
     the flags say "a person touched it" is the caller's to demand; the counter is not looked at, as nobody keeps the one before.
  3. Every field is read to its end: nothing may follow, and nothing of an unknown kind is passed over.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import NoReturn

from scaleoutd.errors import FormatError

NAMESPACE = "scaleoutd"
MAGIC = b"SSHSIG"
MAX_BLOB_BYTES = 1024
MAX_LINE_CHARS = 2048

ED25519, P256 = "ssh-ed25519", "ecdsa-sha2-nistp256"
SK_ED25519, SK_P256 = "sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com"
CURVE = b"nistp256"

_BEGIN, _END = "-----BEGIN SSH SIGNATURE-----", "-----END SSH SIGNATURE-----"


@dataclass(frozen=True)
class SshKey:
    """`raw`: 32 bytes of Ed25519, or the uncompressed point (65 bytes) of P-256.  `application` of an authenticator's key."""

    kind: str
    raw: bytes
    application: str | None = None


@dataclass(frozen=True)
class U2fClaim:
    """What an authenticator says beside its signature."""

    flags: int
    counter: int

    @property
    def touched(self) -> bool:
        return bool(self.flags & 0x01)

    @property
    def user_verified(self) -> bool:
        return bool(self.flags & 0x04)


@dataclass(frozen=True)
class SshSignature:
    """`signature`: 64 bytes of Ed25519, or r and s of P-256 in DER.  `claim` of an authenticator's."""

    key: SshKey
    hash_name: str
    signature: bytes
    claim: U2fClaim | None = None

    def signed_bytes(self, message: bytes) -> bytes:
        """What the key itself signed for `message`."""
        digest = hashlib.new(self.hash_name, message).digest()
        inner = MAGIC + b"".join(map(_string, (NAMESPACE.encode(), b"", self.hash_name.encode(), digest)))
        if self.claim is None:
            return inner
        application = hashlib.sha256((self.key.application or "").encode()).digest()
        return b"%b%c%b%b" % (
            application,
            self.claim.flags,
            self.claim.counter.to_bytes(4, "big"),
            hashlib.sha256(inner).digest(),
        )


def unarmour(text: str) -> bytes:
    """The bytes between the BEGIN and END lines of a .sig file."""
    lines = text.strip().splitlines()
    if len(text) > 2 * MAX_BLOB_BYTES or len(lines) < 3 or lines[0] != _BEGIN or lines[-1] != _END:
        _refuse("expected one block of BEGIN SSH SIGNATURE")
    blob = _base64("".join(lines[1:-1]), "the signature")
    parse_signature(blob)
    return blob


def parse_signature(blob: bytes) -> SshSignature:
    """FormatError `key-invalid` for anything but one signature of namespace `scaleoutd` by a known kind of key."""
    if len(blob) > MAX_BLOB_BYTES or not blob.startswith(MAGIC):
        _refuse("it does not begin as one, or is too long")
    reader = _Reader(blob[len(MAGIC) :])
    if reader.uint32() != 1:
        _refuse("its version is not 1")
    key = parse_key(reader.string())
    namespace = reader.string()
    if namespace != NAMESPACE.encode():
        _refuse(f"expected namespace {NAMESPACE}, found {namespace[:40]!r}: ssh-keygen -Y sign -n {NAMESPACE}")
    if reader.string():
        _refuse("its reserved field is not empty")
    hash_name = reader.string().decode("ascii", "replace")
    if hash_name not in ("sha256", "sha512"):
        _refuse(f"expected hash sha256 or sha512, found {hash_name[:20]!r}")
    inner = _Reader(reader.string())
    reader.end()
    return _signature(key, hash_name, inner)


def parse_key(blob: bytes) -> SshKey:
    """A public key blob: of RFC 4253 section 6.6, or of PROTOCOL.u2f."""
    reader = _Reader(blob)
    kind = reader.string().decode("ascii", "replace")
    if kind in (ED25519, SK_ED25519):
        raw = reader.string()
        if len(raw) != 32:
            _refuse("an Ed25519 key has 32 bytes")
    elif kind in (P256, SK_P256):
        if reader.string() != CURVE:
            _refuse("its curve is not nistp256")
        raw = reader.string()
        if len(raw) != 65 or raw[0] != 4:
            _refuse("expected an uncompressed point of P-256")
    else:
        _refuse(f"a key of kind {kind[:40]!r} is not taken: Ed25519 or P-256, on an authenticator or not")
    application = None
    if kind in (SK_ED25519, SK_P256):
        application = reader.string().decode("utf-8", "replace")
    reader.end()
    return SshKey(kind, raw, application)


def parse_key_line(line: str) -> SshKey:
    """A line of a .pub file: kind, base64, and a comment that is not read."""
    words = line.split(None, 2)
    if len(line) > MAX_LINE_CHARS or len(words) < 2:
        _refuse("expected a line of kind, base64 and comment")
    key = parse_key(_base64(words[1], "the key"))
    if key.kind != words[0]:
        _refuse(f"the line says {words[0][:40]!r}, the key {key.kind!r}")
    return key


def _signature(key: SshKey, hash_name: str, reader: _Reader) -> SshSignature:
    kind = reader.string().decode("ascii", "replace")
    if kind != key.kind:
        _refuse(f"a signature of kind {kind[:40]!r} by a key of kind {key.kind}")
    signature = reader.string()
    if kind in (P256, SK_P256):
        pair = _Reader(signature)
        signature = _der(pair.mpint(), pair.mpint())
        pair.end()
    elif len(signature) != 64:
        _refuse("an Ed25519 signature has 64 bytes")
    claim = U2fClaim(reader.byte(), reader.uint32()) if key.application is not None else None
    reader.end()
    return SshSignature(key, hash_name, signature, claim)


def _der(r: int, s: int) -> bytes:
    """ECDSA-Sig-Value of RFC 3279 section 2.2.3."""
    parts = []
    for number in (r, s):
        data = number.to_bytes(number.bit_length() // 8 + 1, "big")
        parts.append(b"\x02%c%b" % (len(data), data))
    body = b"".join(parts)
    return b"\x30%c%b" % (len(body), body)


def _string(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


class _Reader:
    """RFC 4251 section 5, without ever reading past the end."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def _take(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            _refuse("it ends in the middle of a field")
        self._at += count
        return self._data[self._at - count : self._at]

    def byte(self) -> int:
        return self._take(1)[0]

    def uint32(self) -> int:
        return int.from_bytes(self._take(4), "big")

    def string(self) -> bytes:
        return self._take(self.uint32())

    def mpint(self) -> int:
        data = self.string()
        if not data or len(data) > 33 or data[0] >= 0x80 or (data[0] == 0 and (len(data) == 1 or data[1] < 0x80)):
            _refuse("a number of its is not positive and in its shortest form")
        return int.from_bytes(data, "big")

    def end(self) -> None:
        if self._at != len(self._data):
            _refuse("something follows its end")


def _base64(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise FormatError(f"cannot read the SSH signature or key: {what} is not base64", code="key-invalid") from exc


def _refuse(cause: str) -> NoReturn:
    raise FormatError(
        f"cannot read the SSH signature or key: {cause}",
        code="key-invalid",
        hint=f"Make it with `ssh-keygen -Y sign -n {NAMESPACE} -f KEY FILE` and an Ed25519 or P-256 key.",
    )
