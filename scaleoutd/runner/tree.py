# SPDX-License-Identifier: Apache-2.0
"""A folder seen through descriptors only: what is in it, and its files opened without following anything.

Rules (open(2), openat(2), scandir):
  1. The folder is opened once.  All below it is reached by (descriptor, one name) with O_NOFOLLOW, so no rename and no link
     can lead outside; ".." never occurs.
  2. A file is opened O_NONBLOCK and only used when fstat says: regular, same file system.  A FIFO cannot hang the runner.
  3. `identity` is (device, inode, size, mtime, ctime, mode, links): the kernel changes ctime with every change of bytes or
     mode, and no program can set it.

openat2(RESOLVE_BENEATH) would say the same in one call; it needs ctypes, which only the step's room may load
(docs/adr/0015-store-walk-and-modes.md).
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from scaleoutd.core.ignore import IgnoreRules
from scaleoutd.durable import storage_errors
from scaleoutd.errors import StorageError, VerificationError

MAX_ENTRIES = 200_000
MAX_DEPTH = 64
MAX_OPEN_FOLDERS = 128
# A change within one tick of the kernel's coarse clock (10 ms at HZ=100) can leave ctime as it was.
RACY_NS = 50_000_000

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class Node(NamedTuple):
    """Anything in a folder.  `path` is relative; a name that is not UTF-8 has surrogates in it (PEP 383)."""

    path: str
    mode: int  # type and permissions, as in stat
    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    links: int
    owner: int  # uid


class _Wanted(NamedTuple):
    ignore: IgnoreRules
    folders: bool


class Tree:
    """An open folder.  Safe to use from several threads; a context manager."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.Lock()
        self._folders: dict[str, int] = {}
        with storage_errors(f"open the folder {root}"):
            self._fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self.device = os.fstat(self._fd).st_dev

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        for fd in self._folders.values():
            os.close(fd)
        self._folders.clear()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def walk(self, ignore: IgnoreRules | None = None, *, folders: bool = False) -> list[Node]:
        """All that is not ignored, sorted by path, folders themselves only with `folders`.

        Nothing below an ignored folder is looked at.
        VerificationError `file-type` for a mount point below the folder; StorageError when a folder cannot be read.
        """
        nodes: list[Node] = []
        with storage_errors(f"read the folder {self.root}"):
            self._walk(self._fd, "", _Wanted(ignore or IgnoreRules(()), folders), nodes, 0)
        nodes.sort()
        return nodes

    def open_file(self, path: str) -> int:
        """A descriptor of a regular file; OSError as open(2), VerificationError `file-type` for others.

        Only folders are held to one file system: on overlayfs the device of a file is that of the layer it lies in, and
        what a file mounted over another holds is hashed like any file's bytes.
        """
        folder, _, name = path.rpartition("/")
        fd = self._open_below(folder, name)
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode):
            return fd
        os.close(fd)
        raise VerificationError(
            f"cannot use {path}: expected a regular file, found {kind_of(found.st_mode)}",
            code="file-type",
            hint="Replace it by a regular file, then sign again: `scaleoutctl sign`.",
        )

    def read_link(self, path: str) -> str:
        """Where a symbolic link of the tree points to."""
        folder, _, name = path.rpartition("/")
        with self._lock:
            return os.readlink(name, dir_fd=self._folder(folder) if folder else self._fd)

    def _open_below(self, folder: str, name: str) -> int:
        if not folder:
            return os.open(name, _FILE, dir_fd=self._fd)
        with self._lock:
            return os.open(name, _FILE, dir_fd=self._folder(folder))

    def _folder(self, folder: str) -> int:
        """The descriptor of a folder below the root, from those kept open."""
        known = self._folders.get(folder)
        if known is not None:
            return known
        fd = os.dup(self._fd)
        for component in folder.split("/"):
            try:
                below = os.open(component, _FOLDER, dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        if len(self._folders) >= MAX_OPEN_FOLDERS:
            os.close(self._folders.pop(next(iter(self._folders))))
        self._folders[folder] = fd
        return fd

    def _walk(self, fd: int, prefix: str, wanted: _Wanted, nodes: list[Node], depth: int) -> None:
        if depth > MAX_DEPTH:
            raise _refuse(prefix, f"it lies deeper than {MAX_DEPTH} folders")
        folders: list[str] = []
        with os.scandir(fd) as entries:
            for entry in entries:
                path = prefix + entry.name
                found = entry.stat(follow_symlinks=False)
                is_folder = stat.S_ISDIR(found.st_mode)
                if wanted.ignore.ignores(path, is_folder=is_folder):
                    continue
                if is_folder:
                    folders.append(entry.name)
                    if not wanted.folders:
                        continue
                if len(nodes) >= MAX_ENTRIES:
                    raise _refuse(path, f"the folder has more than {MAX_ENTRIES} files")
                nodes.append(
                    Node(
                        path, found.st_mode, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns,
                        found.st_nlink, found.st_uid,
                    )
                )  # fmt: skip
        for name in folders:
            below = os.open(name, _FOLDER, dir_fd=fd)
            try:
                if os.fstat(below).st_dev != self.device:
                    raise _refuse(prefix + name, "it is on another file system")
                self._walk(below, f"{prefix}{name}/", wanted, nodes, depth + 1)
            finally:
                os.close(below)


def identity(nodes: list[Node]) -> str:
    """One digest of the identities of all nodes: equal means that no byte, mode, name or link has changed since."""
    return hashlib.sha256(repr([tuple(node) for node in nodes]).encode("utf-8", "surrogatepass")).hexdigest()


def is_fresh(nodes: list[Node]) -> bool:
    """Whether something changed so short ago that its identity may be that of other bytes too; then it is not remembered."""
    at_rest_ns = time.time_ns() - RACY_NS
    return any(node.ctime_ns > at_rest_ns for node in nodes)


def read_small(tree: Tree, path: str, max_bytes: int) -> bytes:
    """A file of the tree in memory; StorageError when it is larger, OSError as open(2)."""
    fd = tree.open_file(path)
    with os.fdopen(fd, "rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise StorageError(f"cannot read {path}: it has more than {max_bytes} bytes")
    return data


def kind_of(mode: int) -> str:
    """ "a symbolic link", "a FIFO" …"""
    kinds = {
        stat.S_IFREG: "a regular file",
        stat.S_IFDIR: "a folder",
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a character device",
        stat.S_IFBLK: "a block device",
    }
    return kinds.get(stat.S_IFMT(mode), "an unknown thing")


def _refuse(path: str, cause: str) -> VerificationError:
    return VerificationError(
        f"cannot use {path.encode('unicode_escape').decode('ascii')[:200]}: {cause}",
        code="file-type",
        hint="A project is plain files in one folder of one file system: change it, then `scaleoutctl sign`.",
    )
