# SPDX-License-Identifier: Apache-2.0
"""The chain of trust roots that the administrator installed, read each time it is needed, and which one this node accepted.

Version and digest of the root accepted last are kept by runner and ledger (core/clock.py).  A later one must be the end of a
chain that holds it; another one of the same version, or a chain that passes it by, is refused until a person says otherwise
(`scaleoutctl trust reset`), on record.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from scaleoutd.core.clock import FloorsLike, Now
from scaleoutd.core.policy import Policy
from scaleoutd.core.trust import MAX_ROOT_BYTES, MAX_ROOTS, RootPin, TrustRoot, verify_chain
from scaleoutd.durable import storage_errors
from scaleoutd.errors import ConfigError, StorageError, VerificationError

if TYPE_CHECKING:
    from scaleoutd.runner.pipeline import Task

# An envelope is base64 and carries signatures: a third more, and some.
_MAX_DOCUMENT_BYTES = 2 * MAX_ROOT_BYTES


def read_trust_root(path: Path, now: Now, *, floor_version: int = 0, pin: RootPin | None = None) -> TrustRoot:
    """The trust root at `path`: one file, or a folder with the chain 1.json … N.json (any first number, no gap).

    `pin` is the root that was accepted last on this node.
    """
    return verify_chain(read_root_documents(path), now, floor_version=floor_version, pin=pin)


def accept_root(task: Task, policy: Policy, floors: FloorsLike) -> TrustRoot:
    """The root of trust for a task: the one accepted last, or one that its chain leads to.  A new one is kept as accepted."""
    pin = None if policy.development else RootPin.of(floors)
    root = read_trust_root(Path(policy.trust_root), task.now, floor_version=floors.root_version, pin=pin)
    if not root.development and pin != RootPin(root.version, root.digest()):
        before = {"previous_version": pin.version, "previous_sha256": pin.sha256} if pin else {}
        # On record with the next barrier, which comes before anything runs.
        task.note("trust-root-accepted", root_version=root.version, root_sha256=root.digest(), **before)
    task.room.accept_root(root, task.now)
    return root


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
