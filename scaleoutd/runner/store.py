# SPDX-License-Identifier: Apache-2.0
"""The content store: the bytes that were proven, and the only ones that ever run.

    STORE/<manifest sha256>/          the signed files; folders 0555, files 0444 or 0555
    STORE/<manifest sha256>.index     what source and copy looked like to stat(2) when both were proven

Rules (design-review F19):
  1. Bytes are hashed while they are copied, through one buffer: there is no moment between proof and copy.
  2. A copy is made under a fresh name and renamed when all of it is proven.  A crash leaves a name that nothing reads.
  3. Source and copy unchanged for stat: nothing is read again.  Source changed: it is proven again, and refused when it
     differs; an old copy is never run in silence.  Copy changed, or the first use since boot: it is hashed again, and
     made anew from the proven source when it differs (`repaired`, for the record).  A policy may ask for reading both each time.
  4. Files are not synchronised one by one.  What a power loss may leave half-written is hashed before the next boot's first
     use, so durability would buy nothing; 2,000 barriers would cost seconds.
  5. The store is the runner's alone.  Whoever has the runner's uid is inside already and is not defended against here.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scaleoutd.core import strictjson
from scaleoutd.core.manifest import FileEntry, Manifest
from scaleoutd.core.records import Sha256Hex, decode, encode
from scaleoutd.durable import make_private_folder, replace_file, storage_errors, sync_folder
from scaleoutd.errors import FormatError, StorageError
from scaleoutd.hostclock import boot_id as _boot
from scaleoutd.runner.hashing import check_files
from scaleoutd.runner.tree import Tree, identity, is_fresh
from scaleoutd.runner.verify import Proven, compare, project_nodes, refuse

# For everyone: the step's user reads here, and what is here was in a project that it is meant to run.
FOLDER_MODE = 0o555
MAX_INDEX_BYTES = 4096


@dataclass(frozen=True)
class Snapshot:
    """Proven bytes, read-only, of the runner's own.  `copied`: made now; `repaired`: an older copy was damaged."""

    path: Path
    manifest_sha256: str
    files: int
    size_bytes: int
    copied: bool = False
    repaired: bool = False


@dataclass(frozen=True)
class _Index:
    source: str  # digest of the identities; "" when the source was too fresh to tell
    copy: Sha256Hex
    boot: str


def take_snapshot(proven: Proven, store_path: Path, *, read_always: bool = False) -> Snapshot:
    """Step 3 of "The way of a task".  VerificationError names the file, what was expected and what was found.

    `read_always`: bytes are read again although nothing looks changed (project.reverify in the policy).
    """
    manifest, sha256 = proven.manifest.manifest, proven.manifest.sha256
    make_store(store_path)
    entry_path, index_path = store_path / sha256, store_path / f"{sha256}.index"
    index = _read_index(index_path)
    with Tree(proven.project_path) as source:
        nodes = project_nodes(source, manifest.ignored)
        source_identity = identity(nodes)
        too_fresh = is_fresh(nodes)
        index = None if read_always else index
        source_known = index is not None and index.source == source_identity
        copy_known = index is not None and index.boot == _boot() and _copy_identity(entry_path) == index.copy
        if source_known and copy_known:
            return _snapshot(entry_path, proven)
        refuse(compare(manifest, nodes))
        is_there = entry_path.exists()
        is_good = copy_known or (is_there and _is_intact(entry_path, manifest))
        if not is_good:
            discard(entry_path)
            _copy(source, manifest, entry_path)
        elif not source_known:
            with storage_errors(f"read the project {proven.project_path}"):
                refuse(check_files(source, manifest.files))
    copy_identity = _copy_identity(entry_path)
    new_index = _Index("" if too_fresh else source_identity, copy_identity, _boot())
    replace_file(index_path, strictjson.canonical(encode(new_index)), mode=0o600)
    return _snapshot(entry_path, proven, copied=not is_good, repaired=is_there and not is_good)


def make_store(store_path: Path) -> None:
    """The store's folder: 0711, so that a step can be shown one entry of it without seeing the others' names."""
    if not store_path.is_dir():
        make_private_folder(store_path)
        with storage_errors(f"make the store {store_path}"):
            store_path.chmod(0o711)


def prune(store_path: Path, keep: Sequence[str]) -> tuple[str, ...]:
    """Removes copies of other manifests and what a crash left; returns the names removed."""
    removed = []
    for path in sorted(store_path.iterdir()):
        if path.name.removesuffix(".index") not in keep:
            discard(path)
            removed.append(path.name)
    return tuple(removed)


def discard(path: Path) -> None:
    """Removes a copy, although its folders are read-only."""
    with storage_errors(f"remove {path}"):
        if not path.is_dir() or path.is_symlink():
            path.unlink(missing_ok=True)
            return
        for folder, names, _ in os.walk(path):
            os.chmod(folder, 0o700)
            for name in names:
                if not os.path.islink(os.path.join(folder, name)):
                    os.chmod(os.path.join(folder, name), 0o700)
        shutil.rmtree(path)


def _copy(source: Tree, manifest: Manifest, entry_path: Path) -> None:
    fresh = entry_path.with_name(f".new-{entry_path.name[:16]}-{secrets.token_hex(8)}")
    try:
        with storage_errors(f"copy the project to {fresh}"):
            fresh.mkdir(mode=0o700)
            folders = _folders(manifest.files)
            for folder in folders:
                (fresh / folder).mkdir(mode=0o700)
            refuse(check_files(source, manifest.files, fresh))
            for entry in manifest.files:
                os.chmod(fresh / entry.path, _mode_of(entry))
            for folder in (*reversed(folders), ""):
                os.chmod(fresh / folder, FOLDER_MODE)
            os.rename(fresh, entry_path)
            sync_folder(entry_path.parent)
    except BaseException:
        discard(fresh)
        raise


def _mode_of(entry: FileEntry) -> int:
    return 0o555 if entry.executable else 0o444


def _folders(files: Sequence[FileEntry]) -> list[str]:
    """All folders of the files, parents first."""
    folders: set[str] = set()
    for entry in files:
        folder = entry.path.rpartition("/")[0]
        while folder and folder not in folders:
            folders.add(folder)
            folder = folder.rpartition("/")[0]
    return sorted(folders)


def _is_intact(entry_path: Path, manifest: Manifest) -> bool:
    """Whether a copy holds exactly the manifest's files, by its bytes."""
    with storage_errors(f"read the copy {entry_path}"), Tree(entry_path) as copy:
        nodes = copy.walk()
        modes = {entry.path: _mode_of(entry) for entry in manifest.files}
        plain = all(stat.S_IMODE(node.mode) == modes.get(node.path) and node.links == 1 for node in nodes)
        return plain and not compare(manifest, nodes) and not check_files(copy, manifest.files)


def _copy_identity(entry_path: Path) -> str:
    try:
        with Tree(entry_path) as copy:
            return identity(copy.walk())
    except (OSError, StorageError):
        return ""


def _snapshot(entry_path: Path, proven: Proven, *, copied: bool = False, repaired: bool = False) -> Snapshot:
    manifest = proven.manifest.manifest
    return Snapshot(entry_path, proven.manifest.sha256, len(manifest.files), manifest.size_bytes, copied, repaired)


def _read_index(path: Path) -> _Index | None:
    """None when there is none, or it cannot be read: then everything is proven again."""
    try:
        data = path.read_bytes()[: MAX_INDEX_BYTES + 1]
        return decode(_Index, strictjson.parse_canonical(data, max_bytes=MAX_INDEX_BYTES, what="the index"), "index")
    except (OSError, FormatError):
        return None
