# SPDX-License-Identifier: Apache-2.0
"""The account of a node, from its trail: what ran, on which code, with which model, and what left.  Pure.

A run is everything that names the same `run`; what was refused before there was a run is listed beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from scaleoutd.core.catalogue import BY_NAME
from scaleoutd.core.event import Event
from scaleoutd.core.strictjson import Json

# Events without a run that a reader wants to see: everything that failed, and what these say.
NOTABLE = frozenset(
    {
        "manifest-verified",
        "trust-root-accepted",
        "trust-root-reset",
        "operator-command",
        "tail-cut",
        "clock-floor-lowered",
        "clock-jumped",
    }
)


@dataclass
class Run:
    """One run.  `left` is what was released, `delivery` what became of it."""

    run: str
    first_sequence: int
    time_ms: int
    started: Mapping[str, Any] = field(default_factory=dict)
    ended: Mapping[str, Any] = field(default_factory=dict)
    left: Mapping[str, Any] = field(default_factory=dict)
    delivery: str = ""
    failures: list[Mapping[str, Any]] = field(default_factory=list)
    sequences: list[int] = field(default_factory=list)

    def facts(self) -> dict[str, Json]:
        """For --json."""
        return {
            "run": self.run,
            "time_ms": self.time_ms,
            "started": dict(self.started),
            "ended": dict(self.ended),
            "left": dict(self.left),
            "delivery": self.delivery,
            "failures": [dict(item) for item in self.failures],
            "sequences": list(self.sequences),
        }


@dataclass
class Account:
    """Runs in the order of their first event, and notable events without one."""

    runs: dict[str, Run] = field(default_factory=dict)
    notable: list[Event] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def take(self, event: Event) -> None:
        self.counts[event.type] = self.counts.get(event.type, 0) + 1
        name = event.body.get("run")
        if isinstance(name, str) and name and event.room in ("agent", "runner"):
            run = self.runs.setdefault(name, Run(name, event.sequence, event.time_ms))
            run.sequences.append(event.sequence)
            _take_run(run, event)
            return
        entry = BY_NAME.get(event.type)
        if event.type in NOTABLE or (entry is not None and entry.status == "failure"):
            self.notable.append(event)


def account(events: Iterable[Event]) -> Account:
    result = Account()
    for event in events:
        result.take(event)
    return result


def _take_run(run: Run, event: Event) -> None:
    if event.type == "run-about-to-start" and event.room == "runner":
        run.started = event.body
    elif event.type == "run-ended" and event.room == "runner":
        run.ended = event.body
    elif event.type == "release" and event.room == "runner":
        run.left = event.body
        run.delivery = "released"
    elif event.type == "sending":
        run.delivery = "sending"
    elif event.type == "sent":
        run.delivery = str(event.body.get("outcome") or "acknowledged")
    elif event.type == "delivery-unknown":
        run.delivery = "unknown"
    elif event.type in ("run-failed", "output-refused", "model-refused", "run-interrupted"):
        run.failures.append({"event": event.type, **event.body})
