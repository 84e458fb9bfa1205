# SPDX-License-Identifier: Apache-2.0
"""Signed checkpoints of the trail: C2SP tlog-checkpoint over C2SP signed-note.

    origin          line 1: the name of this trail, also the name of its keys
    size            line 2: number of events
    root            line 3: base64 of the RFC 6962 root over them
                    an empty line
    — name base64   one line a signature: key id (4 bytes) and signature

Signature types: 0x01 Ed25519 over the text; 0x02 ECDSA P-256 with SHA-256, ASN.1 DER.  A public key is written as the
note verifier key "name+hexid+base64(type ‖ key)".  We write no extension lines and read none: what is signed is exactly
size and root.  Checkpoints are kept one after the other in a file, each followed by an empty line.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from scaleoutd.core.strictjson import MAX_SAFE_INTEGER
from scaleoutd.errors import FormatError

ED25519 = 0x01
ECDSA = 0x02
MAX_NOTE_BYTES = 64 * 1024
MAX_SIGNATURES = 64

_ORIGIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/-]{0,127}")
_SIZE = re.compile(r"0|[1-9][0-9]{0,15}")
_DASH = "—"


@dataclass(frozen=True)
class Checkpoint:
    """What is signed: `root` (32 bytes) is the root over the first `size` events of the trail `origin`."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


@dataclass(frozen=True)
class Signature:
    name: str
    key_id: bytes
    value: bytes


@dataclass(frozen=True)
class Note:
    """A signed text, parsed and not yet verified."""

    text: str
    signatures: tuple[Signature, ...]

    def encode(self) -> bytes:
        lines = [f"{_DASH} {item.name} {base64.b64encode(item.key_id + item.value).decode()}\n" for item in self.signatures]
        return (self.text + "\n" + "".join(lines)).encode()


@dataclass(frozen=True)
class VerifierKey:
    """A public key by name: `kind` is ED25519 (32 raw bytes) or ECDSA (P-256, DER SubjectPublicKeyInfo)."""

    name: str
    kind: int
    public: bytes

    @property
    def key_id(self) -> bytes:
        # signed-note gives ECDSA keys an id of the key alone; all others have the name and the type in it.
        prefix = b"" if self.kind == ECDSA else self.name.encode() + b"\n" + bytes([self.kind])
        return hashlib.sha256(prefix + self.public).digest()[:4]

    def encode(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{base64.b64encode(bytes([self.kind]) + self.public).decode()}"

    def verify(self, message: bytes, signature: bytes) -> bool:
        try:
            if self.kind == ED25519:
                ed25519.Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
            else:
                _p256(self.public).verify(signature, message, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True

    def signed(self, note: Note) -> bool | None:
        """True or False for the signature of this key; None when the note has none of it."""
        mine = [item for item in note.signatures if item.name == self.name and item.key_id == self.key_id]
        if not mine:
            return None
        return all(self.verify(note.text.encode(), item.value) for item in mine)


def parse_key(text: str) -> VerifierKey:
    """A verifier key from its text; FormatError `key-invalid`."""
    try:
        name, key_id, data = text.strip().split("+", 2)
        raw = base64.b64decode(data, validate=True)
        key = VerifierKey(name, raw[0], raw[1:])
        if not _ORIGIN.fullmatch(name):
            raise ValueError("its name has forbidden characters")
        if key.kind == ED25519:
            ed25519.Ed25519PublicKey.from_public_bytes(key.public)
        elif key.kind == ECDSA:
            canonical = _p256(key.public).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            if canonical != key.public:
                raise ValueError("its key is not in DER form")
        else:
            raise ValueError(f"its type 0x{key.kind:02x} is unknown")
        if key.key_id.hex() != key_id:
            raise ValueError(f"its id is {key_id}, of its bytes {key.key_id.hex()}")
        if key.encode() != text.strip():
            raise ValueError("it is not in its one form")
    except (ValueError, IndexError, UnsupportedAlgorithm) as exc:
        raise FormatError(
            f"cannot read a checkpoint key: {exc}"[:400], code="key-invalid", hint="Expected name+id+base64."
        ) from exc
    return key


def parse_note(data: bytes) -> Note:
    """One signed note, strictly; FormatError `checkpoint-invalid`."""
    if len(data) > MAX_NOTE_BYTES:
        raise _refuse(f"it has {len(data)} bytes, at most {MAX_NOTE_BYTES} are read")
    try:
        whole = data.decode()
    except UnicodeDecodeError as exc:
        raise _refuse("it is not UTF-8") from exc
    if any(ord(char) < 0x20 and char != "\n" for char in whole):
        raise _refuse("it has a control character")
    text, found, tail = whole.rpartition("\n\n")
    if not found or not tail.endswith("\n"):
        raise _refuse("text and signatures are not divided by an empty line")
    lines = tail[:-1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise _refuse(f"it has {len(lines)} signatures")
    return Note(text + "\n", tuple(_signature(line) for line in lines))


def parse_checkpoint(text: str) -> Checkpoint:
    """The text of a note as a checkpoint; FormatError `checkpoint-invalid`."""
    lines = text.split("\n")
    if len(lines) != 4 or lines[3]:
        raise _refuse("it must have exactly the lines origin, size and root")
    origin, size, root = lines[:3]
    if not _ORIGIN.fullmatch(origin):
        raise _refuse("its origin has forbidden characters")
    if not _SIZE.fullmatch(size) or int(size) > MAX_SAFE_INTEGER:
        raise _refuse("its size is no decimal number")
    digest = _base64(root, "root")
    if len(digest) != 32:
        raise _refuse(f"its root has {len(digest)} bytes, not 32")
    return Checkpoint(origin, int(size), digest)


def split_notes(data: bytes) -> Iterator[bytes]:
    """The notes of a checkpoint file, each as its bytes; a torn last one is not among them (see `complete_bytes`)."""
    start = 0
    while (end := _end_of_note(data, start)) > 0:
        yield data[start : end - 1]
        start = end


def complete_bytes(data: bytes) -> int:
    """Length of the complete notes of a checkpoint file; what is behind it is the rest of a crash."""
    start = 0
    while (end := _end_of_note(data, start)) > 0:
        start = end
    return start


def join_notes(notes: Sequence[bytes]) -> bytes:
    return b"".join(note + b"\n" for note in notes)


def _end_of_note(data: bytes, start: int) -> int:
    # text, empty line, signatures, empty line: the second "\n\n" ends it
    middle = data.find(b"\n\n", start)
    end = data.find(b"\n\n", middle + 2) if middle >= 0 else -1
    return end + 2 if end >= 0 else -1


def _signature(line: str) -> Signature:
    parts = line.split(" ")
    if len(parts) != 3 or parts[0] != _DASH or not parts[1] or "+" in parts[1] or any(char.isspace() for char in parts[1]):
        raise _refuse("a signature line must be: dash, name, base64")
    raw = _base64(parts[2], "signature")
    if len(raw) < 5:
        raise _refuse("a signature is too short")
    return Signature(parts[1], raw[:4], raw[4:])


def _base64(text: str, what: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error) as exc:
        raise _refuse(f"its {what} is not base64") from exc
    if base64.b64encode(raw).decode() != text:
        raise _refuse(f"its {what} is not in the one form of base64")
    return raw


def _p256(public: bytes) -> ec.EllipticCurvePublicKey:
    key = load_der_public_key(public)
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("an ECDSA key must be on P-256")
    return key


def _refuse(cause: str) -> FormatError:
    return FormatError(
        f"cannot read a checkpoint: {cause}", code="checkpoint-invalid", hint="Take the file from another copy of the trail."
    )
