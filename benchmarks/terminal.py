# SPDX-License-Identifier: Apache-2.0
"""How long a line of step output takes to the terminal: from before it is written in the step to its arrival at a real pty.

    python -m benchmarks.terminal [--json] [--count N]

A node in the foreground, N tasks of 20 lines each, 20 ms apart, not flushed by the script.  `first` is the first of each task,
when its step has only just begun; `all` is every line.  Both ends read the same clock.  Bar (issue 4): 50 ms for the first line.
The reference in the same run is `direct`: the same script with a pty of its own, and nothing of ours in between.
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from scaleoutd.devcombiner.server import DevCombiner
from tests.e2e.foreground.person import Person

LINES = 20
BAR_S = 0.050
PRINT = f"import time\nfor _ in range({LINES}):\n    print('at', repr(time.time()))\n    time.sleep(0.02)"


def through_the_node(count: int) -> list[list[float]]:
    """Seconds for each line of each task."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-terminal-") as folder,
        DevCombiner(client_certificate="none") as combiner,
        Person(Path(folder), combiner, train_body=PRINT) as person,
    ):
        person.start()
        person.task()  # warm-up
        found = []
        for _ in range(count):
            before = len(person.lines)
            person.task()
            person.wait_for("│ trained", after=before)
            shown = list(zip(person.lines, person.times, strict=False))[before:]
            found.append([at - float(line.split()[-1]) for line, at in shown if "│ at " in line])
    if any(len(task) != LINES for task in found):
        raise SystemExit(f"expected {LINES} lines a task, found {[len(task) for task in found]}")
    return found


def direct() -> list[float]:
    """Seconds for each line of the script at a pty of its own."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-u", "-c", PRINT])
    found, rest = [], b""
    while True:
        try:
            rest += os.read(terminal, 65536)
        except OSError:  # EIO: the script has ended
            break
        now = time.time()
        *lines, rest = rest.split(b"\n")
        found += [now - float(line.split()[-1]) for line in lines]
    os.waitpid(pid, 0)
    os.close(terminal)
    return found


def summary(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return {
        "p50_ms": round(statistics.median(ordered) * 1e3, 2),
        "p99_ms": round(p99 * 1e3, 2),
        "max_ms": round(ordered[-1] * 1e3, 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--count", type=int, default=20, help="tasks")
    given = parser.parse_args()
    tasks, reference = through_the_node(given.count), [late for _ in range(3) for late in direct()]
    first = [task[0] for task in tasks]
    result = {
        "benchmark": "terminal",
        "n": given.count,
        "first": summary(first),
        "all": summary([late for task in tasks for late in task]),
        "direct": summary(reference),
        "first_within_bar": sum(late <= BAR_S for late in first),
        "bar_ms": BAR_S * 1e3,
        "load_average": round(os.getloadavg()[0], 2),
    }
    if given.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key:<18} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
