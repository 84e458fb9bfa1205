# SPDX-License-Identifier: Apache-2.0
"""The time line of a task, from the spans of marks.py: medians over all tasks, one line for each span, in order."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence

from benchmarks.stages.marks import BARRIERS, Span

_LEAST_SHARE = 0.5  # of the tasks that must have a span, or it is left out


def table(spans: Sequence[Span], windows: Sequence[tuple[float, float]]) -> list[str]:
    """begin, duration (ms, median), room and name; `windows` are (directive, update) in monotonic seconds."""
    found: dict[tuple[str, str, int], list[tuple[float, float]]] = defaultdict(list)
    chains, barriers = [], []
    for begin_s, end_s in windows:
        inside = sorted((span for span in spans if begin_s <= span.begin_s <= end_s), key=lambda span: span.begin_s)
        seen: dict[tuple[str, str], int] = defaultdict(int)
        for span in inside:
            number = seen[span.room, span.name]
            seen[span.room, span.name] += 1
            found[span.room, span.name, number].append(((span.begin_s - begin_s) * 1000, (span.end_s - span.begin_s) * 1000))
        waits = [span for span in inside if span.name in BARRIERS]
        barriers.append(len(waits))
        chains.append(longest_chain(waits))
    rows = []
    for (room, name, _), values in found.items():
        if len(values) >= _LEAST_SHARE * len(windows):
            begin, lasts = (statistics.median(column) for column in zip(*values, strict=True))
            rows.append((begin, lasts, room, name))
    lines = [f"{'begin':>7} {'lasts':>7}  (ms)"]
    indent = {"agent": 0, "runner": 1, "step": 2, "ledger": 3}
    lines += [f"{begin:7.1f} {lasts:7.1f}  {'    ' * indent[room]}{room} {name}" for begin, lasts, room, name in sorted(rows)]
    if barriers:
        lines.append(
            f"barriers before the update: {statistics.median(barriers):.0f}, in sequence {statistics.median(chains):.0f}"
        )
    return lines


def longest_chain(spans: Sequence[Span]) -> int:
    """How many of the spans come one after the other, at most: barriers that overlap wait for the disk together."""
    count, last_s = 0, 0.0
    for span in sorted(spans, key=lambda span: span.end_s):
        if span.begin_s >= last_s:
            count, last_s = count + 1, span.end_s
    return count
