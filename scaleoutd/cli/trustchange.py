# SPDX-License-Identifier: Apache-2.0
"""`scaleoutctl trust add | rotate | revoke | sign`: the next root of a folder, as a draft until enough root keys have signed it.

Several changes before the signatures are one root.  A root never loses what it knew: a key that goes is revoked or replaced, and
stays listed, so that refusals can name it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from scaleoutd.cli.diff import read_signed
from scaleoutd.cli.keygen import read_public_key
from scaleoutd.cli.rootdraft import RootFolder, add_signatures, propose, tell
from scaleoutd.cli.signer import PASSPHRASE_OPTION, SSH_KEY_OPTION, SSHSIG_OPTION, Signer, signers_of
from scaleoutd.cli.signing import now
from scaleoutd.core.envelope import to_sign
from scaleoutd.core.keys import PublicKey
from scaleoutd.core.policy import parse_duration
from scaleoutd.core.trust import Role, TrustedKey, TrustRoot
from scaleoutd.durable import replace_file
from scaleoutd.errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])
SHORTEST_ID = 8

_FOLDER = click.argument("folder", type=click.Path(file_okay=False, exists=True, path_type=Path), default=Path("trust"))
_SIGN_WITH = click.option("--sign-with", "root_keys", type=click.Path(path_type=Path), multiple=True, help="Private root key.")
_EXPIRES = click.option("--expires", default="730d", show_default=True, help="How long the new root is valid from now.")
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")


def _signing(function: F) -> F:
    """The options of a command that makes a root, and `signers` in their place."""

    @functools.wraps(function)
    def called(*words: Any, root_keys: Any, ssh_keys: Any, passphrase_file: Any, **options: Any) -> Any:
        named = root_keys or ssh_keys
        signers = signers_of(root_keys, passphrase_file, ssh_keys) if named else []
        return function(*words, signers=signers, **options)

    for option in (_JSON, _EXPIRES, PASSPHRASE_OPTION, SSH_KEY_OPTION, _SIGN_WITH):
        called = option(called)
    return called  # type: ignore[return-value]


@click.command("add")
@_FOLDER
@click.option("--key", "keys", multiple=True, metavar="ROLE=FILE", help="Public key that may sign in this role.")
@click.option("--threshold", "thresholds", multiple=True, metavar="ROLE=N", help="How many of the role must sign from now on.")
@click.option(
    "--project", "projects", multiple=True, default=("*",), show_default=True, help="Name pattern the new keys may sign."
)
@click.option("--verify-required", is_flag=True, help="Keys in an authenticator count with PIN or finger only.")
@_signing
def trust_add(
    folder: Path,
    keys: tuple[str, ...],
    thresholds: tuple[str, ...],
    projects: tuple[str, ...],
    verify_required: bool,
    expires: str,
    signers: list[Signer],
    as_json: bool,
) -> None:
    """Add keys to roles of the trust root in FOLDER, or change how many must sign.

    \b
    Example:
      scaleoutctl trust add trust --key ml=carol.pub --sign-with root.key
    """
    found = RootFolder.read(folder)
    root = found.newest
    trusted, roles = dict(root.keys), dict(root.roles)
    for role, file in pairs(keys, "--key"):
        key = read_public_key(Path(file))
        trusted.setdefault(key.keyid, trusted_key(key, projects, Path(file).stem, verify_required=verify_required))
        before = roles.get(role, Role((), 1))
        roles[role] = replace(before, keys=tuple(dict.fromkeys((*before.keys, key.keyid))))
    for role, text in pairs(thresholds, "--threshold"):
        if role not in roles:
            raise ConfigError(f"cannot set a threshold for role {role}: no key has it", hint=f"Add --key {role}=FILE.")
        roles[role] = replace(roles[role], threshold=number(text))
    _must_differ((trusted, roles), (root.keys, root.roles))
    tell(propose(found, _next(found, root, expires, keys=trusted, roles=roles), signers), as_json)


@click.command("rotate")
@_FOLDER
@click.option("--old", required=True, metavar="KEY", help="The key that goes: its name, id (from 8 letters) or file.")
@click.option("--new", required=True, type=click.Path(exists=True, path_type=Path), help="Public key that takes its place.")
@click.option("--revoke", is_flag=True, help="The old one is revoked too: what it signed runs no more.")
@_signing
def trust_rotate(folder: Path, old: str, new: Path, revoke: bool, expires: str, signers: list[Signer], as_json: bool) -> None:
    """Put another key in the place of one, in its role, with its project patterns.

    What the old key signed does not count any more.  For a root key, the old and the new one sign.

    \b
    Example:
      scaleoutctl trust rotate trust --old science --new science2.pub --sign-with root.key
    """
    found = RootFolder.read(folder)
    root = found.newest
    before, key = find_key(root, old), read_public_key(new)
    if key.keyid in root.keys:
        raise ConfigError(f"cannot put {new} in the place of {old}: the root has it already", hint="`scaleoutctl trust show`")
    trusted = {**root.keys, key.keyid: trusted_key(key, root.keys[before].projects, new.stem)}
    if not revoke:
        del trusted[before]
    roles = {
        name: replace(role, keys=tuple(key.keyid if keyid == before else keyid for keyid in role.keys))
        for name, role in root.roles.items()
    }
    revoked = (*root.revoked_keys, before) if revoke else root.revoked_keys
    tell(propose(found, _next(found, root, expires, keys=trusted, roles=roles, revoked_keys=revoked), signers), as_json)


@click.command("revoke")
@_FOLDER
@click.option("--key", "keys", multiple=True, metavar="KEY", help="A key: its name, id (from 8 letters) or file.")
@click.option("--manifest", "manifests", multiple=True, metavar="WHAT", help="A manifest: its digest, its file, or the project.")
@_signing
def trust_revoke(
    folder: Path, keys: tuple[str, ...], manifests: tuple[str, ...], expires: str, signers: list[Signer], as_json: bool
) -> None:
    """Let signatures of a key count for nothing, or a version of a project run no more.

    \b
    Examples:
      scaleoutctl trust revoke trust --key science --sign-with root.key
      scaleoutctl trust revoke trust --manifest my-project --sign-with root.key
    """
    found = RootFolder.read(folder)
    root = found.newest
    revoked = tuple(dict.fromkeys((*root.revoked_keys, *(find_key(root, word) for word in keys))))
    digests = tuple(dict.fromkeys((*root.revoked_manifests, *map(_digest_of, manifests))))
    _must_differ((revoked, digests), (root.revoked_keys, root.revoked_manifests))
    for name, role in root.roles.items():
        left = [keyid for keyid in role.keys if keyid not in revoked]
        if len(left) < role.threshold:
            raise ConfigError(
                f"cannot revoke: role {name} asks for {role.threshold} signature(s), {len(left)} of its keys would be left",
                hint="Put another key in its place: `scaleoutctl trust rotate --old KEY --new FILE --revoke`.",
            )
    tell(propose(found, _next(found, root, expires, revoked_keys=revoked, revoked_manifests=digests), signers), as_json)


@click.command("sign")
@_FOLDER
@click.option("--request", type=click.Path(path_type=Path), help="Write what is to be signed, for ssh-keygen elsewhere.")
@_SIGN_WITH
@SSH_KEY_OPTION
@SSHSIG_OPTION
@PASSPHRASE_OPTION
@_JSON
def trust_sign(
    folder: Path,
    request: Path | None,
    root_keys: tuple[Path, ...],
    ssh_keys: tuple[Path, ...],
    ssh_signatures: tuple[Path, ...],
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Add signatures to the draft in FOLDER; with enough of them it becomes the next root.  Needs no network.

    \b
    Examples:
      scaleoutctl trust sign trust --sign-with second-root.key
      scaleoutctl trust sign trust --request draft.bin
      ssh-keygen -Y sign -n scaleoutd -f ~/.ssh/id_ed25519_sk draft.bin
      scaleoutctl trust sign trust --sshsig draft.bin.sig
    """
    found = RootFolder.read(folder)
    if found.draft is None:
        raise ConfigError(
            f"cannot sign the next root: expected {found.draft_path}, found no draft",
            code="config-missing",
            hint="Make one: `scaleoutctl trust add`, rotate or revoke.",
        )
    if request is not None:
        replace_file(request, to_sign(found.draft), mode=0o644)
    signers = signers_of(root_keys, passphrase_file, ssh_keys, ssh_signatures) if request is None else []
    tell(add_signatures(found, found.draft, signers), as_json)


def find_key(root: TrustRoot, word: str) -> str:
    """The id of a key of `root` by its name, the head of its id, or its public key's file."""
    if Path(word).is_file():
        keyid = read_public_key(Path(word)).keyid
        matches = [keyid] if keyid in root.keys else []
    else:
        by_id = re.fullmatch(r"[0-9a-f]{8,64}", word) is not None
        matches = [keyid for keyid, key in root.keys.items() if key.name == word or (by_id and keyid.startswith(word))]
    if len(matches) != 1:
        names = ", ".join(sorted(root.key_name(keyid) for keyid in root.keys))
        raise ConfigError(
            f"cannot find the key {word}: expected one of root {root.version} ({names}), found {len(matches)}",
            hint=f"Name its id (from {SHORTEST_ID} letters) or file; `scaleoutctl trust show`.",
        )
    return matches[0]


def trusted_key(key: PublicKey, projects: tuple[str, ...], name: str, *, verify_required: bool = False) -> TrustedKey:
    asks = True if verify_required and key.application is not None else None
    return TrustedKey(key.pem, projects, name, key.application, asks)


def pairs(options: Iterable[str], flag: str) -> list[tuple[str, str]]:
    """Of options ROLE=VALUE."""
    found = [(role, value) for role, _, value in (option.partition("=") for option in options)]
    for role, value in found:
        if not role or not value:
            raise ConfigError(f"cannot read {flag} {role}: expected ROLE=VALUE")
    return found


def number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"cannot read --threshold: expected a number from 1, found {text!r}")
    return int(text)


def _next(found: RootFolder, root: TrustRoot, expires: str, **changes: Any) -> TrustRoot:
    expires_ms = now().wall_ms + parse_duration(expires) * 1000
    return replace(root, version=found.next_version, expires_ms=expires_ms, **changes)


def _digest_of(word: str) -> str:
    if re.fullmatch(r"[0-9a-f]{64}", word):
        return word
    sha256 = read_signed(Path(word)).sha256 if Path(word).exists() else None
    if sha256 is None:
        raise ConfigError(
            f"cannot revoke {word}: expected a manifest's digest, its file or a project's folder, found none of them"
        )
    return sha256


def _must_differ(after: Sequence[object] | Mapping[str, object], before: Sequence[object] | Mapping[str, object]) -> None:
    if after == before:
        raise ConfigError("cannot make the next root: nothing would change", hint="Name what is to change; see --help.")
