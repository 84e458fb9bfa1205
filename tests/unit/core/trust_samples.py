# SPDX-License-Identifier: Apache-2.0
"""Keys, trust roots and manifests for tests; each call makes a valid one, and the test then breaks it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from scaleoutd.core.clock import Now
from scaleoutd.core.envelope import STATEMENT_TYPE, serialise_envelope, sign_payload
from scaleoutd.core.keys import PrivateKey, public_key_of
from scaleoutd.core.manifest import FileEntry, Manifest, manifest_payload
from scaleoutd.core.trust import Role, TrustedKey, TrustRoot, sign_trust_root

AT_MS = 1_800_000_000_000
NOW = Now(AT_MS, 1_000, synchronised=True)
DAY_MS = 86_400_000

# Fixed seeds: a failure can be replayed.
ROOT_KEY = Ed25519PrivateKey.from_private_bytes(b"r" * 32)
ALICE = Ed25519PrivateKey.from_private_bytes(b"a" * 32)
BOB = ec.derive_private_key(0xB0B, ec.SECP256R1())
MALLORY = Ed25519PrivateKey.from_private_bytes(b"m" * 32)


def keyid(key: PrivateKey) -> str:
    return public_key_of(key).keyid


def trusted(key: PrivateKey, *projects: str, name: str = "") -> tuple[str, TrustedKey]:
    return keyid(key), TrustedKey(public_key_of(key).pem, projects or ("*",), name)


def make_root(
    roles: Mapping[str, tuple[Sequence[PrivateKey], int]] | None = None,
    *,
    version: int = 1,
    root_key: PrivateKey = ROOT_KEY,
    projects: Mapping[str, Sequence[str]] | None = None,
    **changes: Any,
) -> TrustRoot:
    """`roles`: name → (keys, threshold); default one signature of ALICE."""
    roles = roles or {"ml": ([ALICE], 1)}
    every = {"root": ([root_key], 1), **roles}
    patterns = projects or {}
    keys = dict(trusted(key, *patterns.get(keyid(key), ())) for group, _ in every.values() for key in group)
    values: dict[str, Any] = {
        "type": "scaleoutd-trust-root-v1",
        "version": version,
        "expires_ms": AT_MS + 100 * DAY_MS,
        "keys": keys,
        "roles": {name: Role(tuple(keyid(key) for key in group), threshold) for name, (group, threshold) in every.items()},
    }
    return TrustRoot(**{**values, **changes})


def root_bytes(root: TrustRoot, *keys: PrivateKey) -> bytes:
    return serialise_envelope(sign_trust_root(root, keys or (ROOT_KEY,)))


def entry(path: str, data: bytes = b"x", *, executable: bool = False) -> FileEntry:
    return FileEntry(path, len(data), hashlib.sha256(data).hexdigest(), executable)


def make_manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "project": "heart",
        "version": 3,
        "not_before_ms": AT_MS - DAY_MS,
        "expires_ms": AT_MS + 30 * DAY_MS,
        "files": (entry("scaleout.yaml"), entry("train.py")),
        "steps": {"train": ("python", "train.py"), "validate": ("python", "validate.py")},
    }
    return Manifest(**{**values, **changes})


def signed(manifest: Manifest, *keys: PrivateKey) -> bytes:
    return serialise_envelope(sign_payload(manifest_payload(manifest), STATEMENT_TYPE, keys or (ALICE,)))
