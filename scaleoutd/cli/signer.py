# SPDX-License-Identifier: Apache-2.0
"""Who signs on the command line: a key file of ours, a key that ssh-keygen uses (hardware keys, an agent), or a signature that
was made on another computer.

    --key FILE        private key of `scaleoutctl keygen`, encrypted or not
    --ssh-key FILE    key of OpenSSH: ssh-keygen is called and asks for PIN or touch; the .pub file when the key is in an agent
    --sshsig FILE     what `ssh-keygen -Y sign -n scaleoutd -f KEY REQUEST` wrote, wherever that was
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import click

from scaleoutd.cli.keygen import MAX_KEY_FILE_BYTES, open_private_key
from scaleoutd.core.envelope import Envelope, to_sign, with_signature
from scaleoutd.core.keys import PublicKey, public_key_of, sign
from scaleoutd.core.sshsig import NAMESPACE, parse_key_line, parse_signature, unarmour
from scaleoutd.durable import storage_errors
from scaleoutd.errors import ConfigError, FormatError

T = TypeVar("T")
TOUCH_S = 120.0
_PATH = click.Path(path_type=Path)

PASSPHRASE_OPTION = click.option(
    "--passphrase-file", type=_PATH, help="File whose first line opens the private key; a terminal is asked without it."
)
SSH_KEY_OPTION = click.option(
    "--ssh-key", "ssh_keys", type=_PATH, multiple=True, help="Key of OpenSSH; ssh-keygen asks for PIN or touch."
)
SSHSIG_OPTION = click.option(
    "--sshsig", "ssh_signatures", type=_PATH, multiple=True, help="Signature that ssh-keygen -Y sign -n scaleoutd wrote."
)


@dataclass(frozen=True)
class Signer:
    """`sign` makes the signature of some bytes; it may ask a person."""

    key: PublicKey
    sign: Callable[[bytes], bytes]

    def add_to(self, envelope: Envelope) -> Envelope:
        return with_signature(envelope, self.sign(to_sign(envelope)), self.key)


def signers_of(
    key_files: Sequence[Path], passphrase_file: Path | None, ssh_keys: Sequence[Path], ssh_signatures: Sequence[Path] = ()
) -> list[Signer]:
    """ConfigError when there is none."""
    signers = [of_key_file(path, passphrase_file) for path in key_files]
    signers += [of_ssh_key(path) for path in ssh_keys]
    signers += [of_ssh_signature(path) for path in ssh_signatures]
    if not signers:
        raise ConfigError("cannot sign: no key was named", hint="Name one with --key, --ssh-key or --sshsig.")
    return signers


def of_key_file(path: Path, passphrase_file: Path | None) -> Signer:
    private_key = open_private_key(path, passphrase_file)
    return Signer(public_key_of(private_key), lambda data: sign(private_key, data))


def of_ssh_key(path: Path) -> Signer:
    """The public half lies beside it; `path` may be that half itself."""
    public = path if path.suffix == ".pub" else path.with_name(f"{path.name}.pub")
    with storage_errors(f"read the key {public}"):
        line = public.read_bytes()[:MAX_KEY_FILE_BYTES].decode("utf-8", "replace")
    return Signer(_named(public, lambda: PublicKey.from_ssh(parse_key_line(line))), lambda data: _ask_ssh_keygen(path, data))


def of_ssh_signature(path: Path) -> Signer:
    with storage_errors(f"read the signature {path}"):
        text = path.read_bytes()[: MAX_KEY_FILE_BYTES + 1].decode("ascii", "replace")
    blob = _named(path, lambda: unarmour(text))
    return Signer(_named(path, lambda: PublicKey.from_ssh(parse_signature(blob).key)), lambda data: blob)


def _named(path: Path, read: Callable[[], T]) -> T:
    """What is read of bytes does not know their file; a person has several."""
    try:
        return read()
    except FormatError as exc:
        cause = exc.message.partition(": ")[2] or exc.message
        raise FormatError(f"cannot use {path}: {cause}", code=exc.code, hint=exc.hint) from exc


def _ask_ssh_keygen(key_file: Path, data: bytes) -> bytes:
    """It reads the bytes from its standard input and asks on the terminal."""
    words = ["ssh-keygen", "-Y", "sign", "-n", NAMESPACE, "-f", str(key_file)]
    try:
        done = subprocess.run(words, input=data, stdout=subprocess.PIPE, timeout=TOUCH_S, check=False)
    except FileNotFoundError as exc:
        raise ConfigError(
            "cannot sign with an OpenSSH key: ssh-keygen is not installed",
            code="config-missing",
            hint="apt install openssh-client",
        ) from exc
    except subprocess.TimeoutExpired as exc:
        raise ConfigError(
            f"cannot sign with {key_file}: ssh-keygen had no answer for {TOUCH_S:.0f} s",
            hint="Touch the key when it blinks, and try again; or sign elsewhere: --request FILE, then --sshsig FILE.sig.",
        ) from exc
    if done.returncode != 0:
        raise FormatError(
            f"cannot sign with {key_file}: ssh-keygen ended with status {done.returncode}",
            code="key-invalid",
            hint="What it printed is above. Name the .pub file when the key is in an agent.",
        )
    return unarmour(done.stdout.decode("ascii", "replace"))
