# SPDX-License-Identifier: Apache-2.0
"""The bytes of many files, each read once: hashed, and at the same time copied when there is somewhere to copy them to.

Each thread has one buffer for all its files: a new buffer for each file would be zeroed under the interpreter lock, which
costs more than a second thread gains (research/sandbox-and-signing.md section 4).  hashlib, preadv and pwrite release it.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scaleoutd.core.manifest import CHUNK_BYTES, FileEntry
from scaleoutd.errors import VerificationError
from scaleoutd.runner.tree import Tree

BUFFER_BYTES = 1024 * 1024
MAX_THREADS = 4


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it was signed."""

    code: str  # of scaleoutd.errors
    path: str
    expected: str
    found: str


@dataclass(frozen=True)
class FileDigest:
    size_bytes: int
    sha256: str
    chunks: tuple[str, ...] | None


@dataclass(frozen=True)
class _Piece:
    """A part of a file that has a digest of its own: all of it, or one chunk."""

    entry: FileEntry
    offset: int
    length: int
    sha256: str
    is_whole: bool


def _unheard(count: int) -> None:
    """Nobody asks how far it is."""


def check_files(
    tree: Tree,
    entries: Sequence[FileEntry],
    copy_to: Path | None = None,
    on_bytes: Callable[[int], None] = _unheard,
) -> list[Difference]:
    """Compares every byte of `entries` with its digest, and writes it below `copy_to` (folders must be there) while it is read.

    The result is sorted by path and empty when all are as signed.  A copy of a file with a difference is of no use.
    `on_bytes` hears the size of each file or chunk that is done, from any thread.
    """
    differences: dict[str, Difference] = {}
    failures: list[BaseException] = []
    pieces = iter(sorted(_pieces(entries), key=lambda piece: -piece.length))
    lock = threading.Lock()

    def work() -> None:
        buffer = memoryview(bytearray(BUFFER_BYTES))
        try:
            while not failures:
                with lock:
                    piece = next(pieces, None)
                if piece is None:
                    return
                difference = _check_piece(tree, piece, buffer, copy_to)
                if difference is not None:
                    differences.setdefault(difference.path, difference)
                on_bytes(piece.length)
        except BaseException as exc:  # noqa: BLE001  raised again below, in the caller's thread
            failures.append(exc)

    wanted = len(entries) // 8 + sum(len(entry.chunks or ()) for entry in entries)
    count = min(MAX_THREADS, os.cpu_count() or 1, max(1, wanted))
    threads = [threading.Thread(target=work, name=f"hash-{index}") for index in range(count - 1)]
    for thread in threads:
        thread.start()
    work()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return [differences[path] for path in sorted(differences)]


def digest_file(tree: Tree, path: str, on_bytes: Callable[[int], None] = _unheard) -> FileDigest:
    """Size and digests of a file as it is now, for signing.  `on_bytes` hears each read."""
    buffer = memoryview(bytearray(BUFFER_BYTES))
    whole, chunk = hashlib.sha256(), hashlib.sha256()
    chunks: list[str] = []
    size = in_chunk = 0
    fd = tree.open_file(path)
    try:
        while count := os.preadv(fd, [buffer[: CHUNK_BYTES - in_chunk]], size):
            whole.update(buffer[:count])
            chunk.update(buffer[:count])
            size += count
            in_chunk += count
            on_bytes(count)
            if in_chunk == CHUNK_BYTES:
                chunks.append(chunk.hexdigest())
                chunk, in_chunk = hashlib.sha256(), 0
    finally:
        os.close(fd)
    if in_chunk:
        chunks.append(chunk.hexdigest())
    return FileDigest(size, whole.hexdigest(), tuple(chunks) if size > CHUNK_BYTES else None)


def _pieces(entries: Sequence[FileEntry]) -> Iterator[_Piece]:
    for entry in entries:
        if entry.chunks is None:
            yield _Piece(entry, 0, entry.size_bytes, entry.sha256, is_whole=True)
            continue
        for index, sha256 in enumerate(entry.chunks):
            offset = index * CHUNK_BYTES
            yield _Piece(entry, offset, min(CHUNK_BYTES, entry.size_bytes - offset), sha256, is_whole=False)


def _check_piece(tree: Tree, piece: _Piece, buffer: memoryview, copy_to: Path | None) -> Difference | None:
    path = piece.entry.path
    try:
        source = tree.open_file(path)
    except VerificationError as exc:
        return Difference(exc.code, path, "a regular file", "something else")
    except OSError as exc:
        # It was there when the folder was listed: removed, or swapped for a link (ELOOP) since.
        return Difference("file-missing", path, "a regular file", exc.strerror or str(exc))
    try:
        found_size = os.fstat(source).st_size
        if found_size != piece.entry.size_bytes:
            return Difference("file-changed", path, f"{piece.entry.size_bytes} bytes", f"{found_size} bytes")
        if copy_to is None:
            return _compare(piece, *_read_piece(source, None, piece, buffer))
        # Created here and not yet known to anyone: the folder is 0700 and of a fresh name.
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_EXCL if piece.is_whole else 0)
        target = os.open(copy_to / path, flags, 0o600)
        try:
            return _compare(piece, *_read_piece(source, target, piece, buffer))
        finally:
            os.close(target)
    finally:
        os.close(source)


def _read_piece(source: int, target: int | None, piece: _Piece, buffer: memoryview) -> tuple[int, str]:
    """Bytes read and their digest.  What is hashed and what is written is the same buffer, so it cannot differ."""
    digest = hashlib.sha256()
    done = 0
    while done < piece.length:
        count = os.preadv(source, [buffer[: piece.length - done]], piece.offset + done)
        if count == 0:
            break
        digest.update(buffer[:count])
        written = 0
        while target is not None and written < count:
            written += os.pwrite(target, buffer[written:count], piece.offset + done + written)
        done += count
    return done, digest.hexdigest()


def _compare(piece: _Piece, size_bytes: int, sha256: str) -> Difference | None:
    if size_bytes == piece.length and sha256 == piece.sha256:
        return None
    if size_bytes != piece.length:
        found = f"{piece.offset + size_bytes} bytes"
        return Difference("file-changed", piece.entry.path, f"{piece.entry.size_bytes} bytes", found)
    return Difference("file-changed", piece.entry.path, f"sha256 {piece.sha256}", f"sha256 {sha256}")
