# SPDX-License-Identifier: Apache-2.0
"""`scaleoutctl trust …`: who may sign projects for a federation, from the first root to the one that a node accepts.

    scaleoutctl trust init --out trust --sign-with root.key --key ml=alice.pub --key security=bob.pub

Every role that is named must sign: here one of ml and one of security.  What changes a root makes the next one (rootdraft.py);
nothing is ever edited in place.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import click

from scaleoutd.cli.keygen import read_public_key
from scaleoutd.cli.rootdraft import RootFolder, lines_of, propose, tell, told
from scaleoutd.cli.signer import PASSPHRASE_OPTION, SSH_KEY_OPTION, signers_of
from scaleoutd.cli.signing import now
from scaleoutd.cli.terminal import escape
from scaleoutd.cli.trustchange import number, pairs, trust_add, trust_revoke, trust_rotate, trust_sign, trusted_key
from scaleoutd.cli.trustreset import trust_reset
from scaleoutd.core.clock import utc_text
from scaleoutd.core.keys import PublicKey
from scaleoutd.core.policy import parse_duration
from scaleoutd.core.trust import ROOT_ROLE, Role, TrustedKey, TrustRoot, parse_trust_root
from scaleoutd.errors import ConfigError


@click.group("trust")
def trust() -> None:
    """The keys that may sign projects.

    \b
    Example:
      scaleoutctl trust init --sign-with root.key --key ml=science.pub
    """


for _command in (trust_add, trust_rotate, trust_revoke, trust_sign, trust_reset):
    trust.add_command(_command)


@trust.command("init")
@click.option("--out", type=click.Path(path_type=Path), default=Path("trust"), show_default=True, help="Folder for 1.json.")
@click.option("--sign-with", "root_keys", type=click.Path(path_type=Path), multiple=True, help="Private root key.")
@SSH_KEY_OPTION
@PASSPHRASE_OPTION
@click.option("--key", "keys", multiple=True, required=True, metavar="ROLE=FILE", help="Public key that may sign in this role.")
@click.option("--threshold", "thresholds", multiple=True, metavar="ROLE=N", help="Default 1 for each role.")
@click.option("--project", "projects", multiple=True, default=("*",), show_default=True, help="Name pattern they may sign.")
@click.option("--verify-required", is_flag=True, help="Keys in an authenticator count with PIN or finger only.")
@click.option("--expires", default="730d", show_default=True, help="How long from now.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def trust_init(
    out: Path,
    root_keys: tuple[Path, ...],
    ssh_keys: tuple[Path, ...],
    passphrase_file: Path | None,
    keys: tuple[str, ...],
    thresholds: tuple[str, ...],
    projects: tuple[str, ...],
    verify_required: bool,
    expires: str,
    as_json: bool,
) -> None:
    """Write and sign root 1.  The keys that sign it are its root keys, and `--key root=FILE` names others.

    Below the threshold of role root it stays a draft, for `scaleoutctl trust sign`.

    \b
    Example:
      scaleoutctl trust init --sign-with root.key --key ml=science.pub --key security=security.pub
    """
    signers = signers_of(root_keys, passphrase_file, ssh_keys)
    named = [(ROOT_ROLE, signer.key, path.stem) for signer, path in zip(signers, (*root_keys, *ssh_keys), strict=True)]
    for role, file in pairs(keys, "--key"):
        named.append((role, read_public_key(Path(file)), Path(file).stem))
    counts = {role: number(text) for role, text in pairs(thresholds, "--threshold")}
    root = make_root(named, counts, projects, expires, verify_required=verify_required)
    if any(out.glob("[0-9]*.json")) or any(out.glob("[0-9]*.draft")):
        raise ConfigError(
            f"cannot write {out / '1.json'}: expected a folder without roots, found some, and a root is never replaced",
            hint=f"The next root: `scaleoutctl trust add {out}`, rotate or revoke.",
        )
    tell(propose(RootFolder(out, (), None), root, signers), as_json)


@trust.command("show")
@click.argument("folder", type=click.Path(exists=True, path_type=Path), default=Path("trust"))
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def trust_show(folder: Path, as_json: bool) -> None:
    """Say who may sign, as the chain in FOLDER has it, with a fingerprint to read out; and what its draft would change.

    \b
    Example:
      scaleoutctl trust show /etc/scaleoutd/trust
    """
    found = RootFolder.read(folder if folder.is_dir() else folder.parent)
    draft = parse_trust_root(found.draft.payload) if found.draft is not None else None
    roots = [*found.roots, *([draft] if draft else [])]
    if as_json:
        expired = found.last is not None and found.last.expires_ms <= now().wall_ms
        click.echo(json.dumps({"roots": [told(root) for root in found.roots], "expired": expired,
                               "draft": told(draft) if draft else None}, indent=2))  # fmt: skip
        return
    for root in roots:
        state = "draft" if root is draft else "expired" if root.expires_ms <= now().wall_ms else "valid"
        if root is not draft and root is not found.last:
            state = "followed"
        click.echo(escape(f"root {root.version}, {state}, until {utc_text(root.expires_ms)}, sha256 {root.digest()}"))
        for line in lines_of(root) if state != "followed" else ():
            click.echo(escape(line))


def make_root(
    named: Iterable[tuple[str, PublicKey, str]],
    thresholds: dict[str, int],
    projects: tuple[str, ...],
    expires: str,
    *,
    verify_required: bool = False,
) -> TrustRoot:
    """Root 1 from (role, key, name of the key)."""
    trusted: dict[str, TrustedKey] = {}
    roles: dict[str, dict[str, None]] = {}
    for role, key, name in named:
        trusted.setdefault(key.keyid, trusted_key(key, projects, name, verify_required=verify_required))
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
