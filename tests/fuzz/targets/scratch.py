# SPDX-License-Identifier: Apache-2.0
"""A file for parsers that take a path: in memory, under a name of /proc, or in a folder where the name counts."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def scratch_file(data: bytes, mode: int = 0o600) -> Iterator[Path]:
    fd = os.memfd_create("fuzz", os.MFD_CLOEXEC)
    try:
        os.fchmod(fd, mode)
        os.write(fd, data)
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


@contextlib.contextmanager
def scratch_folder(files: dict[str, bytes]) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm"))
    try:
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        yield folder
    finally:
        shutil.rmtree(folder)
