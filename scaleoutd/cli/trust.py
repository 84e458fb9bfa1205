# SPDX-License-Identifier: Apache-2.0
"""`scaleoutctl trust init`: the first trust root of a federation, from public keys.

    scaleoutctl trust init --out trust --sign-with root.key --key ml=alice.pub --key security=bob.pub

Every role that is named must sign: here one of ml and one of security.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import click

from scaleoutd.cli.keygen import read_passphrase, read_private_key, read_public_key
from scaleoutd.cli.signing import now
from scaleoutd.core.clock import utc_text
from scaleoutd.core.envelope import serialise_envelope
from scaleoutd.core.keys import PublicKey, public_key_of
from scaleoutd.core.policy import parse_duration
from scaleoutd.core.trust import ROOT_ROLE, Role, TrustedKey, TrustRoot, sign_trust_root, verify_chain
from scaleoutd.durable import replace_file, storage_errors
from scaleoutd.errors import ConfigError


@click.group("trust")
def trust() -> None:
    """The keys that may sign projects.

    \b
    Example:
      scaleoutctl trust init --sign-with root.key --key ml=science.pub
    """


@trust.command("init")
@click.option("--out", type=click.Path(path_type=Path), default=Path("trust"), show_default=True, help="Folder for 1.json.")
@click.option("--sign-with", "root_keys", type=click.Path(path_type=Path), multiple=True, required=True, help="Private root key.")
@click.option("--passphrase-file", type=click.Path(path_type=Path))
@click.option("--key", "keys", multiple=True, required=True, metavar="ROLE=FILE", help="Public key that may sign in this role.")
@click.option("--threshold", "thresholds", multiple=True, metavar="ROLE=N", help="Default 1 for each role.")
@click.option("--project", "projects", multiple=True, default=("*",), show_default=True, help="Name pattern they may sign.")
@click.option("--expires", default="730d", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def trust_init(
    out: Path,
    root_keys: tuple[Path, ...],
    passphrase_file: Path | None,
    keys: tuple[str, ...],
    thresholds: tuple[str, ...],
    projects: tuple[str, ...],
    expires: str,
    as_json: bool,
) -> None:
    """Write and sign root 1.

    \b
    Example:
      scaleoutctl trust init --sign-with root.key --key ml=science.pub --key security=security.pub
    """
    passphrase = read_passphrase(passphrase_file) if passphrase_file else None
    private_keys = [read_private_key(path, passphrase) for path in root_keys]
    named = [(ROOT_ROLE, public_key_of(key), path.stem) for key, path in zip(private_keys, root_keys, strict=True)]
    for role, file in _pairs(keys, "--key"):
        named.append((role, read_public_key(Path(file)), Path(file).stem))
    root = make_root(named, {role: _number(text) for role, text in _pairs(thresholds, "--threshold")}, projects, expires)
    path = out / "1.json"
    if path.exists():
        raise ConfigError(f"cannot write {path}: it exists, and a root is never replaced", hint="The next root is 2.json.")
    data = serialise_envelope(sign_trust_root(root, private_keys))
    verify_chain([data], now())
    with storage_errors(f"make the folder {out}"):
        out.mkdir(parents=True, exist_ok=True)
    replace_file(path, data, mode=0o644)
    if as_json:
        roles = {role: {"threshold": root.roles[role].threshold, "keys": list(root.roles[role].keys)} for role in root.roles}
        told = {"file": str(path), "version": root.version, "expires_ms": root.expires_ms, "sha256": root.digest()}
        click.echo(json.dumps({**told, "roles": roles}))
        return
    click.echo(f"wrote {path}: version {root.version}, until {utc_text(root.expires_ms)}, sha256 {root.digest()}")
    for role in sorted(root.roles):
        click.echo(f"  {role}: {root.roles[role].threshold} of {', '.join(root.key_name(key) for key in root.roles[role].keys)}")


def make_root(
    named: Iterable[tuple[str, PublicKey, str]], thresholds: dict[str, int], projects: tuple[str, ...], expires: str
) -> TrustRoot:
    """Root 1 from (role, key, name of the key)."""
    trusted: dict[str, TrustedKey] = {}
    roles: dict[str, dict[str, None]] = {}
    for role, key, name in named:
        trusted.setdefault(key.keyid, TrustedKey(key.pem, projects, name))
        roles.setdefault(role, {})[key.keyid] = None
    for role in thresholds:
        if role not in roles:
            raise ConfigError(f"cannot set a threshold for role {role}: no key has it", hint=f"Add --key {role}=FILE.")
    return TrustRoot(
        type="scaleoutd-trust-root-v1",
        version=1,
        expires_ms=now().wall_ms + parse_duration(expires) * 1000,
        keys=trusted,
        roles={role: Role(tuple(keyids), thresholds.get(role, 1)) for role, keyids in roles.items()},
    )


def _pairs(options: Iterable[str], flag: str) -> list[tuple[str, str]]:
    pairs = [option.partition("=")[::2] for option in options]
    for role, value in pairs:
        if not role or not value:
            raise ConfigError(f"cannot read {flag} {role}: expected ROLE=VALUE")
    return pairs


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"cannot read --threshold: expected a number from 1, found {text!r}")
    return int(text)
