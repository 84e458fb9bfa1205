# SPDX-License-Identifier: Apache-2.0
"""What benchmarks/service.py measures inside the guest: run by its python3 on the installed package.

    instances N   as the runner's user: what the runner does with a step instance, by its own code, N times; samples in ms
    rest S        as root: memory and processor time of every process of the rooms over S seconds

Prints one JSON object.
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from scaleoutd.core.plan import Bind, Limits, SandboxPlan
from scaleoutd.ipc.named import NamedClientDoor
from scaleoutd.runner.instances import Instance, Instances

LOCK = Path("/etc/scaleoutd/policy.lock")
COMMAND = "/usr/bin/true"
MIB = 1 << 20
LIMITS = Limits(
    wall_clock_s=30, cpu_s=20, memory_bytes=256 * MIB, processes=32, open_files=256, file_size_bytes=MIB, scratch_bytes=MIB,
    output_bytes=MIB, stdout_bytes=MIB, tmp_bytes=MIB, shm_bytes=MIB,
)  # fmt: skip
# The launcher learns its messages after the hello, and builds a sandbox after Prepare; neither is answered.
WARM_S = 0.3


def instances(count: int) -> dict[str, list[float]]:
    """Samples: a plain spawn; connect → hello; connect → exec of an instance that nobody waited for; request → exec of one that
    was connected before, without and with the sandbox prepared (as in a task, where it is built while the model arrives)."""
    samples: dict[str, list[float]] = {}
    policy = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    pool = Instances(NamedClientDoor(), spares=0, units=True)
    with tempfile.TemporaryFile() as log:
        for turn in range(count + 1):
            taken = samples if turn else {}  # the first is warm-up
            timed(taken, "spawn_ms", lambda: subprocess.run([COMMAND], check=True))
            began = time.perf_counter()
            with pool.take(policy) as cold:
                taken.setdefault("cold_connect_to_hello_ms", []).append((time.perf_counter() - began) * 1000)
                execute(cold, log.fileno())
                taken.setdefault("cold_connect_to_exec_ms", []).append((time.perf_counter() - began) * 1000)
                finish(cold)
            pool.end_left()
            for name, prepared in (("warm_request_to_exec_ms", False), ("prepared_request_to_exec_ms", True)):
                with pool.take(policy) as warm:
                    if prepared:
                        warm.prepare(plan_of(warm))
                    time.sleep(WARM_S)
                    began = time.perf_counter()
                    execute(warm, log.fileno())
                    taken.setdefault(name, []).append((time.perf_counter() - began) * 1000)
                    finish(warm)
                    taken.setdefault(name.replace("exec", "result"), []).append((time.perf_counter() - began) * 1000)
                pool.end_left()
    return samples


def timed(samples: dict[str, list[float]], name: str, act: Callable[[], object]) -> None:
    began = time.perf_counter()
    act()
    samples.setdefault(name, []).append((time.perf_counter() - began) * 1000)


def plan_of(instance: Instance) -> SandboxPlan:
    """The system's programs, all that an empty task needs."""
    folders = [path for path in ("/usr", "/bin", "/sbin", "/lib", "/lib64") if os.path.isdir(path)]
    scratch = f"/scratch/{instance.slot}"
    return SandboxPlan(
        run="bench",
        backend="systemd",
        slot=instance.slot,
        command=(COMMAND,),
        cwd=scratch,
        environment={"PATH": "/usr/bin:/bin"},
        binds=tuple(Bind(path, path, executable=True) for path in folders),
        scratch=scratch,
        limits=LIMITS,
    )


def execute(instance: Instance, log: int) -> None:
    """Returns when the exec has happened."""
    instance.execute(plan_of(instance), log, None)


def finish(instance: Instance) -> None:
    result = instance.ended(LIMITS.wall_clock_s)
    if (result.ended, result.exit_status) != ("exited", 0):
        raise SystemExit(f"{COMMAND} did not run: {result}")


def rest(duration_s: float) -> dict[str, object]:
    """Room → MiB and number of processes, the sum, and percent of one core."""
    pids = rooms()
    before, began = {pid: processor_s(pid) for pid in pids}, time.monotonic()
    time.sleep(duration_s)
    if rooms() != pids:
        raise SystemExit("processes of the rooms came or went: the node is not at rest")
    took_s = time.monotonic() - began
    used = {pid: processor_s(pid) - before[pid] for pid in pids}
    found: dict[str, dict[str, float]] = {}
    for pid, room in pids.items():
        of_room = found.setdefault(room, {"processes": 0, "pss_mib": 0, "uss_mib": 0, "rss_mib": 0, "cpu_percent": 0})
        for key, value in (("processes", 1.0), *memory_mib(pid).items(), ("cpu_percent", used[pid] / took_s * 100)):
            of_room[key] += value
    found["sum"] = {key: sum(room[key] for room in found.values()) for key in ("processes", "pss_mib", "uss_mib", "rss_mib")}
    found["sum"]["cpu_percent"] = sum(used.values()) / took_s * 100
    return {room: {key: round(value, 2) for key, value in values.items()} for room, values in found.items()}


def rooms() -> dict[int, str]:
    """Process → room, by its user (of `status`: the folder of a process that may not be dumped is root's)."""
    names = {"scaleoutd": "agent", "scaleoutd-runner": "runner", "scaleoutd-ledger": "ledger"}
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                uid = int(next(line for line in (entry / "status").read_text().splitlines() if line[:4] == "Uid:").split()[1])
                user = pwd.getpwuid(uid).pw_name
            except (OSError, KeyError):
                continue
            if user.startswith("scaleoutd"):
                found[int(entry.name)] = names.get(user, "step")
    return found


def memory_mib(pid: int) -> dict[str, float]:
    """Resident, of that nobody else's (Uss), and with a share of what others map too (Pss)."""
    kib = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split()[:2]
        kib[name.rstrip(":")] = int(value)
    own = kib["Private_Clean"] + kib["Private_Dirty"]
    return {"pss_mib": kib["Pss"] / 1024, "uss_mib": own / 1024, "rss_mib": kib["Rss"] / 1024}


def processor_s(pid: int) -> float:
    """What all its threads have used, to the nanosecond (the ticks of stat are 10 ms each)."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()) / 1e9


def main() -> None:
    what, amount = sys.argv[1:]
    print(json.dumps(instances(int(amount)) if what == "instances" else rest(float(amount))))
