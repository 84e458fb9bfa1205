# SPDX-License-Identifier: Apache-2.0
"""A folder of trust roots, 1.json … N.json, and the draft of the next one, `N+1.draft`.

A draft becomes a root when enough root keys of the root before and of itself have signed it.  It may travel: whoever has the
folder, on a computer without a network too, adds a signature (`scaleoutctl trust sign`) and hands it on.  A change to a draft
drops the signatures that it had.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from scaleoutd.cli.diff import fingerprint
from scaleoutd.cli.signer import Signer
from scaleoutd.cli.terminal import escape
from scaleoutd.core.clock import utc_text
from scaleoutd.core.envelope import TRUST_ROOT_TYPE, Envelope, parse_envelope, serialise_envelope
from scaleoutd.core.trust import ROOT_ROLE, TrustRoot, missing_signatures, parse_trust_root, verify_links
from scaleoutd.durable import replace_file, storage_errors
from scaleoutd.errors import ConfigError
from scaleoutd.runner.rootfile import read_root_documents


@dataclass(frozen=True)
class RootFolder:
    """`roots` as far as they are signed; `draft` of the root after the last one."""

    path: Path
    roots: tuple[TrustRoot, ...]
    draft: Envelope | None

    @classmethod
    def read(cls, path: Path) -> RootFolder:
        """VerificationError `trust-root-invalid` when the chain does not hold; an expired one is read, it is to be renewed."""
        roots = verify_links(read_root_documents(path)) if any(path.glob("[0-9]*.json")) else ()
        draft_path = path / f"{roots[-1].version + 1 if roots else 1}.draft"
        draft = None
        with storage_errors(f"read {draft_path}"):
            if draft_path.exists():
                draft = parse_envelope(draft_path.read_bytes(), TRUST_ROOT_TYPE, unsigned=True)
        return cls(path, roots, draft)

    @property
    def last(self) -> TrustRoot | None:
        return self.roots[-1] if self.roots else None

    @property
    def next_version(self) -> int:
        return self.last.version + 1 if self.last else 1

    @property
    def newest(self) -> TrustRoot:
        """What a change begins from: the draft, else the last root."""
        if self.draft is not None:
            return parse_trust_root(self.draft.payload)
        if self.last is None:
            raise ConfigError(
                f"cannot change the trust root in {self.path}: there is none",
                code="config-missing",
                hint="`scaleoutctl trust init`",
            )
        return self.last

    @property
    def draft_path(self) -> Path:
        return self.path / f"{self.next_version}.draft"


@dataclass(frozen=True)
class Outcome:
    """`missing`: version → signatures of its root keys that are still to come; empty when `file` is a root."""

    file: Path
    root: TrustRoot
    missing: Mapping[int, int]


def propose(folder: RootFolder, root: TrustRoot, signers: list[Signer]) -> Outcome:
    """A new root of the folder with the signatures of `signers`; it stays a draft while some are missing."""
    parse_trust_root(root.payload())
    return add_signatures(folder, Envelope(root.payload(), TRUST_ROOT_TYPE, ()), signers)


def add_signatures(folder: RootFolder, envelope: Envelope, signers: list[Signer]) -> Outcome:
    root = parse_trust_root(envelope.payload)
    for signer in signers:
        _must_be_root_key(signer, root, folder.last)
        envelope = signer.add_to(envelope)
    missing = missing_signatures(envelope, root, folder.last)
    with storage_errors(f"make the folder {folder.path}"):
        folder.path.mkdir(parents=True, exist_ok=True)
    path = folder.draft_path if missing else folder.path / f"{root.version}.json"
    replace_file(path, serialise_envelope(envelope), mode=0o644)
    if not missing:
        with storage_errors(f"remove {folder.draft_path}"):
            folder.draft_path.unlink(missing_ok=True)
    return Outcome(path, root, missing)


def _must_be_root_key(signer: Signer, root: TrustRoot, before: TrustRoot | None) -> None:
    known = {key for one in (before, root) if one is not None for key in one.roles[ROOT_ROLE].keys}
    if signer.key.keyid not in known:
        names = ", ".join(sorted(root.key_name(key) for key in known))
        raise ConfigError(
            f"cannot sign root {root.version} with key {signer.key.keyid[:12]}: expected a root key ({names}), found another",
            hint="Sign with a key of role root; `scaleoutctl trust show` lists them.",
        )


def tell(outcome: Outcome, as_json: bool) -> None:
    root = outcome.root
    if as_json:
        click.echo(
            json.dumps({"file": str(outcome.file), **told(root), "missing": {str(k): v for k, v in outcome.missing.items()}})
        )
        return
    verb = "drafted" if outcome.missing else "wrote"
    click.echo(
        escape(f"{verb} {outcome.file}: version {root.version}, until {utc_text(root.expires_ms)}, sha256 {root.digest()}")
    )
    for line in lines_of(root):
        click.echo(escape(line))
    for version, count in outcome.missing.items():
        click.echo(
            f"still to sign: {count} root key(s) of version {version}, with `scaleoutctl trust sign {outcome.file.parent}`"
        )


def told(root: TrustRoot) -> dict[str, Any]:
    """JSON of a root."""
    keys = {
        keyid: {
            "name": key.name,
            "projects": list(key.projects),
            "revoked": keyid in root.revoked_keys,
            "algorithm": key.public_key().algorithm,
            "application": key.application,
        }
        for keyid, key in root.keys.items()
    }
    return {
        "version": root.version,
        "expires_ms": root.expires_ms,
        "sha256": root.digest(),
        "fingerprint": fingerprint(root.digest()),
        "development": root.development,
        "roles": {name: {"threshold": role.threshold, "keys": list(role.keys)} for name, role in root.roles.items()},
        "keys": keys,
        "revoked_keys": list(root.revoked_keys),
        "revoked_manifests": list(root.revoked_manifests),
    }


def lines_of(root: TrustRoot) -> list[str]:
    """For people: roles with their keys, what is revoked, and the fingerprint to read out."""
    lines = []
    for name in sorted(root.roles):
        role = root.roles[name]
        lines.append(f"  {name}: {role.threshold} of {', '.join(_shown(root, keyid) for keyid in role.keys)}")
    lines += [f"  revoked manifest {sha256}" for sha256 in root.revoked_manifests]
    lines.append(f"  fingerprint {fingerprint(root.digest())}")
    return lines


def _shown(root: TrustRoot, keyid: str) -> str:
    key = root.keys[keyid]
    marks = [f"only {' '.join(key.projects)}"] if key.projects != ("*",) else []
    marks += ["in an authenticator"] if key.application else []
    marks += ["revoked"] if keyid in root.revoked_keys else []
    return root.key_name(keyid) + (f" ({', '.join(marks)})" if marks else "")
