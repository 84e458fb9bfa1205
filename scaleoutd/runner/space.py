# SPDX-License-Identifier: Apache-2.0
"""Whether a model of some size can go its way on this disk; asked before it is downloaded and not found out in the middle.

A model lies on disk twice at most: as it came beside what the step writes, then what the step wrote beside the container in
the outbox (the model as it came is gone by then).  Where scratch is a file system of its own, each of the two needs it once.
What the protocol does not say beforehand is the size, so there are two questions: a bound for the download, and whether the
last model of the same session would fit again.
"""

from __future__ import annotations

import os
from pathlib import Path

from scaleoutd.durable import storage_errors
from scaleoutd.errors import StorageError

KEPT_BYTES = 64 << 20  # for the trail, the tables and what steps print
LEAST_BYTES = 1 << 20  # a disk without room for this much takes no task
_COPIES = 2.1


def largest_model(state: Path, scratch: Path, expected_bytes: int = 0) -> int:
    """Bytes of the largest model that has room; StorageError `storage-full` when `expected_bytes` has none."""
    with storage_errors("look at the free space"):
        shared = os.stat(state).st_dev == os.stat(scratch).st_dev
        free = min(_free_bytes(state), _free_bytes(scratch))
    largest = max(0, int((free - KEPT_BYTES) / (_COPIES if shared else _COPIES / 2)))
    wanted = max(LEAST_BYTES, expected_bytes)
    if largest < wanted:
        need = int(wanted * (_COPIES if shared else _COPIES / 2)) + KEPT_BYTES
        raise StorageError(
            f"cannot take a model: {free} bytes are free in {state}, a model of {wanted} bytes needs {need}",
            code="storage-full",
            hint="Free space on that file system.",
        )
    return largest


def _free_bytes(path: Path) -> int:
    info = os.statvfs(path)
    return info.f_bavail * info.f_frsize
