# SPDX-License-Identifier: Apache-2.0
"""What a client and its children use at most: resident memory of each process, and bytes on disk of its files."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

SAMPLE_S = 0.02
_ROOMS = {
    "scaleoutd.agent": "agent",
    "scaleoutd.runner": "runner",
    "scaleoutd.ledger": "ledger",
    "scaleoutd.step": "launcher",
    "scaleoutd.cli": "parent",
}


class Peaks:
    """A context; `rss_bytes` by name of process and `scratch_bytes` afterwards.

    Files count once, by inode, with the blocks that they have: those below `folder`, and those without a name that a process
    of the tree holds open.
    """

    def __init__(self, pid: int, folder: Path) -> None:
        self.rss_bytes: dict[str, int] = {}
        self.scratch_bytes = 0
        self._pid, self._folder = pid, folder
        self._base_bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._base_bytes = self._bytes_on_disk(self._tree())
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_S):
            tree = self._tree()
            for pid in tree:
                try:
                    label, peak = _label(pid), _peak_rss(pid)
                except (OSError, ValueError):
                    continue  # it has ended since
                self.rss_bytes[label] = max(self.rss_bytes.get(label, 0), peak)
            self.scratch_bytes = max(self.scratch_bytes, self._bytes_on_disk(tree) - self._base_bytes)

    def _tree(self) -> list[int]:
        found = [self._pid]
        for pid in found:
            try:
                for task in os.listdir(f"/proc/{pid}/task"):
                    found += [int(child) for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split()]
            except OSError:
                continue
        return found

    def _bytes_on_disk(self, tree: list[int]) -> int:
        seen: dict[tuple[int, int], int] = {}
        for root, _, names in os.walk(self._folder):
            for name in names:
                _count(f"{root}/{name}", seen, only_unnamed=False)
        for pid in tree:
            try:
                descriptors = os.listdir(f"/proc/{pid}/fd")
            except OSError:
                continue
            for fd in descriptors:
                _count(f"/proc/{pid}/fd/{fd}", seen, only_unnamed=True)
        return sum(seen.values())


def _count(path: str, seen: dict[tuple[int, int], int], *, only_unnamed: bool) -> None:
    try:
        info = os.stat(path) if only_unnamed else os.lstat(path)
    except OSError:
        return
    # A regular file on a disk; memory files have other devices and are in the processes' figures.
    if info.st_mode & 0o170000 == 0o100000 and (not only_unnamed or (info.st_nlink == 0 and os.major(info.st_dev))):
        seen[info.st_dev, info.st_ino] = info.st_blocks * 512


def _label(pid: int) -> str:
    command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    for mark, label in _ROOMS.items():
        if mark in command:
            return label
    if "scaleout" in command and "client start" in command:
        return "client"
    return "step"


def _peak_rss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise ValueError("a kernel thread or a zombie")
