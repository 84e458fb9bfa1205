# SPDX-License-Identifier: Apache-2.0
"""Child processes of a test or a benchmark: which there are, and their end."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from tests.processes import read_process


def children_of(pid: int) -> list[int]:
    """Of its main thread (proc(5)); none when it is gone."""
    return [int(word) for word in read_process(pid, f"task/{pid}/children").split()]


def end(process: subprocess.Popen[bytes], patience_s: float = 10) -> None:
    """SIGTERM, and SIGKILL if it is still there after `patience_s` (the official client misses one while it connects)."""
    process.terminate()
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """`process`, which is over when the block is left."""
    try:
        yield process
    finally:
        end(process)
