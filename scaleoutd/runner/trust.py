# SPDX-License-Identifier: Apache-2.0
"""Reads what the administrator put down for the runner: the policy in force and the chain of trust roots.

Both are read for each task, after the request and never before: a change counts from the next task on.
"""

from __future__ import annotations

from pathlib import Path

from scaleoutd.core.clock import FloorsLike, Now
from scaleoutd.core.policy import MAX_POLICY_BYTES, Policy, parse_policy
from scaleoutd.core.trust import MAX_ROOT_BYTES, TrustRoot, verify_chain
from scaleoutd.errors import ConfigError, VerificationError


def read_policy(path: Path) -> Policy:
    """The policy in its canonical form (`policy.lock`)."""
    return parse_policy(_read(path, MAX_POLICY_BYTES, "policy"))


def read_trust_root(path: Path, now: Now, floors: FloorsLike) -> TrustRoot:
    """The last root of a file, or of the files 1.json, 2.json, … in a folder."""
    if path.is_dir():
        numbered = sorted((item for item in path.iterdir() if item.stem.isdigit()), key=lambda item: int(item.stem))
        files = [item for item in numbered if item.suffix == ".json"]
        if not files:
            raise VerificationError(
                f"cannot trust the root of trust: there is no 1.json in {path}",
                code="trust-root-invalid",
                hint="Make one with `scaleoutctl trust init`.",
            )
    else:
        files = [path]
    documents = [_read(file, MAX_ROOT_BYTES, "trust root") for file in files]
    return verify_chain(documents, now, floor_version=floors.root_version)


def _read(path: Path, max_bytes: int, what: str) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as exc:
        raise ConfigError(
            f"cannot read the {what} {path}: {exc.strerror}", code="config-missing", hint="See its path, owner and mode."
        ) from exc
    if len(data) > max_bytes:
        raise ConfigError(f"cannot read the {what} {path}: it is larger than {max_bytes} bytes")
    return data
