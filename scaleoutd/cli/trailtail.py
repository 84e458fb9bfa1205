# SPDX-License-Identifier: Apache-2.0
"""The end of a trail that may be growing: its last lines, and those that come.

Read only, by offsets: what the ledger has not finished writing (no newline yet) waits.  Polled: inotify does not see changes
made on another computer of a network file system.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from scaleoutd.core import event
from scaleoutd.core.event import Event
from scaleoutd.durable import storage_errors
from scaleoutd.errors import ConfigError, StorageError

BLOCK_BYTES = 64 * 1024
SEGMENT = re.compile(r"[0-9].*\.jsonl")


def segments_of(folder: Path) -> list[Path]:
    """In order; none when the folder is not there."""
    try:
        with storage_errors(f"read the trail in {folder}"):
            return sorted(path for path in folder.iterdir() if SEGMENT.fullmatch(path.name))
    except StorageError as exc:
        if isinstance(exc.__cause__, FileNotFoundError):
            return []
        if isinstance(exc.__cause__, PermissionError):
            exc.hint = (
                "A node's trail is for root and group scaleoutd-audit: `sudo adduser USER scaleoutd-audit` and a new login."
            )
        raise


class TrailEnd:
    """A position in the trail in `folder`.  `last` moves it to the end; `more` gives what was added since."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._segment: Path | None = None
        self._offset = 0

    def last(self, count: int) -> list[Event]:
        """The last `count` events, oldest first."""
        segments = segments_of(self.folder)
        if not segments:
            raise ConfigError(
                f"cannot read {self.folder}: it is no audit trail, it has no segment NNNNNNNN.jsonl",
                code="config-missing",
                hint="Name the folder of a ledger or a copy of it; `scaleoutctl status` lists your nodes.",
            )
        found: list[bytes] = []
        for segment in reversed(segments):
            data, end = _last_lines(segment, count - len(found))
            if self._segment is None:
                self._segment, self._offset = segment, end
            found = data + found
            if len(found) >= count:
                break
        return [event.parse(line) for line in found]

    def more(self) -> Iterator[Event]:
        """What is complete by now and was not given yet."""
        while self._segment is not None:
            # Before the read: a segment that has a later one is complete, and what is read of it then is all.
            later = [path for path in segments_of(self.folder) if path.name > self._segment.name]
            with storage_errors(f"read {self._segment}"), self._segment.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._offset += len(whole)
            yield from (event.parse(line) for line in whole.splitlines())
            if not later or len(whole) < len(data):
                return
            self._segment, self._offset = later[0], 0


def _last_lines(segment: Path, count: int) -> tuple[list[bytes], int]:
    """Up to `count` whole lines from the end of a file, and the offset after the last of them."""
    with storage_errors(f"read {segment}"), segment.open("rb") as file:
        start = file.seek(0, 2)
        data = b""
        while start > 0 and data.count(b"\n") <= count + 1:
            size = min(BLOCK_BYTES, start)
            start -= size
            file.seek(start)
            data = file.read(size) + data
    cut = data.rfind(b"\n") + 1
    lines = data[:cut].splitlines()
    if start > 0:
        lines = lines[1:]  # its beginning lies before what was read
    return (lines[-count:] if count else []), start + cut
