# SPDX-License-Identifier: Apache-2.0
"""Reads the chain of trust roots that the administrator put down.  It is read for each task, after the request."""

from __future__ import annotations

from pathlib import Path

from scaleoutd.core.clock import FloorsLike, Now
from scaleoutd.core.trust import MAX_ROOT_BYTES, MAX_ROOTS, TrustRoot, verify_chain
from scaleoutd.errors import ConfigError


def read_trust_root(path: Path, now: Now, floors: FloorsLike) -> TrustRoot:
    """The last root of one file, or of the chain 1.json … N.json in a folder."""
    return verify_chain(read_root_documents(path), now, floor_version=floors.root_version)


def read_root_documents(path: Path) -> tuple[bytes, ...]:
    """The envelopes of a chain, oldest first."""
    files = [path]
    if path.is_dir():
        numbered = [item for item in path.glob("*.json") if item.stem.isascii() and item.stem.isdigit()]
        files = sorted(numbered, key=lambda item: int(item.stem))[:MAX_ROOTS]
        if not files:
            raise _missing(f"there is no 1.json in {path}")
    return tuple(_read(file) for file in files)


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_ROOT_BYTES + 1)
    except OSError as exc:
        raise _missing(f"{path}: {exc.strerror}") from exc
    if len(data) > MAX_ROOT_BYTES:
        raise ConfigError(f"cannot read the trust root {path}: it is larger than {MAX_ROOT_BYTES} bytes")
    return data


def _missing(cause: str) -> ConfigError:
    return ConfigError(
        f"cannot read the trust root: {cause}", code="config-missing", hint="Make one: `scaleoutctl trust init`."
    )
