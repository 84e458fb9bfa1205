# SPDX-License-Identifier: Apache-2.0
"""The audit keys: the only place of the project that opens an audit private key.

A key lives for one epoch.  The key of epoch N certifies that of N + 1 by a signed note over
    scaleoutd epoch key v1 / origin / N + 1 / verifier key of N + 1
which goes into the trail as an `epoch-key-made` event, under a checkpoint by key N; then key N is destroyed.  Whoever takes
the machine later cannot sign the past again (forward security, as journald's sealing wants to be).

    STATE/private/epoch-N.pem   0600, PKCS #8          STATE/keys/epoch-N.vkey   0644, note verifier key
"""

from __future__ import annotations

import base64
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from scaleoutd.core.checkpoint import ECDSA, ED25519, Checkpoint, Note, Signature, VerifierKey, parse_key
from scaleoutd.core.trail import certificate_text
from scaleoutd.durable import make_private_folder, replace_file, storage_errors, sync_folder, write_all
from scaleoutd.errors import ConfigError, FormatError, StorageError

PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey

_PRIVATE = re.compile(r"epoch-([1-9][0-9]{0,8})\.pem")
_PUBLIC = re.compile(r"epoch-([1-9][0-9]{0,8})\.vkey")
MAX_PEM_BYTES = 4096
GONE = ".gone"


@dataclass(frozen=True)
class EpochKey:
    """A private key with its number and its public half."""

    epoch: int
    private: PrivateKey
    public: VerifierKey


class Signer:
    """Signs with the key of the current epoch; `next` is set between `prepare` and `complete`."""

    def __init__(self, folder: Path, current: EpochKey, following: EpochKey | None) -> None:
        self._folder = folder
        self.current = current
        self.next = following

    @classmethod
    def create(cls, folder: Path, algorithm: str) -> Signer:
        """The keys of a new trail: a random origin and epoch 1."""
        make_private_folder(folder / "private")
        with storage_errors(f"make {folder / 'keys'}"):
            (folder / "keys").mkdir(mode=0o755, exist_ok=True)
        origin = f"scaleoutd/{secrets.token_hex(8)}"
        current = _make(folder, origin, 1, algorithm)
        _publish(folder, current)
        return cls(folder, current, None)

    @classmethod
    def open(cls, folder: Path) -> Signer:
        """The keys that are there; ConfigError `config-missing` when the private one is gone."""
        published = _numbers(folder / "keys", _PUBLIC)
        private = _numbers(folder / "private", _PRIVATE)
        if not published or not private:
            raise ConfigError(
                f"cannot open the audit key: {folder / 'private'} has none",
                code="config-missing",
                hint="Restore the folder of the ledger as a whole, or move the trail away to begin a new one.",
            )
        origin = parse_key((folder / "keys" / f"epoch-{published[0]}.vkey").read_text()).name
        _sweep(folder / "private")
        # Two private keys: a crash came between the making of the next key and the destruction of the old one.
        if private[-1] in published:
            for old in private[:-1]:
                _destroy(folder, old)
            return cls(folder, _load(folder, origin, private[-1]), None)
        if len(private) < 2:
            raise ConfigError(f"cannot open the audit key: epoch {private[-1]} is not published", code="config-missing")
        return cls(folder, _load(folder, origin, private[-2]), _load(folder, origin, private[-1]))

    @property
    def origin(self) -> str:
        return self.current.public.name

    def sign(self, checkpoint: Checkpoint) -> bytes:
        """The signed note of a checkpoint."""
        text = checkpoint.text()
        key = self.current
        return Note(text, (Signature(key.public.name, key.public.key_id, _sign(key.private, text.encode())),)).encode()

    def prepare(self) -> dict[str, str | int]:
        """Makes the next key, durably, and returns the body of its `epoch-key-made` event."""
        if self.next is None:
            algorithm = "ecdsa-p256" if self.current.public.kind == ECDSA else "ed25519"
            self.next = _make(self._folder, self.origin, self.current.epoch + 1, algorithm)
        text = certificate_text(self.origin, self.next.epoch, self.next.public.encode())
        return {
            "epoch": self.next.epoch,
            "key": self.next.public.encode(),
            "certificate": base64.b64encode(_sign(self.current.private, text)).decode(),
            "previous_key": self.current.public.encode(),
        }

    def complete(self) -> None:
        """The certificate is on record: publishes the next key, destroys the old one."""
        if self.next is None:
            return
        _publish(self._folder, self.next)
        _destroy(self._folder, self.current.epoch)
        self.current, self.next = self.next, None

    def withdraw(self) -> None:
        """The next key never came into the trail (a crash before): destroys it."""
        if self.next is not None:
            _destroy(self._folder, self.next.epoch)
            self.next = None


def _make(folder: Path, origin: str, epoch: int, algorithm: str) -> EpochKey:
    private: PrivateKey
    if algorithm == "ed25519":
        private = ed25519.Ed25519PrivateKey.generate()
    elif algorithm == "ecdsa-p256":
        private = ec.generate_private_key(ec.SECP256R1())
    else:
        raise ConfigError(f"cannot make an audit key: algorithm {algorithm!r}, expected ed25519 or ecdsa-p256")
    pem = private.private_bytes(Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    replace_file(folder / "private" / f"epoch-{epoch}.pem", pem, mode=0o600)
    return EpochKey(epoch, private, _public(origin, private))


def _load(folder: Path, origin: str, epoch: int) -> EpochKey:
    path = folder / "private" / f"epoch-{epoch}.pem"
    with storage_errors(f"read {path}"):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            status = os.fstat(fd)
            if status.st_mode & 0o077 or status.st_uid != os.geteuid():
                raise ConfigError(
                    f"cannot use the audit key {path}: mode {status.st_mode & 0o777:04o} of uid {status.st_uid},"
                    f" expected 0600 of uid {os.geteuid()}",
                    hint="Somebody else could read it: begin a new epoch on a clean machine.",
                )
            pem = os.read(fd, MAX_PEM_BYTES)
        finally:
            os.close(fd)
    try:
        private = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise FormatError(f"cannot read the audit key {path}: it is no PEM private key", code="key-invalid") from exc
    if not isinstance(private, ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey):
        raise FormatError(f"cannot use the audit key {path}: it is neither Ed25519 nor P-256", code="key-invalid")
    return EpochKey(epoch, private, _public(origin, private))


def _public(origin: str, private: PrivateKey) -> VerifierKey:
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return VerifierKey(origin, ED25519, private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))
    spki = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return VerifierKey(origin, ECDSA, spki)


def _sign(private: PrivateKey, message: bytes) -> bytes:
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return private.sign(message)
    return private.sign(message, ec.ECDSA(hashes.SHA256()))


def _publish(folder: Path, key: EpochKey) -> None:
    path = folder / "keys" / f"epoch-{key.epoch}.vkey"
    if not path.exists():
        replace_file(path, (key.public.encode() + "\n").encode(), mode=0o644)


def _destroy(folder: Path, epoch: int) -> None:
    """Destroys a private key.  The name goes first: a key that is half overwritten must not be found under it."""
    path = folder / "private" / f"epoch-{epoch}.pem"
    with storage_errors(f"destroy {path}"):
        path.rename(path.with_suffix(GONE))
        sync_folder(path.parent)
    _sweep(folder / "private")


def _sweep(folder: Path) -> None:
    """Overwrites and removes keys that are to be destroyed and the rests of a crash.

    On copying file systems and on flash the overwriting may not reach every copy.
    """
    for path in folder.iterdir():
        if path.suffix in (GONE, ".new"):
            with storage_errors(f"destroy {path}"):
                fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    write_all(fd, bytes(os.fstat(fd).st_size))
                    os.fsync(fd)
                finally:
                    os.close(fd)
                path.unlink()
    sync_folder(folder)


def _numbers(folder: Path, pattern: re.Pattern[str]) -> list[int]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise StorageError(f"cannot read {folder}: {exc.strerror}") from exc
    return sorted(int(match[1]) for name in names if (match := pattern.fullmatch(name)))
