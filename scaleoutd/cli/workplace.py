# SPDX-License-Identifier: Apache-2.0
"""What the command line needs to run something of a project in an instance of its own: `build`, and `run --shell`.

The project is proven and copied as the runner does it (stages 1 and 3 of DESIGN.md section 2), in the node's own folders.
"""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scaleoutd.cli.foreground import Folders
from scaleoutd.cli.rooms import START_S, Rooms, RoomSpec
from scaleoutd.core.clock import Now
from scaleoutd.core.policy import Policy
from scaleoutd.durable import storage_errors
from scaleoutd.hostclock import HostClock
from scaleoutd.ipc.channel import Channel
from scaleoutd.ipc.ledger_client import LedgerClient
from scaleoutd.runner.planner import Place
from scaleoutd.runner.rootfile import read_trust_root
from scaleoutd.runner.store import take_snapshot
from scaleoutd.runner.verify import Proven, prove

SLOT = 6  # neither the runner's first nor the doctor's


@dataclass(frozen=True)
class Workplace:
    """A proven project, its copy, and the folders of one run."""

    proven: Proven
    snapshot: Path
    scratch: Path
    now: Now

    def place(self, run: str, backend: str, model_folder: Path) -> Place:
        kind: Literal["inner", "namespaces"] = "inner" if backend == "inner" else "namespaces"
        return Place(run, kind, SLOT, str(self.snapshot), str(model_folder), str(self.scratch))


def prepare(folders: Folders, policy: Policy, ledger: LedgerClient) -> Workplace:
    """VerificationError when the project is not what was signed."""
    now = HostClock()()
    proven = prove(Path(policy.project.path), read_trust_root(Path(policy.trust_root), now), policy, ledger.floors(), now)
    snapshot = take_snapshot(proven, folders.runner / "store")
    scratch = folders.runner / "scratch"
    with storage_errors(f"make the folder {scratch}"):
        scratch.mkdir(mode=0o700, exist_ok=True)
    return Workplace(proven, snapshot.path, scratch / str(SLOT), now)


def ledger_room(folders: Folders) -> Rooms:
    """The ledger alone: what is done here goes on record, and nothing of it can leave."""
    return Rooms([RoomSpec("ledger", ["--state", str(folders.audit)], server=True, client=False)])


class LedgerDoor:
    """The command line's way to the ledger, whose parent it is."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    def connect(self, room: str, timeout_s: float = START_S) -> Channel:
        return self._rooms.connect(room, "cli", timeout_s)


def operator() -> str:
    """Who commands, for the record."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"
