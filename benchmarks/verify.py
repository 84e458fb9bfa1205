# SPDX-License-Identifier: Apache-2.0
"""The cost of proving a project, and of an environment that has a digest.

    python -m benchmarks.verify [--json] [--large-mib 800] [--files 2000] [--environment-files 30000] [--rounds 5] [--folder DIR]

One tree of one large file and many of 115 KB.  Interleaved, in this order each round: hashing every byte once with sha256 in
one thread (the reference), proving the tree in place, proving it into the content store, proving it unchanged, and looking at
every file, owner and mode of an unchanged environment whose bytes were hashed before (`environment_first_s` reads them too).
Bars (DESIGN.md section 9; 1.07 GB): verify ≤ 0.70 s, with snapshot ≤ 1.2 s, 2,000 unchanged files ≤ 50 ms, an environment of
30,000 files ≤ 0.45 s.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scaleoutd.core.policy import EnvironmentRule
from scaleoutd.runner.environments import environment_digest
from scaleoutd.runner.store import discard, take_snapshot
from scaleoutd.runner.verify import check_project
from tests.unit.runner.signed_project import SignedProject, make_project, rest

SMALL_BYTES = 115_000


def make_tree(folder: Path, large_mib: int, files: int) -> SignedProject:
    source = random.Random(1)
    folder.mkdir()
    with open(folder / "large.bin", "wb") as file:
        for _ in range(large_mib):
            file.write(source.randbytes(1024 * 1024))
    small = {f"d{number % 40}/f{number}.bin": source.randbytes(SMALL_BYTES) for number in range(files)}
    return make_project(folder, small)


def make_environment(folder: Path, files: int) -> EnvironmentRule:
    """What `python -m venv` makes, with packages of 60 small modules each."""
    (folder / "bin").mkdir(parents=True)
    (folder / "pyvenv.cfg").write_text("home = /usr/bin\n")
    (folder / "bin/python").symlink_to("/usr/bin/python3")
    for number in range(files):
        package = folder / f"lib/python3/site-packages/p{number // 60}"
        if not number % 60:
            package.mkdir(parents=True)
        (package / f"m{number}.py").write_bytes(b"x = %d\n" % number)
    return EnvironmentRule(str(folder / "bin/python"))


def hash_once(folder: Path) -> None:
    buffer = memoryview(bytearray(1024 * 1024))
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest = hashlib.sha256()
            with open(path, "rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    digest.update(buffer[:count])


def seconds(act: Callable[[], object]) -> float:
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun


def measure(folder: Path, large_mib: int, files: int, environment_files: int, rounds: int) -> dict[str, Any]:
    project = make_tree(folder / "p", large_mib, files)
    environment = make_environment(folder / "venv", environment_files)
    proven = project.prove()
    store = folder / "store"
    rest()
    hash_once(project.path)
    first = seconds(lambda: environment_digest(environment))
    names = ("hash_once", "verify", "snapshot", "unchanged", "prove_again", "environment")
    figures: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        figures["hash_once"].append(seconds(lambda: hash_once(project.path)))
        figures["verify"].append(seconds(lambda: check_project(proven)))
        discard(store)
        figures["snapshot"].append(seconds(lambda: take_snapshot(proven, store)))
        figures["unchanged"].append(seconds(lambda: take_snapshot(proven, store)))
        figures["prove_again"].append(seconds(project.prove))
        figures["environment"].append(seconds(lambda: environment_digest(environment)))
    medians = {f"{name}_s": round(statistics.median(values), 4) for name, values in figures.items()}
    return {
        "size_bytes": proven.manifest.manifest.size_bytes,
        "files": len(proven.manifest.manifest.files),
        "rounds": rounds,
        **medians,
        "environment_files": environment_files,
        "environment_first_s": round(first, 4),
        "verify_over_hash_once": round(medians["verify_s"] / medians["hash_once_s"], 3),
        "cpus": os.cpu_count(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.verify")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--large-mib", type=int, default=800)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--environment-files", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="verify-", dir=given.folder))
    try:
        result = measure(folder, given.large_mib, given.files, given.environment_files, given.rounds)
    finally:
        discard(folder / "store")
        shutil.rmtree(folder)
    if given.json:
        json.dump(result, sys.stdout)
        print()
        return
    for name, value in result.items():
        print(f"{name:24} {value}")


if __name__ == "__main__":
    main()
