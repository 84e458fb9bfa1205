# SPDX-License-Identifier: Apache-2.0
"""What a person is told of tasks: a line for each that comes and for each result that left, what is withheld once, a last word.

In the foreground the runner's failures are told by the parent, with their causes; then the agent does not repeat them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from scaleoutd.agent.log import Log
from scaleoutd.agent.spool import Entry
from scaleoutd.core.plan import Task
from scaleoutd.errors import ScaleoutError

LONGEST_ROUND_CHARS = 12
POLICY_LINE = {"train": "egress.metadata", "validate": "egress.metrics", "predict": "egress.metrics"}
RESULT = {"train": "update", "validate": "validation", "predict": "prediction"}


class Named(Protocol):
    """A directive or a spooled task."""

    @property
    def task(self) -> Task | None: ...

    @property
    def round_id(self) -> str: ...

    @property
    def correlation_id(self) -> str: ...


def round_of(task: Named) -> str:
    """`round 3`; long ids are cut, and a task outside of a round goes by its own id."""
    word, name = ("round", task.round_id) if task.round_id else ("task", task.correlation_id)
    return f"{word} {name if len(name) <= LONGEST_ROUND_CHARS else name[:8] + '…'}"


def result_of(task: Named) -> str:
    """`update of round 3`."""
    return f"{RESULT.get(task.task or '', 'result')} of {round_of(task)}"


class Telling:
    """`told_by_parent`: a foreground where the parent of the rooms tells how runs fail."""

    def __init__(self, log: Log, *, told_by_parent: bool = False) -> None:
        self._log, self._told_by_parent = log, told_by_parent
        self._withheld: set[tuple[str, str]] = set()
        self._sent = 0
        self._last_sent = ""

    def received(self, task: Named) -> None:
        self._log.info("task-received", f"{task.task} task received, {round_of(task)}", correlation_id=task.correlation_id)

    def sent(self, task: Named, size_bytes: int, wall_s: float) -> None:
        self._sent += 1
        self._last_sent = result_of(task)
        size = f"{size_bytes / 1024:.1f} KiB" if size_bytes < 1 << 20 else f"{size_bytes / (1 << 20):.1f} MiB"
        self._log.info("sent", f"{self._last_sent} sent: {size} in {wall_s:.2f} s", correlation_id=task.correlation_id)

    def withheld(self, task: Named, keys: Sequence[str]) -> None:
        """By name, each key once, with the line of the policy that decides."""
        where = POLICY_LINE.get(task.task or "", "egress")
        new = [key for key in keys if (where, key) not in self._withheld]
        if not new:
            return
        self._withheld.update((where, key) for key in new)
        self._log.warning(
            "released",
            f"withheld by the egress rules, now and from now on: {', '.join(new)}; to let it leave, name it under {where} in the"
            " policy",
            correlation_id=task.correlation_id,
        )

    def failed(self, task: Named, error: ScaleoutError, *, by_runner: bool) -> None:
        if by_runner and self._told_by_parent:
            self._log.debug("task-failed", str(error), correlation_id=task.correlation_id)
        else:
            self._log.error("task-failed", error, correlation_id=task.correlation_id)

    def last_words(self, entries: Iterable[Entry]) -> None:
        """What was sent and what was not, when the agent stops."""
        told = [f"the {self._last_sent} was sent"] if self._last_sent else []
        if self._sent > 1:
            told[0] += f" ({self._sent} results in all)"
        told += [_left(entry) for entry in entries if entry.state not in ("failed", "reported")]
        self._log.info("agent-stopped", "; ".join(told) if told else "nothing was in progress")


def _left(entry: Entry) -> str:
    what = result_of(entry.task)
    if entry.state in ("received", "offered"):
        return f"the task in progress ({entry.task.task}, {round_of(entry.task)}) was not: it begins anew at the next start"
    if entry.state == "acknowledged":
        return f"the {what} was sent, its report follows at the next start"
    return f"the {what} is computed and not confirmed: it is sent at the next start, under the same ids"
