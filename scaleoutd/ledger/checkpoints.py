# SPDX-License-Identifier: Apache-2.0
"""The file of signed checkpoints, and the note that lets a restart read one segment only.

`checkpoints` holds notes one after the other, each with an empty line behind it; a torn last one is the rest of a crash.
`resume.json` says how the tree stood where a segment begins.  Nobody has to trust it: the tree that goes on from its
frontier must come to the root of a signed checkpoint, else the whole trail is read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from scaleoutd.core import checkpoint, records, strictjson
from scaleoutd.core.chain import Tip
from scaleoutd.core.checkpoint import Checkpoint, Note, parse_checkpoint, parse_note
from scaleoutd.core.merkle import Tree
from scaleoutd.core.records import Count, Name, Natural, Positive, Sha256Hex
from scaleoutd.durable import replace_file, storage_errors, sync_folder
from scaleoutd.errors import FormatError, LedgerError, StorageError
from scaleoutd.ledger.journal import SEGMENT_MODE, Torn, set_aside

FILE_NAME = "checkpoints"
RESUME_NAME = "resume.json"
MAX_RESUME_BYTES = 64 * 1024


class CheckpointFile:
    """Appends signed notes; `last` is the newest one, `torn` what a crash left behind it."""

    def __init__(self, folder: Path) -> None:
        path = folder / FILE_NAME
        self._path = path
        self.failed = False
        self.torn: Torn | None = None
        with storage_errors(f"open {path}"):
            existed = path.exists()
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, SEGMENT_MODE)
            try:
                if not existed:
                    os.fchmod(self._fd, SEGMENT_MODE)
                    sync_folder(folder)
                data = path.read_bytes()
                self._end = checkpoint.complete_bytes(data)
                if self._end < len(data):
                    self.torn = set_aside(folder, FILE_NAME, self._end, data[self._end :])
                    os.ftruncate(self._fd, self._end)
                    os.fsync(self._fd)
            except BaseException:
                os.close(self._fd)
                raise
        self.last: tuple[Note, Checkpoint] | None = None
        for note_bytes in checkpoint.split_notes(data[: self._end]):
            note = parse_note(note_bytes)
            self.last = (note, parse_checkpoint(note.text))

    @property
    def size(self) -> int:
        """Number of events under the last checkpoint."""
        return self.last[1].size if self.last else 0

    def append(self, note: bytes) -> None:
        """Makes a note durable; StorageError, and then it is not there."""
        if self.failed:
            raise LedgerError("cannot append a checkpoint: the disk did not take an earlier write")
        data = checkpoint.join_notes([note])
        with storage_errors(f"append to {self._path}"):
            try:
                written = 0
                while written < len(data):
                    written += os.pwrite(self._fd, data[written:], self._end + written)
                os.fdatasync(self._fd)
            except OSError:
                self.failed = True  # until the cutting back has worked, nobody knows what is there
                os.ftruncate(self._fd, self._end)
                os.fdatasync(self._fd)
                self.failed = False
                raise
        self._end += len(data)
        parsed = parse_note(note)
        self.last = (parsed, parse_checkpoint(parsed.text))

    def close(self) -> None:
        os.close(self._fd)


@dataclass(frozen=True)
class Resume:
    """How things stood before the first event of `segment`."""

    segment: Positive
    size: Natural = 0
    frontier: Annotated[tuple[Sha256Hex, ...], Count(0, 64)] = ()
    epoch: Natural = 0
    reference_ms: Natural = 0
    tip_uid: Name | None = None
    tip_fingerprint: Sha256Hex | None = None
    time_ms: Natural = 0
    root_version: Natural = 0
    manifest_versions: Mapping[str, int] = field(default_factory=dict)
    root_sha256: Sha256Hex | None = None

    @property
    def tip(self) -> Tip | None:
        return Tip(self.tip_uid, self.tip_fingerprint) if self.tip_uid and self.tip_fingerprint else None

    def tree(self) -> Tree:
        return Tree(self.size, [bytes.fromhex(digest) for digest in self.frontier])


def write_resume(folder: Path, resume: Resume) -> None:
    replace_file(folder / RESUME_NAME, strictjson.canonical(records.encode(resume)))


def read_resume(folder: Path) -> Resume | None:
    """The note, or None when there is none that can be read: then the whole trail is."""
    try:
        data = (folder / RESUME_NAME).read_bytes()
        resume = records.decode(Resume, strictjson.parse(data, max_bytes=MAX_RESUME_BYTES))
        resume.tree()
    except FileNotFoundError:
        return None
    except (FormatError, ValueError):
        return None
    except OSError as exc:
        raise StorageError(f"cannot read {folder / RESUME_NAME}: {exc.strerror}") from exc
    return resume
