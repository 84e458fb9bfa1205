# SPDX-License-Identifier: Apache-2.0
"""python -m benchmarks.sandbox --json: what the sandbox costs, interleaved with a plain spawn in the same run.

Figures: start of a launcher to its hello, by turns cold (as systemd does it) and forked by a template (as in the foreground),
memory of both, request to exec, request to result of /bin/true, an inspection of a small model; medians and 95th percentiles in
milliseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from scaleoutd.cli.launchers import Launchers
from scaleoutd.core.plan import ModelRules
from scaleoutd.ipc.channel import Channel
from scaleoutd.ipc.packets import Connection
from tests.step_client import MIB, StepClient, plan_for
from tests.unit.step.models import npy, npz


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("-n", type=int, default=40, help="rounds")
    arguments = parser.parse_args()
    result = measure(arguments.n)
    if arguments.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:28} {value}")


def measure(rounds: int) -> dict[str, object]:
    samples: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="scaleoutd-bench-") as name:
        scratch = Path(name) / "scratch"
        model = Path(name) / "model"
        model.write_bytes(npz({str(n): npy("<f4", (2048,), bytes(8192)) for n in range(8)}))
        model_fd = os.open(model, os.O_RDONLY)
        log = os.open(Path(name) / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        with StepClient() as client:
            plan = plan_for(scratch, ["/bin/true"])
            rules = ModelRules(("npz",), MIB)
            for _ in range(rounds):
                _time(samples, "spawn_true_ms", lambda: subprocess.run(["/bin/true"], check=True))
                start = time.perf_counter()
                client.start(plan, log)
                samples.setdefault("request_to_exec_ms", []).append((time.perf_counter() - start) * 1000)
                client.finish()
                samples.setdefault("request_to_result_ms", []).append((time.perf_counter() - start) * 1000)
                _time(samples, "inspect_64_KiB_ms", lambda: client.inspect(plan, rules, model_fd))
            memory = _memory(client.process.pid)
        launchers = Launchers()
        spare = _forked(launchers)
        for _ in range(max(3, rounds // 5)):
            _time(samples, "cold_start_ms", lambda: StepClient().close())
            _time(samples, "forked_start_ms", lambda: _forked(launchers).close())
        (template,) = _children(os.getpid())
        memory |= {f"forked_{name}": value for name, value in _memory(_children(template)[0]).items()}
        spare.close()
        launchers.stop()
        os.close(model_fd)
        os.close(log)
    figures: dict[str, object] = {"benchmark": "sandbox", "n": rounds, "load_average": os.getloadavg()[0], **memory}
    for key, values in samples.items():
        ordered = sorted(values)
        figures[key] = {"p50": round(statistics.median(ordered), 2), "p95": round(ordered[int(len(ordered) * 0.95) - 1], 2)}
    spawn, run = statistics.median(samples["spawn_true_ms"]), statistics.median(samples["request_to_result_ms"])
    figures["ratio_result_to_spawn"] = round(run / spawn, 1)
    return figures


def _forked(launchers: Launchers) -> Channel:
    """A launcher that has said hello."""
    ours, theirs = Connection.pair()
    launchers.launch(theirs)
    theirs.close()
    channel = Channel(ours, "step")
    channel.greet("runner")
    return channel


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _time(samples: dict[str, list[float]], name: str, act: Callable[[], object]) -> None:
    start = time.perf_counter()
    act()
    samples.setdefault(name, []).append((time.perf_counter() - start) * 1000)


def _memory(pid: int) -> dict[str, float]:
    with open(f"/proc/{pid}/smaps_rollup") as file:
        values = {line.split(":")[0]: int(line.split()[1]) for line in file if line.endswith(" kB\n")}
    own = values["Private_Clean"] + values["Private_Dirty"]
    kib = {"rss": values["Rss"], "pss": values["Pss"], "private": own}
    return {f"launcher_{name}_MiB": round(value / 1024, 1) for name, value in kib.items()}


if __name__ == "__main__":
    main()
