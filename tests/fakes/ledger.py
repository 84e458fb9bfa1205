# SPDX-License-Identifier: Apache-2.0
"""A ledger for unit tests of other rooms: keeps events in a list, checks them like the real one, fails on demand.

ledger = FakeLedger("runner")
ledger.record("computed", run="r1")
ledger.types() == ["computed"]
ledger.fail_next()            # the next record raises LedgerError and nothing is kept
ledger.fail_on("release")     # every record of this type raises
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scaleoutd.core import catalogue
from scaleoutd.errors import LedgerError
from scaleoutd.ipc.messages import Floors, Recorded


class FakeLedger:
    """Has the methods of scaleoutd.ipc.ledger_client.LedgerClient."""

    def __init__(self, room: str, *, time_ms: int = 1_790_000_000_000) -> None:
        self.room = room
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.barriers = 0
        self.time_ms = time_ms
        self.floors_answer = Floors(time_ms, 0, {})
        self.closed = False
        self._fail_next = 0
        self._fail_types: set[str] = set()
        self._lock = threading.Lock()

    def fail_next(self, times: int = 1) -> None:
        self._fail_next = times

    def fail_on(self, *types: str) -> None:
        self._fail_types.update(types)

    def heal(self) -> None:
        self._fail_next = 0
        self._fail_types.clear()

    def types(self) -> list[str]:
        return [name for name, _ in self.events]

    def bodies(self, name: str) -> list[dict[str, Any]]:
        return [body for found, body in self.events if found == name]

    def record(self, type_: str, /, **body: Any) -> Recorded:
        return self.record_all([(type_, body)])

    def record_all(
        self, events: Sequence[tuple[str, Mapping[str, Any]]], beside: Callable[[], object] = lambda: None
    ) -> Recorded:
        with self._lock:
            beside()
            checked = [(name, catalogue.normalise(name, body, self.room)) for name, body in events]
            if self._fail_next:
                self._fail_next -= 1
                raise LedgerError("cannot record: the fake was told to fail")
            if self._fail_types.intersection(name for name, _ in checked):
                raise LedgerError("cannot record: the fake was told to fail on this type")
            first = len(self.events)
            self.events.extend(checked)
            self.barriers += 1
            self.time_ms += 1
            return Recorded(tuple(range(first, len(self.events))), self.time_ms)

    def floors(self) -> Floors:
        return self.floors_answer

    def close(self) -> None:
        self.closed = True
