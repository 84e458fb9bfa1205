# SPDX-License-Identifier: Apache-2.0
"""That a person holds a room back from new work: kept in the room's own folder, so that a pause survives a reboot.

    STATE/hold.json    who, since when, why; no file, no hold

A drain is not kept: it is the way to a restart, and ends with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from scaleoutd.core import records, strictjson
from scaleoutd.core.records import Natural, Text
from scaleoutd.durable import read_state, replace_file, storage_errors, sync_folder

MAX_BYTES = 4096


@dataclass(frozen=True)
class Hold:
    kind: Literal["drain", "pause"]
    since_ms: Natural
    operator: Annotated[str, Text(256)]
    reason: Annotated[str, Text(512)] = ""


class HoldFile:
    """The hold of one room.  `now` is what is in force."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "hold.json"
        self.now = self._read()

    def set(self, hold: Hold) -> bool:
        """False when it is held so already.  A pause is durable when this returns; a drain does not take a pause away."""
        if self.now is not None and (self.now.kind, self.now.reason) == (hold.kind, hold.reason):
            return False
        if hold.kind == "drain" and self.now is not None:
            return False
        if hold.kind == "pause":
            replace_file(self._path, strictjson.canonical(records.encode(hold)))
        self.now = hold
        return True

    def lift(self) -> bool:
        """False when nothing was held."""
        if self.now is None:
            return False
        with storage_errors(f"remove {self._path}"):
            self._path.unlink(missing_ok=True)
            sync_folder(self._path.parent)
        self.now = None
        return True

    def _read(self) -> Hold | None:
        """A hold that cannot be read holds: someone wanted this room to stand still."""
        return read_state(
            self._path,
            lambda data: records.decode(Hold, strictjson.parse(data, max_bytes=MAX_BYTES, what="the hold"), "hold"),
            f"Remove {self._path.name} if the node shall go on, and write down why.",
        )
