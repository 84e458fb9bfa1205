# SPDX-License-Identifier: Apache-2.0
"""`scaleoutctl keygen`: a key pair in two files, NAME.key (PKCS#8 PEM, 0600) and NAME.pub (SPKI PEM).

An existing file is never overwritten: a lost signing key cannot be had back.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

import click
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from scaleoutd.core.keys import PrivateKey, PublicKey, public_key_of
from scaleoutd.core.sshsig import parse_key_line
from scaleoutd.durable import storage_errors, sync_folder, write_all
from scaleoutd.errors import ConfigError, FormatError

MAX_KEY_FILE_BYTES = 16 * 1024
_MAKE = "Make a key: `scaleoutctl keygen`."


@dataclass(frozen=True)
class KeyFiles:
    private_path: Path
    public_path: Path
    keyid: str


@click.command("keygen")
@click.option("--out", type=click.Path(path_type=Path), default=Path(), help="Folder for the two files.")
@click.option("--algorithm", type=click.Choice(["ed25519", "p256"]), default="ed25519", show_default=True)
@click.option("--name", default="scaleout", show_default=True, help="File name without its end.")
@click.option("--passphrase-file", type=click.Path(path_type=Path), help="Encrypt the private key with this file's first line.")
@click.option("--encrypt", is_flag=True, help="Encrypt the private key; ask for the passphrase.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def keygen(out: Path, algorithm: str, name: str, passphrase_file: Path | None, encrypt: bool, as_json: bool) -> None:
    """Make a signing key.

    \b
    Examples:
      scaleoutctl keygen --name science --encrypt
      scaleoutctl keygen --name science --algorithm p256 --passphrase-file phrase
    """
    passphrase = read_passphrase(passphrase_file) if passphrase_file else None
    if encrypt and passphrase is None:
        passphrase = str(click.prompt("Passphrase", hide_input=True, confirmation_prompt=True, err=True)).encode("utf-8")
    files = write_key_pair(out, name, new_private_key(algorithm), passphrase)
    if as_json:
        told = {"private_key": str(files.private_path), "public_key": str(files.public_path), "keyid": files.keyid}
        click.echo(json.dumps({**told, "algorithm": algorithm}))
        return
    click.echo(f"private key  {files.private_path}  keep it off the nodes")
    click.echo(f"public key   {files.public_path}")
    click.echo(f"key id       {files.keyid}")


def new_private_key(algorithm: str) -> PrivateKey:
    """`ed25519` or `p256`."""
    return Ed25519PrivateKey.generate() if algorithm == "ed25519" else ec.generate_private_key(ec.SECP256R1())


def write_key_pair(folder: Path, name: str, private_key: PrivateKey, passphrase: bytes | None = None) -> KeyFiles:
    """Writes both files, durably; ConfigError when one of them is there."""
    if not name or "/" in name or name.startswith("."):
        raise ConfigError(f"cannot name a key {name!r}: expected a plain file name", hint="Choose another --name.")
    protection = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    private_pem = private_key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)
    public = public_key_of(private_key)
    files = KeyFiles(folder / f"{name}.key", folder / f"{name}.pub", public.keyid)
    with storage_errors(f"write the key pair to {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        _create(files.private_path, private_pem, 0o600)
        _create(files.public_path, public.pem.encode("ascii"), 0o644)
        sync_folder(folder)
    return files


def open_private_key(path: Path, passphrase_file: Path | None) -> PrivateKey:
    """The key at `path`; where it is encrypted and no file has its passphrase, the person at the terminal is asked."""
    if passphrase_file is not None:
        return read_private_key(path, read_passphrase(passphrase_file))
    try:
        return read_private_key(path)
    except FormatError as exc:
        if not isinstance(exc.__cause__, TypeError) or not sys.stdin.isatty():
            raise
    return read_private_key(path, str(click.prompt(f"Passphrase of {path}", hide_input=True, err=True)).encode("utf-8"))


def read_private_key(path: Path, passphrase: bytes | None = None) -> PrivateKey:
    """A private key file; ConfigError when others may read it, FormatError `key-invalid` when it is no key of ours."""
    with storage_errors(f"read the key {path}"):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError as exc:
            raise ConfigError(
                f"cannot read the key {path}: it does not exist", code="config-missing", hint="Make one: `scaleoutctl keygen`."
            ) from exc
        with os.fdopen(fd, "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(MAX_KEY_FILE_BYTES + 1)
    if b"PUBLIC KEY" in data or data.startswith((b"ssh-", b"sk-", b"ecdsa-")):
        raise ConfigError(
            f"cannot sign with {path}: expected a private key, found a public one",
            hint="Name the .key file of `scaleoutctl keygen`; a key that ssh-keygen uses goes with --ssh-key.",
        )
    if mode & 0o077:
        raise ConfigError(
            f"cannot use the key {path}: expected mode 0600, found {mode:04o}, so others may read it", hint=f"chmod 600 {path}"
        )
    key = _load(path, data, passphrase)
    if not isinstance(key, Ed25519PrivateKey | ec.EllipticCurvePrivateKey):
        found = type(key).__name__.strip("_")
        raise FormatError(f"cannot use the key {path}: expected Ed25519 or P-256, found {found}", code="key-invalid", hint=_MAKE)
    public_key_of(key)
    return key


def _load(path: Path, data: bytes, passphrase: bytes | None) -> object:
    try:
        return serialization.load_pem_private_key(data, passphrase)
    except TypeError as exc:
        if passphrase is None:
            cause, hint = "it is encrypted", "Name a file whose first line opens it: --passphrase-file FILE."
        else:
            cause, hint = "it is not encrypted", "Leave out --passphrase-file."
        raise FormatError(f"cannot use the key {path}: {cause}", code="key-invalid", hint=hint) from exc
    except (ValueError, UnsupportedAlgorithm) as exc:
        if b"ENCRYPTED" in data and passphrase is not None:
            cause, hint = "the passphrase does not open it", "Try again with the right one: --passphrase-file FILE."
        elif b"OPENSSH PRIVATE KEY" in data:
            cause, hint = "expected a PEM private key, found one of OpenSSH", f"Sign with ssh-keygen: --ssh-key {path}."
        else:
            cause, hint = "expected a PEM private key, found none", _MAKE
        raise FormatError(f"cannot use the key {path}: {cause}", code="key-invalid", hint=hint) from exc


def read_public_key(path: Path) -> PublicKey:
    with storage_errors(f"read the key {path}"):
        data = path.read_bytes()[: MAX_KEY_FILE_BYTES + 1]
    if b"PRIVATE KEY" in data:
        raise ConfigError(f"cannot use {path} as a public key: it is a private one", hint="Name the .pub file beside it.")
    try:
        text = data.decode("ascii")
        if text.startswith(("ssh-", "ecdsa-", "sk-")):
            return PublicKey.from_ssh(parse_key_line(text))
        return PublicKey.from_pem(text)
    except (UnicodeDecodeError, FormatError) as exc:
        raise FormatError(
            f"cannot use {path}: expected a public key, Ed25519 or P-256, in PEM or as OpenSSH writes it; found none",
            code="key-invalid",
            hint="Name the .pub file of `scaleoutctl keygen` or ssh-keygen.",
        ) from exc


def read_passphrase(path: Path) -> bytes:
    """The first line of a file."""
    with storage_errors(f"read the passphrase {path}"):
        lines = path.read_bytes().splitlines()
    if not lines or not lines[0]:
        raise ConfigError(
            f"cannot read the passphrase {path}: expected it in the first line, found none", hint="Write it into the first line."
        )
    return lines[0]


def _create(path: Path, data: bytes, mode: int) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileExistsError as exc:
        message = f"cannot write {path}: it exists, and a key is never overwritten"
        raise ConfigError(message, hint="Choose another --name.") from exc
    try:
        write_all(fd, data)
        os.fchmod(fd, mode)
        os.fsync(fd)
    finally:
        os.close(fd)
