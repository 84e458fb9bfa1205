# SPDX-License-Identifier: Apache-2.0
"""`scaleoutctl verify` as a whole process beside model-signing 1.1.1, in turns in the same run.

    tools/setup.sh bench                       # .venv-model-signing, locked by hash in requirements/model-signing.txt
    python -m benchmarks.verify_beside [--rounds 7] [--json] [--model-signing PYTHON]

Three projects: 7 files, 1,000 files of 1 KB, one file of 1 GB.
Both verify a P-256 signature over every byte; ours also modes, links and names.  Medians and the ratio ours / theirs.  Bar: a
small project in 150 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scaleoutd.cli.keygen import new_private_key, write_key_pair

THEIRS = Path(__file__).resolve().parents[1] / ".venv-model-signing/bin/python"
YAML = "entry_points:\n  train: {command: python train.py}\n"
CASES = {"small": (6, 200, 0), "files_1000": (999, 1000, 0), "gigabyte": (1, 200, 1000)}


def make(folder: Path, count: int, size: int, large_mb: int) -> Path:
    project = folder / "p"
    project.mkdir(parents=True)
    (project / "scaleout.yaml").write_text(YAML)
    for number in range(count):
        (project / f"f{number:04}.py").write_bytes(os.urandom(size))
    if large_mb:
        with open(project / "large.bin", "wb") as file:
            for _ in range(large_mb):
                file.write(os.urandom(1_000_000))
    return project


def run(*words: str | Path) -> float:
    begun = time.perf_counter()
    subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def measure(folder: Path, python: str, rounds: int, case: tuple[int, int, int]) -> dict[str, float]:
    project = make(folder, *case)
    ours = (sys.executable, "-m", "scaleoutd.cli.scaleoutctl")
    theirs = (python, "-m", "model_signing")
    write_key_pair(folder / "k", "root", new_private_key("ed25519"))
    write_key_pair(folder / "k", "ml", new_private_key("p256"))
    signature = folder / "model.sig"
    run(*theirs, "sign", "key", "--private_key", folder / "k/ml.key", "--signature", signature, project)
    run(*ours, "trust", "init", "--out", folder / "t", "--sign-with", folder / "k/root.key", "--key", f"ml={folder}/k/ml.pub")
    run(*ours, "sign", project, "--key", folder / "k/ml.key")
    (project / "scaleout.manifest.json").rename(folder / "manifest")
    taken: dict[str, list[float]] = {"ours": [], "model_signing": []}
    for _ in range(rounds):
        (folder / "manifest").rename(project / "scaleout.manifest.json")
        taken["ours"].append(run(*ours, "verify", project, "--trust-root", folder / "t"))
        (project / "scaleout.manifest.json").rename(folder / "manifest")
        verify = ("verify", "key", "--public_key", folder / "k/ml.pub", "--signature", signature)
        taken["model_signing"].append(run(*theirs, *verify, project))
    medians = {f"{name}_s": round(statistics.median(values), 4) for name, values in taken.items()}
    return {**medians, "ratio": round(medians["ours_s"] / medians["model_signing_s"], 3)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.verify_beside")
    parser.add_argument(
        "--model-signing", default=str(THEIRS), metavar="PYTHON", help="an interpreter that has model-signing 1.1.1 [%(default)s]"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cases", nargs="+", choices=sorted(CASES), default=sorted(CASES))
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if not Path(given.model_signing).exists():
        parser.error(f"no interpreter at {given.model_signing}; make it with: tools/setup.sh bench")
    result: dict[str, object] = {"rounds": given.rounds, "load_average": round(os.getloadavg()[0], 2)}
    for name in given.cases:
        with tempfile.TemporaryDirectory(prefix="verify-beside-") as folder:
            result[name] = measure(Path(folder) / "x", given.model_signing, given.rounds, CASES[name])
    if given.json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        print(f"{key:<14} {value}")


if __name__ == "__main__":
    main()
