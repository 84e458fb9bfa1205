# SPDX-License-Identifier: Apache-2.0
"""A node whose step unit is attacked from inside, on the host as it is or on another that its unit is made to stand on.

    plain          the shipped unit on this kernel
    landlock-off, abi-2, no-userns
                   a drop-in starts the launcher by unit_host.py, behind the filter of tests/attack/hosts.py

unit_arena.py makes the attempts.  tests/system/test_units_attacks*.py and `make attack-report` say what may come of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.attack.attempts import ATTEMPTS
from tests.attack.attempts.registry import OWN_CODE
from tests.attack.hosts import Host
from tests.system.hospital import Hospital
from tests.system.image import TREE

PLACE = "/usr/local/lib/attack"  # in the view of the unit
DROP_IN = "/run/systemd/system/scaleoutd-step@.service.d/90-host.conf"
PROGRAMS = ("__init__.py", "child.py", "step_client.py", "attack/__init__.py", "attack/arena.py", "attack/hosts.py",
            "attack/sysv.py", "system/__init__.py", "system/unit_arena.py", "system/unit_host.py")  # fmt: skip
WRAPPED = """\
[Service]
ExecStart=
ExecStart=/usr/bin/python3 -ISBc 'import sys; sys.path[:0] = ["/usr/lib/scaleoutd", "{place}"]; {run}' {host} --service
"""
RUN = "from tests.system.unit_host import main; main()"
# root of a container may not do these either; tests/attack has their controls outside of one.
NO_CONTROL_IN_A_CONTAINER = {
    "open-by-handle", "dmesg", "write-sysctl", "device-kmsg", "realtime", "swapon", "settimeofday", "acct", "quotactl",
    "fanotify", "modify-ldt", "pidfd-getfd-victim", "clock-settime", "clock-adjtime", "swapoff", "write-sysfs",
    "write-core-pattern", "read-modules",
}  # fmt: skip


class AttackedNode:
    """A started node of a hospital, and the attacker's programs in its guest."""

    def __init__(self, hospital: Hospital) -> None:
        self._hospital = hospital
        package = [f"attack/attempts/{path.name}" for path in Path(TREE, "tests/attack/attempts").glob("*.py")]
        for name in (*PROGRAMS, *package):
            hospital.guest.write(f"{PLACE}/tests/{name}", Path(TREE, "tests", name).read_bytes())

    def stand_on(self, host: Host) -> dict[str, Any]:
        """All instances from now on; what the runner says of its start, in which every outcome is proven again."""
        guest, before = self._hospital.guest, len(self._hospital.trail("runner-started"))
        guest.run(["rm", "-f", DROP_IN])
        if host != "plain":
            guest.write(DROP_IN, WRAPPED.format(place=PLACE, run=RUN, host=host))
        guest.run("systemctl daemon-reload && systemctl restart scaleoutd-runner.service", check=False, timeout_s=90)
        started = self._hospital.trail("runner-started")
        assert len(started) == before + 1, f"the start was refused:\n{self._hospital.told()}"
        return started[-1]

    def attempt_all(self, *, controls: bool = True) -> dict[str, Any]:
        """What the attacker's program saw: unit_arena.py."""
        guest = self._hospital.guest
        runner = str(guest.main_pid("scaleoutd-runner.service"))
        environment = {"PYTHONPATH": f"/usr/lib/scaleoutd:{PLACE}", "PYTHONDONTWRITEBYTECODE": "1"}
        command = ["/usr/bin/python3", "-m", "tests.system.unit_arena", runner, *(["controls"] if controls else [])]
        ran = guest.run(command, env=environment, timeout_s=600)
        line = next(line for line in ran.stdout.splitlines() if line.startswith("TOLD "))
        return dict(json.loads(line.removeprefix("TOLD ")))


def through(told: dict[str, Any], kind: str) -> set[str]:
    """Attempts that succeeded, without those that are the step's own code's."""
    answers = told["inside"][kind].items()
    return {name for name, (how, _) in answers if how not in ("denied", "killed") and ATTEMPTS[name].outcome != OWN_CODE}
