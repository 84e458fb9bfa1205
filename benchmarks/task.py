# SPDX-License-Identifier: Apache-2.0
"""Directive → update at the server, our node beside the official client, in one run, interleaved.

    python -m benchmarks.task [--json] [--count N] [--bytes N]

Two devcombiners in this process: one demands a client certificate and serves our node (verification, sandbox, trail, mTLS: all
on), one does not and serves the official dispatcher (it has no client certificate).  Both run the same step with the same
interpreter: read the model, write it back.  The time is from the moment a directive was handed out to the arrival of the
update's announcement, read on one clock, so polling is not in it.  Bar (DESIGN.md section 9): p50 ≤ 1.0 × the official one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks.official import start_official
from scaleoutd.devcombiner.npz import flat, write_npz
from scaleoutd.devcombiner.records import TRAIN
from scaleoutd.devcombiner.server import DevCombiner
from tests.e2e.site import NodeProcess, Project, write_policy

STEP = "/usr/bin/python3 train.py"


def copy_project(project: Path, client: Path) -> None:
    client.mkdir(parents=True)
    for name in ("scaleout.yaml", "train.py", "validate.py"):
        (client / name).write_bytes((project / name).read_bytes())


def start_ours(stack: ExitStack, combiner: DevCombiner, folder: Path, project: Project) -> None:
    certificate, key = combiner.issue_client_certificate("ours")
    trust = project.write_trust_root(folder / "root.json")
    policy = write_policy(folder / "policy.yaml", project, trust, budget={"runs_per_day": 100_000, "runs_per_session": 100_000})
    node = NodeProcess(
        [
            "--api-url", combiner.api_url, "--local-package", "--name", "ours", "--ca", str(combiner.ca_file),
            "--cert", str(certificate), "--key", str(key), "--policy", str(policy), "--state-dir", str(folder / "state"),
            "--poll-interval", "1", "--log-format", "text",
        ],
        combiner.mint_enrollment(),
    )  # fmt: skip
    stack.callback(node.stop)


def one_task(combiner: DevCombiner, client: str, model: str) -> float:
    """Milliseconds from directive to update."""
    task = combiner.offer_task(client, TRAIN, model, session_id="bench", round_id="1")
    if not combiner.board.wait_until(lambda: combiner.board.offers[task].done, 60):
        raise SystemExit(f"task {task} did not end")
    offer = combiner.board.offers[task]
    update = next((update for update in combiner.updates if update.correlation_id == task), None)
    if update is None or offer.handed_out_at_s is None:
        raise SystemExit(f"task {task} ended {offer.status}: {offer.response}")
    return (update.arrived_at_s - offer.handed_out_at_s) * 1000


def connected(combiner: DevCombiner) -> str:
    if not combiner.board.wait_until(lambda: bool(combiner.board.connected()), 60):
        raise SystemExit("a client did not connect")
    return combiner.board.connected()[0]


def measure(count: int, size: int) -> dict[str, object]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-task-")))
        project = Project(folder / "project")
        project.write()
        steps = {"train": tuple(STEP.split()), "validate": ("/usr/bin/python3", "validate.py")}
        (project.folder / "scaleout.yaml").write_text(
            f"entry_points:\n  train: {{command: {STEP}}}\n  validate: {{command: /usr/bin/python3 validate.py}}\n"
        )
        project.sign(steps=steps)
        strict = stack.enter_context(DevCombiner())
        lax = stack.enter_context(DevCombiner(client_certificate="none"))
        start_ours(stack, strict, folder, project)
        copy_project(project.folder, folder / "official" / "client")
        start_official(stack, lax, folder / "official", "dispatcher", telemetry=True)
        model = write_npz({"0": flat("f4", (size // 4,), [float(i % 97) for i in range(size // 4)])})
        sides = {
            "ours": (strict, connected(strict), strict.put_model(model)),
            "official": (lax, connected(lax), lax.put_model(model)),
        }
        times: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(count + 1):
            for name, (combiner, client, model_id) in sides.items():
                taken = one_task(combiner, client, model_id)
                if turn:  # the first of each is warm-up
                    times[name].append(taken)
    p50 = {name: statistics.median(values) for name, values in times.items()}
    return {
        "benchmark": "task",
        "n": count,
        "model_bytes": size,
        "ours_ms": {"p50": round(p50["ours"], 1), "max": round(max(times["ours"]), 1)},
        "official_ms": {"p50": round(p50["official"], 1), "max": round(max(times["official"]), 1)},
        "ratio_p50": round(p50["ours"] / p50["official"], 3),
        "bar": "ratio_p50 <= 1.0",
        "load_average": os.getloadavg()[0],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--count", type=int, default=15)
    parser.add_argument("--bytes", type=int, default=64 * 1024)
    given = parser.parse_args()
    result = measure(given.count, given.bytes)
    if given.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key:<14} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
