# SPDX-License-Identifier: Apache-2.0
"""Several files that change together: all of them, or none.

Everything new is written and synchronised beside its place first; what follows is renames only.  When one of them fails those
before it are taken back.  A crash between two renames leaves files of two versions, each whole: whoever reads them compares
digests, and the same command finishes the work.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from scaleoutd.durable import storage_errors, sync_folder, write_all
from scaleoutd.errors import StorageError

MODE, SECRET_MODE = 0o644, 0o600
FOLDER_MODE = 0o755


@dataclass(frozen=True)
class Change:
    """One file: `before` None when it is new, `after` None when it goes."""

    path: Path
    before: bytes | None
    after: bytes | None
    mode: int = MODE

    @property
    def kind(self) -> str:
        return "removed" if self.after is None else "new" if self.before is None else "changed"

    def diff(self) -> Iterator[str]:
        """Lines of a unified diff."""
        old, new = ((data or b"").decode("utf-8", "replace").splitlines() for data in (self.before, self.after))
        yield from difflib.unified_diff(old, new, str(self.path), str(self.path), self.kind, "new", lineterm="")


def changes_of(root: Path, wanted: Mapping[str, bytes | None], *, secret: Container[str] = ()) -> list[Change]:
    """What is to do so that the files below `root` are as wanted (None: absent), in the order of `wanted`; secrets are 0600."""
    result = []
    for name, after in wanted.items():
        path = root / name
        before, mode = _read(path), SECRET_MODE if name in secret else MODE
        if before != after or (before is not None and path.stat().st_mode & 0o777 != mode):
            result.append(Change(path, before, after, mode))
    return result


def apply_changes(changes: list[Change]) -> None:
    """StorageError, and everything as it was, when one of them cannot be made."""
    staged: list[tuple[Change, Path]] = []
    done: list[Change] = []
    try:
        for change in changes:
            staged.append((change, _stage(change)))
        for change, new in staged:
            with storage_errors(f"write {change.path}"):
                if change.after is None:
                    change.path.unlink()
                else:
                    new.rename(change.path)
            done.append(change)
        for folder in {change.path.parent for change in changes}:
            with storage_errors(f"synchronise {folder}"):
                sync_folder(folder)
    except StorageError:
        for change in reversed(done):
            _put_back(change)
        raise
    finally:
        for _, new in staged:
            new.unlink(missing_ok=True)


def _stage(change: Change) -> Path:
    """The new content in a file of another name, durable."""
    new = change.path.with_name(f".{change.path.name}.new")
    if change.after is None:
        return new
    with storage_errors(f"write {change.path}"):
        for folder in reversed([change.path.parent, *change.path.parent.parents]):
            if not folder.is_dir():
                folder.mkdir(FOLDER_MODE)
                folder.chmod(FOLDER_MODE)  # whatever the umask is: units are read by everybody
        new.unlink(missing_ok=True)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            write_all(fd, change.after)
            os.fchmod(fd, change.mode)
            os.fsync(fd)
        finally:
            os.close(fd)
    return new


def put_back(changes: list[Change]) -> None:
    """Undoes changes that were made, where it turned out that nobody can use them."""
    for change in reversed(changes):
        _put_back(change)


def _put_back(change: Change) -> None:
    if change.before is None:
        change.path.unlink(missing_ok=True)
        return
    new = _stage(Change(change.path, change.after, change.before, change.mode))
    new.rename(change.path)


def _read(path: Path) -> bytes | None:
    with storage_errors(f"read {path}"):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
