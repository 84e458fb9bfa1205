# SPDX-License-Identifier: Apache-2.0
"""An edit in the development mode: how long a project of 1,000 files takes to be looked through and signed again.

    python -m benchmarks.resign [--json] [--count N]

`edited` is with one file changed, `at_rest` with none, which is what each task of a loop without edits pays.  `hash_all` is the
reference in the same run: reading and hashing all the files, which a signer without a memory would do.  Bar (issue 4): 100 ms.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from scaleoutd.cli.development import DevelopmentSigner
from scaleoutd.runner.tree import RACY_NS

FILES = 1000


def measure(count: int) -> dict[str, object]:
    taken: dict[str, list[float]] = {"edited": [], "at_rest": [], "hash_all": []}
    with tempfile.TemporaryDirectory(prefix="bench-resign-") as folder:
        project = Path(folder) / "project"
        project.mkdir()
        (project / "scaleout.yaml").write_text("entry_points:\n  train: {command: python train.py}\n")
        paths = [project / f"module_{number:04}.py" for number in range(FILES)]
        for number, path in enumerate(paths):
            path.write_text(f"value = {number}\n" * 40)
        signer = DevelopmentSigner(project, Path(folder) / "home", [])
        signer.sign()
        time.sleep(RACY_NS / 1e9)  # as between two edits of a person
        for turn in range(count):
            paths[500].write_text(f"value = {turn}\n")
            taken["edited"].append(timed(signer.sign))
            taken["at_rest"].append(timed(signer.sign))
            taken["hash_all"].append(timed(lambda: [hashlib.sha256(path.read_bytes()).digest() for path in paths]))
    return {
        "benchmark": "resign",
        "n": count,
        "files": FILES,
        **{name: {"p50_ms": ms(statistics.median(values)), "max_ms": ms(max(values))} for name, values in taken.items()},
        "bar_ms": 100,
        "load_average": round(os.getloadavg()[0], 2),
    }


def timed(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def ms(seconds: float) -> float:
    return round(seconds * 1e3, 2)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--count", type=int, default=20)
    given = parser.parse_args()
    result = measure(given.count)
    if given.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key:<14} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
