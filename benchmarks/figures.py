# SPDX-License-Identifier: Apache-2.0
"""What benchmarks of whole processes share: the command line, a timed act, how figures are summed up and shown."""

from __future__ import annotations

import argparse
import compileall
import json
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


def options(doc: str, count: int) -> argparse.ArgumentParser:
    """`--json` and `--count`; the first line of `doc` says what it measures."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("-n", "--count", type=int, default=count, help="rounds [%(default)s]")
    return parser


def show(result: Mapping[str, object], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        if isinstance(value, dict) and any(isinstance(item, dict) for item in value.values()):
            print(key)
            for name, item in value.items():
                print(f"  {name:<26} {item}")
        else:
            print(f"{key:<28} {value}")


def spread(values_ms: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    ordered = sorted(values_ms)
    return {"p50": round(statistics.median(ordered), 2), "p95": round(ordered[max(0, int(len(ordered) * 0.95) - 1)], 2)}


def compile_package() -> None:
    """Byte code as an installed package has it: a launcher writes none (-B), so in a fresh checkout each would compile anew."""
    compileall.compile_dir(Path(__file__).parents[1] / "scaleoutd", quiet=1)


def children_cpu_s() -> float:
    """Processor time of all children that were waited for, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@dataclass
class Taken:
    """Wall and processor time of acts that wait for the processes they start; milliseconds."""

    wall_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)

    def time(self, act: Callable[[], object]) -> None:
        cpu_s, began = children_cpu_s(), time.perf_counter()
        act()
        self.wall_ms.append((time.perf_counter() - began) * 1000)
        self.cpu_ms.append((children_cpu_s() - cpu_s) * 1000)
