# SPDX-License-Identifier: Apache-2.0
"""A real ledger process and its parent's end of the door; and a recorder in this process with a clock that is told."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scaleoutd.core import checkpoint
from scaleoutd.core.checkpoint import VerifierKey, parse_key
from scaleoutd.core.clock import Now
from scaleoutd.core.trail import Verdict, verify
from scaleoutd.errors import PeerError
from scaleoutd.ipc.channel import Channel
from scaleoutd.ipc.doors import Opened, Ready
from scaleoutd.ipc.ledger_client import LedgerClient
from scaleoutd.ipc.messages import Entry
from scaleoutd.ipc.packets import Connection
from scaleoutd.ledger.config import LedgerConfig
from scaleoutd.ledger.recorder import Recorder, Request

ROOT = Path(__file__).resolve().parents[3]
START_MS = 1_790_000_000_000


class LedgerProcess:
    """`python -m scaleoutd.ledger` as a child; its door is ours."""

    def __init__(
        self, folder: Path, *options: str, prefix: Sequence[str] = (), preexec: Callable[[], None] | None = None
    ) -> None:
        self.folder = folder
        ours, theirs = Connection.pair()
        self._gives = Channel(ours, "ledger")
        fixed = ["-B", "-m", "scaleoutd.ledger", "--state", str(folder), "--accept", str(theirs.fileno())]
        self.process = subprocess.Popen(
            [*prefix, sys.executable, *fixed, *options],
            cwd=ROOT,
            pass_fds=[theirs.fileno()],
            stderr=subprocess.PIPE,
            preexec_fn=preexec,
        )
        theirs.close()

    def ready(self) -> LedgerProcess:
        try:
            self._gives.expect(Ready, timeout_s=60)
        except PeerError as exc:
            raise AssertionError(f"the ledger did not start: {self.end()}") from exc
        return self

    def connect(self, room: str) -> Channel:
        """A connection in the role `room`, as the parent would open it; not yet greeted."""
        ours, theirs = Connection.pair()
        self._gives.tell(Opened(room), [theirs.fileno()])
        theirs.close()
        return Channel(ours, "ledger")

    def client(self, room: str, **options: Any) -> LedgerClient:
        return LedgerClient(Door(lambda: self, room), room, **options)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.end()

    def stop(self) -> tuple[int, str]:
        """SIGTERM; exit status and what it said."""
        self.process.send_signal(signal.SIGTERM)
        return self.end()

    def close_door(self) -> None:
        self._gives.close()

    def end(self) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=60)
        self._gives.close()
        return self.process.returncode, errors.decode()


class Door:
    """A ClientDoor to whatever ledger process `current` says, in the role `room`."""

    def __init__(self, current: Callable[[], LedgerProcess], room: str) -> None:
        self._current, self._room = current, room

    def connect(self, room: str, timeout_s: float = 10.0) -> Channel:
        assert room == "ledger"
        return self._current().connect(self._room)


class ToldClock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.wall_ms, self.monotonic_ms, self.synchronised = START_MS, 1_000, True

    def __call__(self) -> Now:
        return Now(self.wall_ms, self.monotonic_ms, self.synchronised)

    def advance(self, seconds: float) -> None:
        self.wall_ms += int(seconds * 1000)
        self.monotonic_ms += int(seconds * 1000)


def recorder(folder: Path, clock: ToldClock, **options: Any) -> Recorder:
    folder.mkdir(mode=0o700, exist_ok=True)
    return Recorder(LedgerConfig(folder, host="node-1", **options), clock, os.geteuid())


def entry(type_: str, /, **body: Any) -> Entry:
    return Entry(secrets.token_hex(16), type_, body)


def request(room: str, *entries: Entry) -> Request:
    return Request(room, 1234, entries)


def lines_of(folder: Path) -> list[bytes]:
    return [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_bytes().splitlines()]


def notes_of(folder: Path) -> list[bytes]:
    return list(checkpoint.split_notes((folder / "checkpoints").read_bytes()))


def keys_of(folder: Path) -> list[VerifierKey]:
    paths = sorted((folder / "keys").glob("*.vkey"), key=lambda path: int(path.stem.split("-")[1]))
    return [parse_key(path.read_text()) for path in paths]


def verdict_of(folder: Path) -> Verdict:
    return verify(lines_of(folder), notes_of(folder), keys_of(folder)[:1], keys_of(folder))
