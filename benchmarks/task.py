# SPDX-License-Identifier: Apache-2.0
"""Directive → update at the server, our node beside the official client, in one run, interleaved.

    python -m benchmarks.task [--json] [--count N] [--bytes N] [--stages]

Two devcombiners in this process: one demands a client certificate and serves our node (verification, sandbox, trail, mTLS: all
on), one does not and serves the official dispatcher (it has no client certificate).  Both run the same step with the same
interpreter: read the model, write it back.  The time is from the moment a directive was handed out to the arrival of the
update's announcement, read on one clock, so polling is not in it.  The second of two is the time between their two updates, when
both came in one answer.  Bars (DESIGN.md section 9): p50 ≤ 1.0 × the official one, the second ≤ 1.5 × a single one, at most 3
barriers in sequence.  `--stages` prints where the time goes, in all rooms, and counts the barriers.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.official import start_official
from benchmarks.stages import timeline
from benchmarks.stages.marks import read
from scaleoutd.devcombiner.npz import flat, write_npz
from scaleoutd.devcombiner.records import TRAIN
from scaleoutd.devcombiner.server import DevCombiner
from tests.e2e.site import NodeProcess, Project, write_policy

STEP = "/usr/bin/python3 train.py"


def copy_project(project: Path, client: Path) -> None:
    client.mkdir(parents=True)
    for name in ("scaleout.yaml", "train.py", "validate.py"):
        (client / name).write_bytes((project / name).read_bytes())


class MarkedNode(NodeProcess):
    """A node whose rooms write marks to `folder` (stages/marks.py)."""

    def __init__(self, folder: Path, arguments: list[str], token: str) -> None:
        self.folder = folder
        super().__init__(arguments, token)

    def command(self) -> list[str]:
        return [sys.executable, "-m", "benchmarks.stages.marks", str(self.folder), "client", "start", *self.arguments]


def start_ours(stack: ExitStack, combiner: DevCombiner, folder: Path, project: Project, marks: Path | None) -> None:
    certificate, key = combiner.issue_client_certificate("ours")
    trust = project.write_trust_root(folder / "root.json")
    policy = write_policy(folder / "policy.yaml", project, trust, budget={"runs_per_day": 100_000, "runs_per_session": 100_000})
    arguments = [
        "--api-url", combiner.api_url, "--local-package", "--name", "ours", "--ca", str(combiner.ca_file),
        "--cert", str(certificate), "--key", str(key), "--policy", str(policy), "--state-dir", str(folder / "state"),
        "--poll-interval", "1", "--log-format", "text",
    ]  # fmt: skip
    token = combiner.mint_enrollment()
    node = NodeProcess(arguments, token) if marks is None else MarkedNode(marks, arguments, token)
    stack.callback(node.stop)


@dataclass(frozen=True)
class Window:
    """Of one task: monotonic seconds."""

    handed_out_s: float
    arrived_s: float

    @property
    def ms(self) -> float:
        return (self.arrived_s - self.handed_out_s) * 1000


def one_task(combiner: DevCombiner, client: str, model: str, count: int = 1) -> list[Window]:
    """Offers `count` tasks at once, waits for all; from directive to update, in the order of arrival."""
    tasks = [combiner.offer_task(client, TRAIN, model, session_id="bench", round_id="1") for _ in range(count)]
    offers = [combiner.board.offers[task] for task in tasks]
    if not combiner.board.wait_until(lambda: all(offer.done for offer in offers), 60):
        raise SystemExit(f"tasks {tasks} did not end")
    windows = []
    for task, offer in zip(tasks, offers, strict=True):
        update = next((update for update in combiner.updates if update.correlation_id == task), None)
        if update is None or offer.handed_out_at_s is None:
            raise SystemExit(f"task {task} ended {offer.status}: {offer.response}")
        windows.append(Window(offer.handed_out_at_s, update.arrived_at_s))
    return sorted(windows, key=lambda window: window.arrived_s)


def connected(combiner: DevCombiner) -> str:
    if not combiner.board.wait_until(lambda: bool(combiner.board.connected()), 60):
        raise SystemExit("a client did not connect")
    return combiner.board.connected()[0]


@dataclass
class Samples:
    """What was measured: single tasks of each side, and of ours the second of two that came together."""

    single: dict[str, list[Window]]
    second: list[float]


def run_tasks(folder: Path, count: int, size: int, marks: Path | None) -> Samples:
    """Interleaved, so that the machine's mood is the same for both."""
    with ExitStack() as stack:
        project = Project(folder / "project")
        project.write()
        steps = {"train": tuple(STEP.split()), "validate": ("/usr/bin/python3", "validate.py")}
        (project.folder / "scaleout.yaml").write_text(
            f"entry_points:\n  train: {{command: {STEP}}}\n  validate: {{command: /usr/bin/python3 validate.py}}\n"
        )
        project.sign(steps=steps)
        strict = stack.enter_context(DevCombiner())
        lax = stack.enter_context(DevCombiner(client_certificate="none"))
        start_ours(stack, strict, folder, project, marks)
        copy_project(project.folder, folder / "official" / "client")
        start_official(stack, lax, folder / "official", "dispatcher", telemetry=True)
        model = write_npz({"0": flat("f4", (size // 4,), [float(i % 97) for i in range(size // 4)])})
        sides = {
            "ours": (strict, connected(strict), strict.put_model(model)),
            "official": (lax, connected(lax), lax.put_model(model)),
        }
        found = Samples({name: [] for name in sides}, [])
        for turn in range(count + 1):
            for name, (combiner, client, model_id) in sides.items():
                window = one_task(combiner, client, model_id)[0]
                if turn:  # the first of each is warm-up
                    found.single[name].append(window)
        for _ in range(max(3, count // 3)):
            first, second = one_task(*sides["ours"], count=2)
            found.second.append((second.arrived_s - first.arrived_s) * 1000)
        return found


def percentiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    p95 = ordered[max(0, math.ceil(len(ordered) * 0.95) - 1)]
    return {"p50": round(statistics.median(ordered), 1), "p95": round(p95, 1), "min": round(ordered[0], 1)}


def measure(count: int, size: int, marked: bool) -> tuple[dict[str, object], list[str]]:
    """The figures, and with `marked` the time line of a task."""
    lines: list[str] = []
    with tempfile.TemporaryDirectory(prefix="bench-task-") as name:
        folder = Path(name)
        marks = folder / "marks" if marked else None
        if marks is not None:
            marks.mkdir()
        samples = run_tasks(folder, count, size, marks)
        if marks is not None:
            lines = timeline.table(list(read(marks)), [(w.handed_out_s, w.arrived_s) for w in samples.single["ours"]])
    times = {name: [window.ms for window in windows] for name, windows in samples.single.items()}
    p50 = {name: statistics.median(values) for name, values in times.items()}
    return {
        "benchmark": "task",
        "n": count,
        "model_bytes": size,
        "ours_ms": percentiles(times["ours"]),
        "official_ms": percentiles(times["official"]),
        "ratio_p50": round(p50["ours"] / p50["official"], 3),
        "second_of_two_ms": percentiles(samples.second),
        "second_to_single": round(statistics.median(samples.second) / p50["ours"], 2),
        "bar": "ratio_p50 <= 1.0, second_to_single <= 1.5",
        "load_average": os.getloadavg()[0],
    }, lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--count", type=int, default=15)
    parser.add_argument("--stages", action="store_true", help="print the time line of a task; marks cost a few percent")
    parser.add_argument("--bytes", type=int, default=64 * 1024)
    given = parser.parse_args()
    result, lines = measure(given.count, given.bytes, given.stages)
    if given.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key:<17} {value}")
        print(*lines, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
