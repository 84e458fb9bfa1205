# SPDX-License-Identifier: Apache-2.0
"""The cost of an audit event, and the rate of verification.

    python -m benchmarks.audit [--json] [--events N] [--lines N] [--folder DIR]

One run, interleaved: a bare append of a line of the same size with fdatasync, and an event through the ledger's socket until it
is acknowledged, by turns, on the same file system.  Then batches of 64 events with one barrier, and the verification of a
made trail of N lines with its checkpoints.  Bars (DESIGN.md section 9): event ≤ bare + 0.30 ms p50, + 1 ms p99; ≥ 500 events/s
batched; 1,000,000 lines ≤ 16 s on two cores, ≤ 100 MiB.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from scaleoutd.cli.audit import verify_folder
from scaleoutd.core import event
from scaleoutd.core.chain import Tip
from scaleoutd.core.checkpoint import Checkpoint, join_notes
from scaleoutd.core.merkle import Tree
from scaleoutd.ledger.signer import Signer
from tests.unit.ledger.harness import LedgerProcess

BODY: dict[str, Any] = {
    "run": "run-1", "ended": "exited", "exit_status": 0, "wall_ms": 812, "cpu_ms": 640, "max_rss_bytes": 90_000_000,
    "stdout_bytes": 1200, "stdout_dropped_bytes": 0, "denied": {"ptrace": 2},
    "enforced": ["no-socket-out proven network-namespace seccomp", "no-survivor proven pid-namespace"],
}  # fmt: skip


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def milliseconds(values: list[float]) -> dict[str, float]:
    return {
        "p50_ms": round(statistics.median(values) * 1000, 3),
        "p99_ms": round(percentile(values, 0.99) * 1000, 3),
        "mean_ms": round(statistics.fmean(values) * 1000, 3),
    }


def measure_events(folder: Path, events: int) -> dict[str, Any]:
    """Round trips beside bare appends, by turns; then batches."""
    ledger = LedgerProcess(folder / "state", "--checkpoint-events", "100000").ready()
    client = ledger.client("runner")
    client.record("run-ended", **BODY)
    size_bytes = len((folder / "state" / "00000001.jsonl").read_bytes().splitlines()[-1]) + 1
    fd = os.open(folder / "bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    line = b"x" * (size_bytes - 1) + b"\n"
    bare: list[float] = []
    through: list[float] = []
    for _ in range(events):
        begun = time.perf_counter()
        os.write(fd, line)
        os.fdatasync(fd)
        bare.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        client.record("run-ended", **BODY)
        through.append(time.perf_counter() - begun)
    os.close(fd)
    begun = time.perf_counter()
    batches = max(1, events // 64)
    for _ in range(batches):
        client.record_all([("run-ended", BODY)] * 40)
    batched = batches * 40 / (time.perf_counter() - begun)
    with Path(f"/proc/{ledger.process.pid}/status").open() as status:
        rss_kib = next(int(row.split()[1]) for row in status if row.startswith("VmRSS"))
    ledger.stop()
    return {
        "line_bytes": size_bytes,
        "bare_append_fdatasync": milliseconds(bare),
        "event_acknowledged": milliseconds(through),
        "over_bare_p50_ms": round((statistics.median(through) - statistics.median(bare)) * 1000, 3),
        "over_bare_p99_ms": round((percentile(through, 0.99) - percentile(bare, 0.99)) * 1000, 3),
        "ratio_p50": round(statistics.median(through) / statistics.median(bare), 2),
        "batched_events_per_s": round(batched),
        "ledger_rss_mib": round(rss_kib / 1024, 1),
        "n": events,
    }


def make_trail(folder: Path, lines: int) -> None:
    """A trail of `lines` events, a checkpoint every 256, without the cost of syncing each."""
    folder.mkdir(mode=0o700)
    signer = Signer.create(folder, "ed25519")
    tree, tip, notes = Tree(), None, []
    per_segment = 5000
    file = None
    for sequence in range(lines):
        if sequence % per_segment == 0:
            if file is not None:
                file.close()
            file = (folder / f"{sequence // per_segment + 1:08d}.jsonl").open("wb")
        type_, body, room = "run-ended", BODY, "runner"
        if sequence == 0:
            type_, body, room = "epoch-key-made", {"epoch": 1, "key": signer.current.public.encode()}, "ledger"
        line, tip = event.build(type_, body, stamp(sequence, room, tip, signer.origin))
        file.write(line + b"\n")  # type: ignore[union-attr]
        tree.append(line)
        if tree.size % 256 == 0 or tree.size == lines:
            notes.append(signer.sign(Checkpoint(signer.origin, tree.size, tree.root())))
    file.close()  # type: ignore[union-attr]
    (folder / "checkpoints").write_bytes(join_notes(notes))


def stamp(sequence: int, room: str, tip: Tip | None, origin: str) -> event.Stamp:
    event_id = hashlib.sha256(b"%d" % sequence).hexdigest()[:32]
    return event.Stamp(sequence, 1_790_000_000_000 + sequence, room, 998, event_id, origin, tip, "node-1", "0.1.0")


def measure_verify(folder: Path, lines: int) -> dict[str, Any]:
    """The command's own function over a made trail, on one processor and on all, by turns."""
    make_trail(folder, lines)
    processors = os.sched_getaffinity(0)
    told: dict[int, list[dict[str, Any]]] = {1: [], len(processors): []}
    for _ in range(3):
        for count, runs in told.items():
            runs.append(_verified(folder, set(sorted(processors)[:count])))
    result: dict[str, Any] = {"lines": lines, "ok": all(run["ok"] for runs in told.values() for run in runs)}
    for count, runs in told.items():
        result[f"on_{count}"] = {
            "wall_s": round(statistics.median(run["wall_s"] for run in runs), 3),
            "cpu_s": round(statistics.median(run["cpu_s"] for run in runs), 3),
            "million_lines_s": round(statistics.median(run["wall_s"] for run in runs) * 1_000_000 / lines, 1),
            "peak_rss_mib": max(run["peak_rss_mib"] for run in runs),
        }
    return result


def _verified(folder: Path, processors: set[int]) -> dict[str, Any]:
    """In a child, so that memory and processor time are its own.  The peak is that of one process, with it there are as many
    more as there are processors."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.sched_setaffinity(0, processors)
        begun = time.perf_counter()
        verdict, _ = verify_folder(folder)
        wall_s = time.perf_counter() - begun
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        told = {
            "ok": verdict.ok,
            "wall_s": wall_s,
            "cpu_s": sum(one.ru_utime + one.ru_stime for one in used),
            "peak_rss_mib": round(max(one.ru_maxrss for one in used) / 1024, 1),
        }
        os.write(writer, json.dumps(told).encode())
        os._exit(0)
    os.close(writer)
    answer: dict[str, Any] = json.loads(os.read(reader, 4096))
    os.waitpid(child, 0)
    os.close(reader)
    return answer


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--events", type=int, default=500)
    parser.add_argument("--lines", type=int, default=50_000)
    parser.add_argument("--folder", type=Path, help="on the file system to measure; default a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        result = {
            "benchmark": "audit",
            "events": measure_events(Path(name), options.events),
            "verify": measure_verify(Path(name) / "made", options.lines),
            "bars": {"over_bare_p50_ms": 0.30, "over_bare_p99_ms": 1.0, "batched_events_per_s": 500, "million_lines_s": 16},
            "load_average": os.getloadavg(),
        }
    print(json.dumps(result) if options.json else json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
