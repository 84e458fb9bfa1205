# SPDX-License-Identifier: Apache-2.0
"""How a room records: a small client of the ledger.

Rules:
  1. `record` returns when the events are durable, or raises; there is no third way and no queue.
  2. An event has its id before it is sent.  After a broken connection the same ids are sent again, so a lost answer does
     not make a second record (the ledger answers a known id with its old sequence).
  3. What the ledger refuses is not sent again.  What cannot be recorded within `retry_for_s` seconds is a LedgerError,
     and the caller does not go on: no record, no work.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from scaleoutd.core import catalogue, records, strictjson
from scaleoutd.errors import LedgerError, PeerError
from scaleoutd.ipc.channel import Channel
from scaleoutd.ipc.doors import ClientDoor
from scaleoutd.ipc.messages import Append, AskFloors, Entry, Floors, Recorded

MAX_ENTRIES = 64
MAX_REQUEST_BYTES = 60 * 1024  # below a packet's 64 KiB, with room for its frame
ANSWER_TIMEOUT_S = 30.0
PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0

A = TypeVar("A")


def _nothing() -> None:
    pass


class LedgerClient:
    """Records events of `room` through `door`.  May be used by several threads; one request is on the way at a time."""

    def __init__(
        self, door: ClientDoor, room: str, *, retry_for_s: float = 10.0, answer_timeout_s: float = ANSWER_TIMEOUT_S
    ) -> None:
        self._door = door
        self._room = room
        self._retry_for_s = retry_for_s
        self._answer_timeout_s = answer_timeout_s
        self._channel: Channel | None = None
        self._lock = threading.Lock()

    def record(self, type_: str, /, **body: Any) -> Recorded:
        """Makes one event durable.  FormatError `event-invalid` for a body the catalogue refuses, LedgerError otherwise."""
        return self.record_all([(type_, body)])

    def record_all(self, events: Sequence[tuple[str, Mapping[str, Any]]], beside: Callable[[], object] = _nothing) -> Recorded:
        """Makes events durable in this order, with one barrier (several only when they do not fit into one packet).

        `beside` is done once, while the ledger waits for its disk; what it raises is raised here, whatever was recorded.
        """
        if not events:
            raise ValueError("no events to record")
        entries = [Entry(secrets.token_hex(16), name, catalogue.normalise(name, body, self._room)) for name, body in events]
        sequences: list[int] = []
        time_ms = 0
        with self._lock:
            for batch in _batches(entries):
                recorded = self._ask(Append(batch), Recorded, beside)
                beside = _nothing
                if len(recorded.sequences) != len(batch):
                    self._hang_up()
                    raise LedgerError(f"cannot record: {len(batch)} events were sent, {len(recorded.sequences)} acknowledged")
                sequences.extend(recorded.sequences)
                time_ms = recorded.time_ms
        return Recorded(tuple(sequences), time_ms)

    def floors(self) -> Floors:
        """Highest versions and latest time of the trail."""
        with self._lock:
            return self._ask(AskFloors(), Floors)

    def close(self) -> None:
        with self._lock:
            self._hang_up()

    def _ask(self, request: Any, answer: type[A], beside: Callable[[], object] = _nothing) -> A:
        deadline = time.monotonic() + self._retry_for_s
        pause_s = PAUSE_S
        while True:
            try:
                channel = self._connected()
                channel.tell(request)
                self._do(beside)
                beside = _nothing
                return channel.expect(answer, timeout_s=self._answer_timeout_s)
            except PeerError as exc:
                # The answer may be on the way still: never read from this connection again.
                self._hang_up()
                if exc.code == "peer-denied":
                    raise
                if time.monotonic() + pause_s >= deadline:
                    raise LedgerError(
                        f"cannot record: the ledger was not reached for {self._retry_for_s:g} s: {exc.message}",
                        hint="Nothing runs and nothing leaves without a record; look at the ledger's log.",
                    ) from exc
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _do(self, beside: Callable[[], object]) -> None:
        try:
            beside()
        except BaseException:
            self._hang_up()  # its answer is not read
            raise

    def _connected(self) -> Channel:
        if self._channel is None:
            channel = self._door.connect("ledger")
            try:
                channel.greet(self._room)
            except BaseException:
                channel.close()
                raise
            self._channel = channel
        return self._channel

    def _hang_up(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None


def _batches(entries: Sequence[Entry]) -> list[tuple[Entry, ...]]:
    batches: list[tuple[Entry, ...]] = []
    batch: list[Entry] = []
    size = 0
    for entry in entries:
        entry_bytes = len(strictjson.canonical(records.encode(entry))) + 1
        if batch and (size + entry_bytes > MAX_REQUEST_BYTES or len(batch) == MAX_ENTRIES):
            batches.append(tuple(batch))
            batch, size = [], 0
        batch.append(entry)
        size += entry_bytes
    batches.append(tuple(batch))
    return batches
