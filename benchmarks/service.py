# SPDX-License-Identifier: Apache-2.0
"""The installed node: exposure of its units, start, step instances, memory and processor time at rest, sizes.

    python -m benchmarks.service [--json] [--starts N] [--count N] [--idle-s SECONDS] [--deb FILE]

As root, with what tools/setup.sh system and package install: the package is built from this tree, installed by apt in a booted
systemd-nspawn container, brought to a running node by the five commands of tests/system/hospital.py, connected over mTLS to a
combiner in this process, with the intervals that a node has by default.

Exposure is systemd-analyze's score three times, and each must keep the bar: --offline of the unit files in the package, of the
same as systemd has loaded them before anything is configured, and with the drop-ins of `policy apply`.

A start is from `systemctl start scaleoutd` on a node that is stopped, sockets too, to the command's return (READY of every room)
and to the combiner's first sight of the node.

Step instances are taken by the runner's own code as its user (stages/installed.py), beside a plain spawn in the same run: "warm"
is connected before the request, as a spare is; "prepared" has the sandbox built too, as in a task.

Memory is of all processes of the rooms, the spare instance with its children included, after a task; Pss is lower while other
guests map the same files, Uss and RSS are its bounds.  Bars: exposure agent ≤ 1.2, runner ≤ 0.4, step ≤ 1.5, ledger ≤ 0.4; warm
request to exec ≤ 3 ms; sum of Pss ≤ 95 MiB; ≤ 0.5 % of a core.  Medians.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.packaging import deb as package
from tests.system.container import Container
from tests.system.guest import Guest
from tests.system.hospital import ETC, NODE, Hospital
from tests.system.image import missing_for_container
from tests.system.install import install_deb

EXPOSURE_BARS = {"scaleoutd": 1.2, "scaleoutd-runner": 0.4, "scaleoutd-step@": 1.5, "scaleoutd-ledger": 0.4}
WARM_BAR_MS, PSS_BAR_MIB, CPU_BAR_PERCENT = 3.0, 95.0, 0.5
MEASURED = Path(__file__).with_name("stages") / "installed.py"
IN_GUEST = "/srv/bench"
RUN = f"import sys; sys.path[:0] = ['/usr/lib/scaleoutd', '{IN_GUEST}']; from installed import main; main()"
STOPPED = (
    "until [ -z \"$(systemctl list-units --plain --no-legend 'scaleoutd*.service' 'scaleoutd*.socket')\" ]; do sleep 0.05; done"
)
# Prints when it began; CLOCK_MONOTONIC is the host's in a container.
START = """\
import subprocess, time
began = time.monotonic()
subprocess.run(["systemctl", "start", "scaleoutd.service"], check=True)
print(began, time.monotonic())
"""


def measure(deb: Path, starts: int, count: int, idle_s: float) -> dict[str, object]:
    with Container() as guest, tempfile.TemporaryDirectory(prefix="bench-service-") as folder:
        install_deb(guest, deb)
        exposure = {"exposure_offline": exposures_of_files(guest, deb), "exposure_loaded": exposures(guest)}
        guest.write(f"{IN_GUEST}/installed.py", MEASURED.read_bytes())
        with Hospital(guest, Path(folder, "site")) as hospital:
            hospital.bring()
            guest.run(["rm", f"{ETC}/scaleoutd.d/50-quick.yaml"])
            exposure["exposure_loaded_with_policy"] = exposures(guest)
            ready_s, connected_s = start_often(hospital, starts)
            hospital.wait(hospital.offer())
            guest.wait_units("scaleoutd-runner.service", "StatusText=waits for tasks.*")
            samples = json.loads(guest.python(RUN, "instances", str(count), user="scaleoutd-runner", timeout_s=300).stdout)
            time.sleep(3)  # the last instance is still ending
            rest = json.loads(guest.python(RUN, "rest", str(idle_s), timeout_s=idle_s + 60).stdout)
    steps = {name: spread(values) for name, values in samples.items()}
    met = {
        **{f"exposure {unit} <= {bar}": max(of[unit] for of in exposure.values()) <= bar for unit, bar in EXPOSURE_BARS.items()},
        f"warm_request_to_exec_ms <= {WARM_BAR_MS}": steps["warm_request_to_exec_ms"]["p50"] <= WARM_BAR_MS,
        f"prepared_request_to_exec_ms <= {WARM_BAR_MS}": steps["prepared_request_to_exec_ms"]["p50"] <= WARM_BAR_MS,
        f"sum of pss_mib <= {PSS_BAR_MIB}": rest["sum"]["pss_mib"] <= PSS_BAR_MIB,
        f"cpu_percent <= {CPU_BAR_PERCENT}": rest["sum"]["cpu_percent"] <= CPU_BAR_PERCENT,
    }
    return {
        "benchmark": "service",
        "n_starts": starts,
        "n_steps": count,
        "idle_s": idle_s,
        **exposure,
        "start_to_ready_s": spread(ready_s),
        "start_to_connected_s": spread(connected_s),
        **steps,
        "rest": rest,
        "deb_mb": round(deb.stat().st_size / 1e6, 2),
        "installed_mb": round(int(field(deb, "Installed-Size")) * 1024 / 1e6, 2),
        "met": met,
        "load_average": os.getloadavg()[0],
    }


def exposures(guest: Guest) -> dict[str, float]:
    """Unit → score, as loaded."""
    return {unit: guest.exposure(instance(unit)) for unit in EXPOSURE_BARS}


def exposures_of_files(guest: Guest, deb: Path) -> dict[str, float]:
    """Unit → score of the files in the package, not loaded; AssertionError when others are installed."""
    guest.run(f"mkdir -p {IN_GUEST}/deb && dpkg-deb -x /root/{deb.name} {IN_GUEST}/deb")
    found = {}
    for unit in EXPOSURE_BARS:
        path = guest.show(instance(unit), "FragmentPath")["FragmentPath"]
        guest.run(f"cmp {path} {IN_GUEST}/deb$(realpath {path})")
        analyze = ["systemd-analyze", "security", "--no-pager", "--offline=yes", f"--root={IN_GUEST}/deb", instance(unit)]
        told = guest.run(analyze, check=False)
        match = re.search(r"Overall exposure level for \S+: ([\d.]+)", told.stdout)
        if match is None:
            raise SystemExit(f"service: no score of {unit}: {told.told}")
        found[unit] = float(match[1])
    return found


def instance(unit: str) -> str:
    return f"{unit}0.service" if unit.endswith("@") else f"{unit}.service"


def start_often(hospital: Hospital, count: int) -> tuple[list[float], list[float]]:
    """Seconds to READY and to connected of each start but the first, which makes keys and reads files from the disk."""
    ready_s, connected_s = [], []
    for turn in range(count + 1):
        hospital.guest.run(f"systemctl stop scaleoutd.service; {STOPPED}", timeout_s=120)
        for client in hospital.combiner.board.clients.values():
            client.connected = False  # the same identity comes again
        command = hospital.guest.start(["/usr/bin/python3", "-IBc", START])
        hospital.wait_connected()
        connected = time.monotonic()
        ran = command.wait(120)
        if ran.status:
            raise SystemExit(f"service: {NODE} did not start: {ran.told}{hospital.told()}")
        began, ready = (float(word) for word in ran.stdout.split())
        if turn:
            ready_s.append(ready - began)
            connected_s.append(connected - began)
    return ready_s, connected_s


def spread(values: list[float]) -> dict[str, float]:
    return {"p50": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


def field(deb: Path, name: str) -> str:
    return subprocess.run(["dpkg-deb", "-f", deb, name], check=True, capture_output=True, text=True).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--count", type=int, default=15, help="step instances of each kind")
    parser.add_argument("--idle-s", type=float, default=10.0)
    parser.add_argument("--deb", type=Path, help="this package instead of a new one")
    given = parser.parse_args()
    if reason := missing_for_container() or package.missing():
        result: dict[str, object] = {"benchmark": "service", "not_measured": reason}
    else:
        result = measure(given.deb or package.of_this_tree(), given.starts, given.count, given.idle_s)
    if given.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key:<28} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
