# SPDX-License-Identifier: Apache-2.0
"""The states a task goes through, as a pure state machine over append-only lines.

Two tables: AGENT_STATES (what the agent's spool writes) and RUN_STATES (the runner's run-once table).  A state file is
one canonical JSON line for each transition:

    {"at_ms":1700000000000,"fields":{"attempt":1},"n":3,"state":"sending","sum":"<SHA-256>"}

Rules:
  1. A line is valid only after the one before it: `n` counts, `sum` covers the line and the sum before, the transition is
     in the table.  A line that was moved, changed or lost makes the whole file `state-corrupt`; nothing is guessed.
  2. A torn last line was never acknowledged.  It does not come here: scaleoutd.durable.AppendFile cuts it off.
  3. A state may be entered again only where the table says so; the fields tell which attempt it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scaleoutd.core import records, strictjson
from scaleoutd.core.records import Name, Natural, Sha256Hex
from scaleoutd.core.strictjson import Json
from scaleoutd.errors import FormatError, StorageError

MAX_LINE_BYTES = 64 * 1024


@dataclass(frozen=True)
class Line:
    """One transition.  `fields` belong to the state: attempt, ids, code."""

    n: Natural
    state: Name
    at_ms: Natural
    sum: Sha256Hex
    fields: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True)
class States:
    """A table of transitions.  `start` is the only state a history may begin with; a state without successors ends it."""

    name: str
    start: str
    transitions: Mapping[str, frozenset[str]]

    def __post_init__(self) -> None:
        unknown = {after for successors in self.transitions.values() for after in successors} - set(self.transitions)
        if unknown or self.start not in self.transitions:
            raise ValueError(f"table {self.name}: {sorted(unknown) or self.start} is not a state of it")

    def is_final(self, state: str) -> bool:
        return not self.transitions[state]

    def allows(self, before: Line | None, state: str) -> bool:
        """Whether `state` may follow `before` (None: the history is empty)."""
        return state == self.start if before is None else state in self.transitions[before.state]

    def advance(self, before: Line | None, state: str, at_ms: int, fields: Mapping[str, Json] | None = None) -> Line:
        """The line that enters `state`; ValueError for a transition that the table does not have (a bug of the caller)."""
        if not self.allows(before, state):
            raise ValueError(f"table {self.name}: no way from {before.state if before else 'nothing'} to {state}")
        number = before.n + 1 if before else 0
        return Line(number, state, at_ms, _sum(before, number, state, at_ms, fields or {}), dict(fields or {}))

    def parse(self, lines: Sequence[bytes]) -> list[Line]:
        """The history in `lines`; StorageError `state-corrupt` for anything that `advance` and `encode` did not write."""
        history: list[Line] = []
        for index, data in enumerate(lines):
            before = history[-1] if history else None
            try:
                line = records.decode(Line, strictjson.parse_canonical(data, max_bytes=MAX_LINE_BYTES, what="a state"))
            except FormatError as exc:
                raise _corrupt(index, exc.message) from exc
            if line.n != index or line.sum != _sum(before, line.n, line.state, line.at_ms, line.fields):
                raise _corrupt(index, "its number or checksum does not fit the lines before it")
            if not self.allows(before, line.state):
                raise _corrupt(index, f"state {line.state} may not follow {before.state if before else 'nothing'}")
            history.append(line)
        return history


def encode(line: Line) -> bytes:
    """The canonical JSON of a line, without newline."""
    return strictjson.canonical(records.encode(line))


def _sum(before: Line | None, number: int, state: str, at_ms: int, fields: Mapping[str, Json]) -> str:
    content = [before.sum if before else "", number, state, at_ms, dict(fields)]
    return hashlib.sha256(strictjson.canonical(content)).hexdigest()


def _corrupt(index: int, cause: str) -> StorageError:
    return StorageError(
        f"cannot read line {index + 1} of a state file: {cause}",
        code="state-corrupt",
        hint="The file was damaged or edited. Keep it as evidence and remove the task's folder.",
    )


def _table(name: str, start: str, ways: Mapping[str, str]) -> States:
    return States(name, start, {state: frozenset(after.split()) for state, after in ways.items()})


# `offered` and `sending` may be entered again: each time is one attempt.  After `released` a task fails only because the
# combiner takes its work back or refuses it for good.  `unknown`: nobody can tell whether the combiner took it.
# `acknowledged` again: it is in the trail, and the runner knows.
AGENT_STATES = _table(
    "agent",
    "received",
    {
        "received": "offered failed",
        "offered": "offered released failed",
        "released": "sending failed",
        "sending": "sending acknowledged unknown failed",
        "unknown": "sending acknowledged failed",
        "acknowledged": "acknowledged reported",
        "failed": "reported",
        "reported": "",
    },
)

# The runner's run-once table.  `about-to-run` again is attempt 2 of a run that was killed before `computed`.
RUN_STATES = _table(
    "run",
    "accepted",
    {
        "accepted": "accepted about-to-run failed interrupted",
        "about-to-run": "computed failed interrupted",
        "interrupted": "accepted about-to-run failed",
        "computed": "released failed",
        "released": "forgotten failed",
        "failed": "forgotten",
        "forgotten": "",
    },
)
