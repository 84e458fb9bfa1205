# SPDX-License-Identifier: Apache-2.0
"""Reads the chain of trust roots that the administrator installed, each time it is needed."""

from __future__ import annotations

import os
from pathlib import Path

from scaleoutd.core.clock import Now
from scaleoutd.core.trust import MAX_ROOT_BYTES, MAX_ROOTS, RootPin, TrustRoot, verify_chain
from scaleoutd.durable import storage_errors
from scaleoutd.errors import ConfigError, StorageError, VerificationError

# An envelope is base64 and carries signatures: a third more, and some.
_MAX_DOCUMENT_BYTES = 2 * MAX_ROOT_BYTES


def read_trust_root(path: Path, now: Now, *, floor_version: int = 0, pin: RootPin | None = None) -> TrustRoot:
    """The trust root at `path`: one file, or a folder with the chain 1.json … N.json (any first number, no gap).

    `pin` is the root that was accepted last on this node.
    """
    return verify_chain(read_root_documents(path), now, floor_version=floor_version, pin=pin)


def read_root_documents(path: Path) -> tuple[bytes, ...]:
    """The envelopes of a chain, oldest first; a single file is a chain of one."""
    with storage_errors(f"read the trust root {path}"):
        if not path.is_dir():
            return (_read(path),)
        numbers = sorted(int(item.stem) for item in path.glob("*.json") if item.stem.isascii() and item.stem.isdigit())
    if not numbers or len(numbers) > MAX_ROOTS or numbers != list(range(numbers[0], numbers[-1] + 1)):
        raise VerificationError(
            f"cannot read the trust root {path}: expected 1.json, 2.json … without a gap, found {len(numbers)} file(s)",
            code="trust-root-invalid",
            hint="Get the whole chain from its owner.",
        )
    return tuple(_read(path / f"{number}.json") for number in numbers)


def _read(path: Path) -> bytes:
    with storage_errors(f"read the trust root {path}"):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError as exc:
            raise ConfigError(
                f"cannot read the trust root {path}: it does not exist",
                code="config-missing",
                hint="Make one with `scaleoutctl trust init`, or correct its path.",
            ) from exc
        with os.fdopen(fd, "rb") as file:
            data = file.read(_MAX_DOCUMENT_BYTES + 1)
    if len(data) > _MAX_DOCUMENT_BYTES:
        raise StorageError(f"cannot read the trust root {path}: it has more than {_MAX_DOCUMENT_BYTES} bytes")
    return data
