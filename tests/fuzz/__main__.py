# SPDX-License-Identifier: Apache-2.0
"""`make fuzz`: each target with coverage guidance for some seconds, one after the other.

    python -m tests.fuzz [TARGET…] --seconds 60 [--keep] [--table FILE]

Prints one line a target (executions, edges and how many of them are new, features, size of the corpus) and ends with 1 when there
was a finding, whose input is printed in base64.  --keep replaces the kept corpus by a part of the new one; --table appends rows
for docs/fuzzing.md.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import corpora
from tests.fuzz.registry import TARGETS
from tests.fuzz.target import Target

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-fuzz" / "bin" / "python"
_STATUS = re.compile(r"#(\d+)\s+\S+\s+cov: (\d+) ft: (\d+) corp: (\d+)/")
_BEGUN = re.compile(r"#\d+\s+INITED\s+cov: (\d+) ")
_EXECUTED = re.compile(r"stat::number_of_executed_units: (\d+)")


@dataclass(frozen=True)
class Run:
    """`finding` is "" when every promise held; `known` counts the edges that seeds and kept corpus alone reach."""

    executions: int
    known: int
    edges: int
    features: int
    corpus: int
    finding: str = ""


def run(target: Target, seconds: int, keep: bool) -> Run:
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        inputs, found = Path(folder) / "inputs", Path(folder) / "found"
        for path in (inputs, found):
            path.mkdir()
        for data in (*target.seeds(), *corpora.kept(target)):
            (inputs / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
        common = ["-timeout=30", "-rss_limit_mb=2048", f"-max_len={target.max_bytes}", f"-artifact_prefix={found}/"]
        text = _start(target, [*common, f"-max_total_time={seconds}", "-print_final_stats=1", str(inputs)])
        last = list(_STATUS.finditer(text))
        begun = _BEGUN.search(text)
        executed = _EXECUTED.search(text)
        counts = [int(number) for number in last[-1].groups()] if last else [0, 0, 0, 0]
        finding = ""
        for path in found.iterdir():
            shown = [line for line in text.splitlines() if "Finding" in line or "ERROR" in line][:3]
            finding = f"{path.name}: {' / '.join(shown)}\ninput in base64: {base64.b64encode(path.read_bytes()).decode()}"
        if not finding and executed is None:
            finding = f"the fuzzer did not end by itself: {text[-2000:]}"
        if keep and not finding:
            # libFuzzer has reduced them while it ran; its merge starts itself again, which atheris under -m cannot.
            corpora.keep(target, {path.read_bytes() for path in inputs.iterdir()} - set(target.seeds()))
        known = int(begun[1]) if begun else counts[1]
        return Run(int(executed[1]) if executed else counts[0], known, counts[1], counts[2], counts[3], finding)


def _start(target: Target, options: list[str]) -> str:
    command = [str(PYTHON), "-W", "error", "-W", "ignore::DeprecationWarning", "-m", "tests.fuzz.guided", target.name, *options]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return done.stdout.decode("utf-8", "replace")


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.fuzz")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    if not PYTHON.exists():
        sys.exit("cannot fuzz: .venv-fuzz is not there; run `tools/setup.sh fuzz`")
    failed = False
    for name in options.targets or TARGETS:
        result = run(TARGETS[name], options.seconds, options.keep)
        new = result.edges - result.known
        edges = f"{result.edges} edges ({new} new), {result.features} features"
        row = f"{result.executions:,} executions, {edges}, corpus {result.corpus}"
        print(f"{name}: {options.seconds} s, {row}{', FINDING' if result.finding else ''}", flush=True)
        if result.finding:
            failed = True
            print(result.finding, flush=True)
        if options.table is not None:
            with options.table.open("a") as file:
                file.write(
                    f"| `{name}` | {options.seconds} | {result.executions:,} | {result.edges} | {new} | {result.features} |\n"
                )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
