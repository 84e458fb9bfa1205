# SPDX-License-Identifier: Apache-2.0
"""Start to connected, memory of each process, and processor time at rest: our node beside the official client, in one run.

    python -m benchmarks.start [--json] [--count N] [--idle-s SECONDS]

Both are started by the same command line, in turns, against combiners in this process that take clients without a certificate:
from the exec to the moment the combiner has the Connect announcement.  The official client runs in dispatcher mode.  Ours is
in development mode with an unchanged project, everything else on: outcomes are proven, the trail is kept.  Memory is VmRSS and
Pss of every process below the command, at rest; processor time is what /proc/<pid>/stat counts over the idle time, in percent
of one core.  Bars (DESIGN.md section 9): sum of Pss ≤ 95 MiB, ≤ 0.5 % of a core.
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
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from scaleoutd.devcombiner.server import DevCombiner
from tests.child import end
from tests.e2e.site import ROOT, Project

KIB = 1024
ROOMS = ("agent", "runner", "ledger")


@dataclass
class Side:
    """One of the two: its command line after the program, its folder, its combiner."""

    name: str
    program: list[str]
    folder: Path
    combiner: DevCombiner
    more: list[str]

    @property
    def log(self) -> Path:
        return self.folder.with_suffix(".log")  # beside the project: in it, it would be an edit

    def begin(self) -> tuple[subprocess.Popen[bytes], float]:
        """The process, and the seconds from its exec until it was connected."""
        environment = {
            "PATH": f"{ROOT / '.venv-official/bin'}:{os.environ['PATH']}",
            "HOME": str(self.folder.parent / "home"),
            "PYTHONPATH": str(ROOT) if self.name == "ours" else "",
            "SCALEOUT_GRPC_ROOT_CERT_PATH": str(self.combiner.ca_file),
            "REQUESTS_CA_BUNDLE": str(self.combiner.ca_file),
            "TMPDIR": str(self.folder),
        }
        arguments = ["client", "start", "--api-url", self.combiner.api_url, "--token", self.combiner.mint_enrollment()]
        for client in list(self.combiner.board.clients.values()):
            client.connected = False  # the same identity comes again
        began = time.monotonic()
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [*self.program, *arguments, *self.more], cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True,
            )  # fmt: skip
        if not self.combiner.board.wait_until(lambda: bool(self.combiner.board.connected()), 60):
            process.terminate()
            raise SystemExit(f"{self.name} did not connect: {self.log.read_text()[-2000:]}")
        return process, time.monotonic() - began


def below(pid: int) -> list[int]:
    """`pid` and all its descendants."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = [pid]
    for known in found:
        found += [child for child, parent in parents.items() if parent == known]
    return found


def name_of(pid: int, top: int) -> str:
    command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    if pid == top:
        return "parent"
    return next((room for room in ROOMS if f"scaleoutd.{room}.__main__" in command), "step" if "launcher" in command else "child")


def kib(pid: int, file: str, key: str) -> int:
    return next(int(line.split()[1]) for line in Path(f"/proc/{pid}/{file}").read_text().splitlines() if line.startswith(key))


def memory(top: int) -> dict[str, dict[str, float]]:
    """Process → MiB of RSS and Pss."""
    found: dict[str, dict[str, float]] = {}
    for pid in below(top):
        rss, pss = kib(pid, "status", "VmRSS:"), kib(pid, "smaps_rollup", "Pss:")
        found[name_of(pid, top)] = {"rss_mib": round(rss / KIB, 1), "pss_mib": round(pss / KIB, 1)}
    found["sum"] = {key: round(sum(item[key] for item in found.values()), 1) for key in ("rss_mib", "pss_mib")}
    return found


def processor_s(pids: list[int]) -> float:
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def at_rest(top: int, idle_s: float) -> float:
    """Percent of one core over `idle_s`."""
    pids = below(top)
    began, used = time.monotonic(), processor_s(pids)
    time.sleep(idle_s)
    return round((processor_s(pids) - used) / (time.monotonic() - began) * 100, 2)


def sides(stack: ExitStack) -> list[Side]:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-start-")))
    (folder / "home").mkdir()
    made = []
    for name, program, more, place in (
        ("ours", [sys.executable, "-m", "scaleoutd.cli.scaleoutd"], ["--local-package"], ""),
        ("official", [str(ROOT / ".venv-official/bin/scaleout")], ["--dispatcher"], "client"),
    ):
        project = Project(folder / name / place if place else folder / name)
        project.write()
        made.append(Side(name, program, folder / name, stack.enter_context(DevCombiner(client_certificate="none")), more))
    return made


def measure(count: int, idle_s: float) -> dict[str, object]:
    times: dict[str, list[float]] = {"ours": [], "official": []}
    rest: dict[str, dict[str, object]] = {}
    with ExitStack() as stack:
        both = sides(stack)
        for turn in range(count + 1):
            for side in both:
                process, seconds = side.begin()
                try:
                    if turn:  # the first of each is warm-up: keys are made, files are read from disk
                        times[side.name].append(seconds)
                    if turn == count:
                        time.sleep(2)
                        rest[side.name] = {"idle_cpu_percent": at_rest(process.pid, idle_s), "memory": memory(process.pid)}
                finally:
                    end(process)
    p50 = {name: statistics.median(values) for name, values in times.items()}
    return {
        "benchmark": "start",
        "n": count,
        "idle_s": idle_s,
        "ours_s": {"p50": round(p50["ours"], 3), "max": round(max(times["ours"]), 3)},
        "official_s": {"p50": round(p50["official"], 3), "max": round(max(times["official"]), 3)},
        "ratio_p50": round(p50["ours"] / p50["official"], 3),
        "ours": rest["ours"],
        "official": rest["official"],
        "bar": "sum pss_mib <= 95, idle_cpu_percent <= 0.5",
        "load_average": os.getloadavg()[0],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--idle-s", type=float, default=10.0)
    given = parser.parse_args()
    result = measure(given.count, given.idle_s)
    if given.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key:<14} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
