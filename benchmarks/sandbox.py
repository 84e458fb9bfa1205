# SPDX-License-Identifier: Apache-2.0
"""What the sandbox costs, beside a plain spawn and bubblewrap with an equal inner stage, by turns in one run.

    python -m benchmarks.sandbox [--json] [--count N]

Columns (stages/columns.py): `plain`, `bubblewrap`, and ours `cold` (a launcher by exec for this one command), `warm` (a launcher
that is connected, as a spare is, and has done what it does while nobody waits) and `prepared` (its sandbox is completed too, as
in every task: docs/sandbox.md says when which occurs).  As root also `unit-warm` and `unit-prepared`: the launcher as the backend
systemd runs it, without the unit around it (service.py measures it in the shipped unit).  Rows: `true` and `python` are /bin/true
and `python3 -I -S -c pass` from the request to the result; `exec` is from the request to the clock that the command itself reads
first (`date`), so that it is the same for all.  Milliseconds; wall time is median and 95th percentile, processor time the mean
of all processes of a start, the launcher's start and clean-up included.

Equal is what bubblewrap can do: the same namespaces, mounts, sizes, environment, filter, no capability, a session of its own
(bubblewrap.py makes its command line from our view).  It does not do: noexec mounts, Landlock, cgroup, rlimits, wall clock,
watched scratch, bounded output, counted calls, proven outcomes, checks of what came out; and as root its command has root's uid
on the host, by a user namespace, where ours has a uid of its own.  Without bubblewrap the column is missing, and `missing` says
why.

Then: start of a launcher to its hello, cold (as systemd does it) and forked by a template (as in the foreground), memory of
both, an inspection of a small model.  Bars (DESIGN.md section 9): `exec` warm ≤ 5 ms in the backend namespaces and ≤ 1.0 ×
bubblewrap, ≤ 3 ms in the backend systemd; an idle launcher ≤ 14 MiB.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from benchmarks.bubblewrap import missing
from benchmarks.figures import compile_package, options, show, spread
from benchmarks.stages.columns import Cold, Column, Plain, Prepared, Warm, Wrapped
from scaleoutd.cli.launchers import Launchers
from scaleoutd.core.plan import STEP_UID_BASE, ModelRules, SandboxPlan
from tests.child import children_of
from tests.step_client import MIB, PYTHON, StepClient, forked, plan_for
from tests.unit.step.models import npy, npz

COMMANDS = {
    "true": ["/bin/true"],
    "python": [PYTHON, "-I", "-S", "-c", "pass"],
    "exec": ["/bin/date", "+%s%N"],
}
UNIT_SLOT = 1023  # the end of a run kills all of its slot's uid, and no node has so many slots
SPARE_S = 1.0  # until a spare has done what it does while nobody waits
EXEC_BAR_MS, UNIT_EXEC_BAR_MS, RSS_BAR_MIB = 5.0, 3.0, 14.0
REFERENCES = ("plain", "bubblewrap")
ROOT = os.geteuid() == 0  # nobody else may look into a launcher: it is not dumpable


@dataclasses.dataclass
class Cell:
    """One command in one column."""

    column: Column
    wall_ms: list[float] = dataclasses.field(default_factory=list)
    cpu_before_s: float = 0.0

    def take(self, tells_its_start: bool) -> None:
        self.column.ready()
        with tempfile.TemporaryFile() as output:
            began_ns = time.time_ns()
            self.column.run(output)
            ended_ns = time.time_ns()
            if tells_its_start:
                output.seek(0)
                ended_ns = int(output.read())
            self.column.settle()
        self.wall_ms.append((ended_ns - began_ns) / 1e6)

    def forget(self) -> None:
        """What was taken so far was warm-up."""
        self.wall_ms.clear()
        self.cpu_before_s = self.column.cpu_s

    def figures(self) -> dict[str, float]:
        found = spread(self.wall_ms)
        if not isinstance(self.column, Warm):  # a model is inspected between
            found["cpu"] = round((self.column.cpu_s - self.cpu_before_s) * 1000 / len(self.wall_ms), 2)
        return found


def cells(folder: Path, name: str, stack: ExitStack) -> dict[str, Cell]:
    """Column → what it measures; every launcher has a scratch folder of its own."""
    kinds: dict[str, Callable[[SandboxPlan], Column]] = {
        "plain": Plain,
        "bubblewrap": Wrapped,
        "cold": Cold,
        "warm": Warm,
        "prepared": Prepared,
    }
    if ROOT:
        kinds |= {"unit-warm": Warm, "unit-prepared": Prepared}
    if missing():
        del kinds["bubblewrap"]
    made = {}
    for kind, column in kinds.items():
        scratch = folder / f"{name}-{kind}"
        plan = plan_for(scratch, COMMANDS[name])
        if kind == "plain":
            plan = dataclasses.replace(plan, cwd=str(folder))
        elif kind == "bubblewrap":
            scratch.mkdir()
        elif kind.startswith("unit-"):
            scratch.mkdir(0o700)
            os.chown(scratch, STEP_UID_BASE + UNIT_SLOT, STEP_UID_BASE + UNIT_SLOT)
            plan = dataclasses.replace(plan, backend="systemd", slot=UNIT_SLOT, cwd=str(scratch))
        made[kind] = Cell(column(plan))
        stack.callback(made[kind].column.close)
    return made


def starts(folder: Path, rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Command → column → figures in ms, all by turns."""
    with ExitStack() as stack:
        table = {name: cells(folder, name, stack) for name in COMMANDS}
        for turn in range(rounds + 1):
            for name, row in table.items():
                for cell in row.values():
                    cell.take(tells_its_start=name == "exec")
                    if turn == 0:
                        cell.forget()
        return {name: {kind: cell.figures() for kind, cell in row.items()} for name, row in table.items()}


def launchers(folder: Path, rounds: int) -> dict[str, object]:
    """Start and memory of a launcher, cold and forked by a template; an inspection of a small model."""
    samples: dict[str, list[float]] = {}
    model = folder / "model"
    model.write_bytes(npz({str(n): npy("<f4", (2048,), bytes(8192)) for n in range(8)}))
    plan, rules = plan_for(folder / "inspected", ["/bin/true"]), ModelRules(("npz",), MIB)
    with StepClient() as client, open(model, "rb") as file:
        for _ in range(rounds):
            _time(samples, "inspect_64_KiB_ms", lambda: client.inspect(plan, rules, file.fileno()))
    memory = _memory_of_a_spare() if ROOT else {}
    template_of, before = Launchers(), children_of(os.getpid())
    spare = forked(template_of)
    time.sleep(SPARE_S)
    (template,) = set(children_of(os.getpid())) - set(before)
    for _ in range(max(3, rounds // 5)):
        _time(samples, "cold_start_ms", lambda: StepClient().close())
        _time(samples, "forked_start_ms", lambda: forked(template_of).close())
    if ROOT:
        memory |= {f"forked_{name}": value for name, value in _memory(children_of(template)[0]).items()}
    spare.close()
    template_of.stop()
    return {**{name: spread(values) for name, values in samples.items()}, **memory}


def measure(rounds: int) -> dict[str, object]:
    compile_package()
    with tempfile.TemporaryDirectory(prefix="scaleoutd-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the step has a uid of its own
        table = starts(folder, rounds)
        rest = launchers(folder, rounds)
    result: dict[str, object] = {"benchmark": "sandbox", "n": rounds, "ms": table, **rest}
    warm = table["exec"]["warm"]["p50"]
    met = {f"exec warm <= {EXEC_BAR_MS} ms": warm <= EXEC_BAR_MS}
    if ROOT:
        met[f"exec unit-warm <= {UNIT_EXEC_BAR_MS} ms"] = table["exec"]["unit-warm"]["p50"] <= UNIT_EXEC_BAR_MS
        met[f"idle launcher <= {RSS_BAR_MIB} MiB"] = max(of_launcher(rest)) <= RSS_BAR_MIB
    for reference in REFERENCES:
        if reference in table["exec"]:
            result[f"ratio_to_{reference}"] = {
                command: {kind: round(row[kind]["p50"] / row[reference]["p50"], 2) for kind in row if kind not in REFERENCES}
                for command, row in table.items()
            }
    absent = {} if ROOT else {"launcher_*_MiB": "only root reads the memory of a launcher"}
    if why := missing():
        absent["bubblewrap"] = why
    else:
        met["exec warm <= 1.0 x bubblewrap"] = warm <= table["exec"]["bubblewrap"]["p50"]
    return {**result, "missing": absent, "met": met, "load_average": round(os.getloadavg()[0], 2)}


def of_launcher(rest: Mapping[str, object]) -> list[float]:
    """RSS of a launcher started by exec and of one that was forked, MiB."""
    return [value for name, value in rest.items() if name.endswith("_rss_MiB") and isinstance(value, float)]


def _time(samples: dict[str, list[float]], name: str, act: Callable[[], object]) -> None:
    start = time.perf_counter()
    act()
    samples.setdefault(name, []).append((time.perf_counter() - start) * 1000)


def _memory_of_a_spare() -> dict[str, float]:
    """Connected, and asked for nothing yet."""
    with StepClient() as client:
        time.sleep(SPARE_S)
        return _memory(client.process.pid)


def _memory(pid: int) -> dict[str, float]:
    with open(f"/proc/{pid}/smaps_rollup") as file:
        values = {line.split(":")[0]: int(line.split()[1]) for line in file if line.endswith(" kB\n")}
    own = values["Private_Clean"] + values["Private_Dirty"]
    kib = {"rss": values["Rss"], "pss": values["Pss"], "private": own}
    return {f"launcher_{name}_MiB": round(value / 1024, 1) for name, value in kib.items()}


def main() -> int:
    given = options(__doc__ or "", 40).parse_args()
    show(measure(given.count), given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
