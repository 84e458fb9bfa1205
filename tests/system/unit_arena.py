# SPDX-License-Identifier: Apache-2.0
"""The attempts of tests/attack inside the shipped step unit: a program that runs in a guest, as root, and prints JSON.

It plays the runner (its uid, its socket), so the instance, its view and its confinement are systemd's and the launcher's own.
Of the kinds of target that lie outside it tries two:

    machine   files, sockets and processes as in tests/attack; most of the files are not in the unit's view at all
    slot      the same files in another slot's scratch folder, which is in the view: modes and Landlock are all that is there

Arguments: the runner's pid, and the word `controls` where the same is to be tried outside too.
Output: {"inside": {kind: {attempt: [outcome, detail]}}, "control": …the same outside…, "ended": how each instance ended}
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from scaleoutd.core.plan import STEP_UID_BASE, Bind
from scaleoutd.ipc.named import NamedClientDoor
from tests.attack import arena, attempts
from tests.attack.attempts.batch import batch
from tests.step_client import PYTHON, StepClient, plan_for

SLOT, OTHER = 5, 6  # no task of the node is under way; the runner gives its own the lowest
SCRATCH = "/var/lib/scaleoutd/scratch"
STORE = Path("/var/lib/scaleoutd/runner/store/attack")  # /store/attack in the unit
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64")  # mounts of their own in the unit's view
# The same act on a file, socket or folder of another slot.
IN_ANOTHER_SLOT = (
    "read-token", "read-key", "read-state", "read-policy", "read-project", "read-list-outside", "write-project",
    "write-outside", "chmod-outside", "utime-outside", "rename-out-of-scratch", "connect-unix-path",
)  # fmt: skip


class UnitClient(StepClient):
    """Speaks to an instance of scaleoutd-step@.service as the runner's user does."""

    def __init__(self) -> None:
        before = set(launchers())
        runner = pwd.getpwnam("scaleoutd-runner")
        os.setegid(runner.pw_gid)
        os.seteuid(runner.pw_uid)
        try:
            self.channel = NamedClientDoor().connect("step")
        finally:
            os.seteuid(0)
            os.setegid(0)
        self.hello = self.channel.greet("runner")
        (self.launcher,) = set(launchers()) - before

    def close(self) -> int:
        self.channel.close()
        return 0


class UnitArena(arena.Arena):
    """What lies outside, below `folder`; `owner` is the uid whose process and file an attempt goes for."""

    def __init__(self, kind: str, folder: Path, victim_uid: int, client: UnitClient, runner_pid: int) -> None:
        self.mode, self.folder, self.root = kind, folder, True
        self._launcher = client.launcher
        self.client = client
        self.step_uid = STEP_UID_BASE + SLOT
        self._victim_uid, self._runner_pid = victim_uid, runner_pid
        self._sockets, self._processes = [], []
        folder.mkdir()
        folder.chmod(0o755)
        self.inherited = os.open("/dev/null", os.O_RDONLY)
        self.targets = self._make_targets()
        self._bring_program()

    def start_own_victim(self) -> None:
        """A process of the slot's own uid, which no instance but the slot's has: for the control alone."""
        self._victim_uid = self.step_uid
        self.targets["victim_pid"] = self._start_victim()

    def _launcher_pid(self) -> int:
        return self._launcher

    def _start_victim(self) -> int:
        process = subprocess.Popen(
            ["sleep", "600"], user=self._victim_uid, group=self._victim_uid, extra_groups=[], start_new_session=True
        )
        self._processes.append(process)
        return process.pid

    def _start_runner(self) -> int:
        return self._runner_pid  # the real one


def launchers() -> list[int]:
    """The main processes of the instances; their children are warm forks."""
    told = subprocess.run(["pgrep", "-u", "scaleoutd-launch", "-P", "1"], stdout=subprocess.PIPE)  # 1: there is none
    return [int(pid) for pid in told.stdout.split()]


def run_inside(client: UnitClient, names: list[str], targets: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """All attempts in one step, each in a process of its own."""
    scratch = f"/scratch/{SLOT}"
    inside = {
        **targets,
        "setuid_program": "/store/attack/attempts/setuid",
        "scratch": scratch,
        "usr": "/usr",
        "etc": "/etc",
        "root": "",
        "tmp": "/tmp",
        "remount": "/usr",
    }
    (STORE / "given.json").write_text(json.dumps({"names": names, "targets": inside}))
    plan = plan_for(
        Path(scratch),
        batch(PYTHON, "/store/attack", "/store/attack/given.json"),
        backend="systemd",
        slot=SLOT,
        cwd="/store/attack",
        binds=tuple(Bind(path, path, executable=True) for path in (*SYSTEM, "/store/attack")),
        links=(),
        limits={"wall_clock_s": 300, "cpu_s": 250},
    )
    with tempfile.TemporaryFile() as log:
        client.start(plan, log.fileno())
        result = client.finish()
        log.seek(0)
        printed = log.read().decode()
    answers = {name: [answer.outcome, answer.detail] for name, answer in arena.answers_of(printed).items()}
    return answers, f"{result.ended} {result.exit_status} {'' if len(answers) == len(names) else printed[-2000:]}".strip()


def main() -> None:
    runner_pid = int(sys.argv[1])
    STORE.mkdir()
    shutil.copytree(Path(attempts.__file__).parent, STORE / "attempts", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy("/usr/bin/id", STORE / "attempts/setuid")
    for path in (STORE, *STORE.rglob("*")):
        path.chmod(0o755)
    (STORE / "attempts/setuid").chmod(0o4755)
    other_uid = STEP_UID_BASE + OTHER
    told: dict[str, Any] = {"inside": {}, "ended": {}}
    places = {"machine": Path("/srv/arena"), "slot": Path(SCRATCH, str(OTHER), "arena")}
    arenas = {}
    for kind, folder in places.items():
        client = UnitClient()
        place = arenas[kind] = UnitArena(kind, folder, other_uid, client, runner_pid)
        targets = {
            name: value.replace(SCRATCH, "/scratch", 1) if isinstance(value, str) else value
            for name, value in place.targets.items()
        }
        names = list(attempts.ATTEMPTS) if kind == "machine" else list(IN_ANOTHER_SLOT)
        told["inside"][kind], told["ended"][kind] = run_inside(client, names, targets)
    if "controls" in sys.argv[2:]:
        told["control"] = controls_of(arenas)
    for place in arenas.values():
        place.close()
    shutil.rmtree(STORE)
    print("TOLD " + json.dumps(told))


def controls_of(arenas: dict[str, UnitArena]) -> dict[str, Any]:
    told: dict[str, Any] = {"machine": {}, "slot": {}}
    machine = arenas["machine"]
    machine.start_own_victim()
    for name, attempt in attempts.ATTEMPTS.items():
        answer = machine.control(name, attempt.control)
        told["machine"][name] = [answer.outcome, answer.detail]
    for name in IN_ANOTHER_SLOT:
        answer = arenas["slot"].control(name, "root")
        told["slot"][name] = [answer.outcome, answer.detail]
    return told


if __name__ == "__main__":
    main()
