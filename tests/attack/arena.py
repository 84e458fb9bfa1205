# SPDX-License-Identifier: Apache-2.0
"""The place of the attacks: what lies outside the step and could be reached, and how an attempt and its control are run.

Everything outside is made for this purpose and open to everybody, so that only the sandbox can be what stops an attempt.
Controls run in private mount and uts namespaces, against copies.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaleoutd.core.plan import OUTCOMES, STEP_UID_BASE, Bind, Outcome, SandboxPlan
from scaleoutd.step import syscalls
from tests.attack import hosts
from tests.attack.attempts.batch import batch, program
from tests.attack.sysv import SharedSegment
from tests.step_client import PYTHON, StepClient, plan_for

USER = 12345
FIRST_NUMBER = 10_000
SECRET = "the-secret-of-the-arena"


@dataclass(frozen=True)
class Answer:
    outcome: str  # allowed, denied, or killed
    detail: str


class Arena:
    """One launcher in one mode, and its surroundings.  `mode`: root, user, or inner (an ordinary user, no namespaces)."""

    def __init__(self, mode: str, host: hosts.Host = "plain") -> None:
        self.mode = mode
        _leave_low_numbers()
        self.folder = Path(tempfile.mkdtemp(prefix="scaleoutd-attack-"))
        self.folder.chmod(0o755)
        self.root = os.geteuid() == 0
        user = USER if self.root else os.geteuid()
        self.launcher_uid = None if mode == "root" or not self.root else user
        self.step_uid = STEP_UID_BASE if mode == "root" else user
        self._sockets: list[socket.socket] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self.inherited = os.open(self._file("inherited"), os.O_RDONLY)
        os.set_inheritable(self.inherited, True)
        self.scratch = self._own_folder("home/scratch")
        self.scratch.rmdir()
        self.client = StepClient(
            uid=self.launcher_uid,
            extra_fds=(self.inherited,),
            before_exec=hosts.before_exec(host, user=mode != "root", folder=self._folder("dev")),
            prelude=hosts.PRELUDE.get(host, ""),
        )
        self.targets = self._make_targets()
        self._bring_program()

    def close(self) -> None:
        self.client.close()
        for process in self._processes:
            process.kill()
            process.wait()
        for sock in self._sockets:
            sock.close()
        self._segment.close()
        for name in ("neighbour_shm", "neighbour_tmp"):
            os.unlink(self.targets[name])
        os.close(self.inherited)
        shutil.rmtree(self.folder)

    def plan(self, command: list[str], **changes: Any) -> SandboxPlan:
        """Of a step that has the program of the attempts, with what this mode needs."""
        if self.mode == "inner":
            inner = {"backend": "inner", "links": (), "cwd": str(self.scratch)}
            return plan_for(
                self.scratch, command, **{"more_binds": (Bind(self._attack, self._attack, executable=True),), **inner, **changes}
            )
        return plan_for(self.scratch, command, **{"more_binds": (Bind(self._attack, "/attack", executable=True),), **changes})

    def open_outcomes(self, demanded: tuple[Outcome, ...]) -> set[str]:
        """What the start-up probe finds open; its refusal when the policy demands one of those."""
        return {item.name for item in self.client.probe(self.plan(["true"], outcomes=demanded)).outcomes if item.status == "open"}

    def attempt(self, name: str) -> Answer:
        """The attempt as the step."""
        return self.attempt_all([name])[name]

    def attempt_all(self, names: Iterable[str]) -> dict[str, Answer]:
        """All of them in one step, each in a process of its own."""
        seen = self._attack if self.mode == "inner" else "/attack"
        inside = {**self.targets, **self._inside(), "setuid_program": f"{seen}/attempts/setuid"}
        (Path(self._attack) / "given.json").write_text(json.dumps({"names": list(names), "targets": inside}))
        outcomes = () if self.mode == "inner" else OUTCOMES
        bounds = {"wall_clock_s": 300, "cpu_s": 250}
        done = self.client.execute(self.plan(batch(PYTHON, seen, f"{seen}/given.json"), outcomes=outcomes, limits=bounds))
        answers = answers_of(done.output)
        if done.result.ended != "exited" or set(answers) != set(names):
            raise AssertionError(f"{self.mode}: not all were tried: {done}")
        return answers

    def _inside(self) -> dict[str, str]:
        if self.mode == "inner":
            scratch = str(self.scratch)
            return {"scratch": scratch, "usr": "/usr", "etc": "/etc", "root": "", "tmp": scratch, "remount": "/usr"}
        return {"scratch": "/scratch", "usr": "/usr", "etc": "/etc", "root": "", "tmp": "/tmp", "remount": "/usr"}

    @property
    def _attack(self) -> str:
        return str(self.folder / "attack")

    def _bring_program(self) -> None:
        target = self._folder("attack") / "attempts"
        shutil.copytree(Path(__file__).with_name("attempts"), target, ignore=shutil.ignore_patterns("__pycache__"))
        for path in (target, *target.iterdir()):
            path.chmod(0o755)
        shutil.copy("/usr/bin/id", target / "setuid")
        (target / "setuid").chmod(0o4755)

    def control(self, name: str, who: str) -> Answer:
        """The same attempt outside: as root, or as the uid of the step."""
        copy = Path(tempfile.mkdtemp(dir=self.folder, prefix="control-"))
        for part in ("scratch", "usr/bin", "etc", "root", "tmp"):
            (copy / part).mkdir(parents=True)
        for name_of_file in ("usr/bin/env", "etc/passwd"):
            (copy / name_of_file).write_text("")
        if self.root:
            for below in [copy, *copy.rglob("*")]:
                os.chown(below, self.step_uid, self.step_uid)
        parts = ("scratch", "usr", "etc", "root", "tmp")
        outside = {
            **self.targets,
            **{part: str(copy / part) for part in parts},
            "remount": "/",
            "trace_pid": self.targets["victim_pid"],
            "setuid_program": f"{self._attack}/attempts/setuid",
            "handle_path": "/dev/shm",  # tmpfs gives handles; the overlay that a container has as its root does not
        }
        command = program(PYTHON, self._attack, name, json.dumps(outside))
        if self.root:
            change = [] if who == "root" else [f"--reuid={self.step_uid}", f"--regid={self.step_uid}", "--clear-groups"]
            command = ["setpriv", *change, "--", *command]
        master, slave = os.openpty()
        try:
            done = subprocess.run(
                command,
                stdin=slave,
                capture_output=True,
                text=True,
                timeout=120,
                cwd="/",
                start_new_session=True,
                pass_fds=(self.inherited,),
                preexec_fn=self._leave_machine if self.root else None,
            )
        finally:
            os.close(slave)
            os.close(master)
        return answer_of(done.stdout, max(0, -done.returncode), done.returncode, done.stderr)

    def _leave_machine(self) -> None:
        """What a control changes is its own: mounts and the host's name."""
        hosts.show_devices(self.folder / "dev")
        syscalls.unshare(syscalls.CLONE_NEWUTS)

    def _make_targets(self) -> dict[str, Any]:
        project = self._folder("project")
        folder = self._folder("open")
        folder.chmod(0o777)
        names = {name: self._file(name) for name in ("token", "key", "state", "policy", "writable", "neighbour")}
        mine, doomed = self._file("mine"), self._file("open/doomed")
        if self.root:
            os.chown(mine, self.step_uid, self.step_uid)
        (self.folder / "link").symlink_to("/nowhere")
        self._segment = SharedSegment()
        (project / "train.py").write_text(SECRET)
        (project / "train.py").chmod(0o666)
        path_socket = str(self.folder / "room.sock")
        abstract = f"scaleoutd-attack-{secrets.token_hex(8)}-{self.mode}"
        for family, address in (
            (socket.AF_UNIX, path_socket),
            (socket.AF_UNIX, "\0" + abstract),
            (socket.AF_INET, ("127.0.0.1", 0)),
        ):
            sock = socket.socket(family)
            sock.bind(address)
            sock.listen(64)
            self._sockets.append(sock)
        os.chmod(path_socket, 0o777)
        return {
            **names,
            "project": str(project / "train.py"),
            "mine": mine,
            "doomed": doomed,
            "link": str(self.folder / "link"),
            "neighbour_shm": self._file(f"/dev/shm/{self.folder.name}-{self.mode}"),
            "neighbour_tmp": self._file(f"/tmp/{self.folder.name}-{self.mode}"),
            "shm_key": self._segment.key,
            "folder": str(self.folder),
            "folder_writable": str(folder),
            "path_socket": path_socket,
            "abstract_socket": abstract,
            "tcp_port": self._sockets[-1].getsockname()[1],
            "victim_pid": self._start_victim(),
            "launcher_pid": self._launcher_pid(),
            "runner_pid": self._start_runner(),
            "handle_path": "/usr",
            "hostname": socket.gethostname(),
        }

    def _launcher_pid(self) -> int:
        return self.client.process.pid

    def _start_runner(self) -> int:
        """A process of ours that stands for the runner; this one may be number 1 of a pid namespace, as the step's own is."""
        process = subprocess.Popen(["sleep", "600"], start_new_session=True)
        self._processes.append(process)
        return process.pid

    def _start_victim(self) -> int:
        """A process of the step's uid."""

        def become() -> None:
            if self.root:
                os.setgroups([])
                os.setresgid(self.step_uid, self.step_uid, self.step_uid)
                os.setresuid(self.step_uid, self.step_uid, self.step_uid)

        process = subprocess.Popen(["sleep", "600"], preexec_fn=become, start_new_session=True)
        self._processes.append(process)
        return process.pid

    def _folder(self, name: str) -> Path:
        path = self.folder / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _own_folder(self, name: str) -> Path:
        path = self._folder(name)
        if self.launcher_uid is not None:
            for part in (path, path.parent):
                os.chown(part, self.launcher_uid, self.launcher_uid)
        return path

    def _file(self, name: str) -> str:
        path = self.folder / name
        path.write_text(SECRET)
        path.chmod(0o666)
        return str(path)


def _leave_low_numbers() -> None:
    """Where these tests have a pid namespace of their own, their processes must not have numbers that the step's have too."""
    last = Path("/proc/sys/kernel/ns_last_pid")
    if os.geteuid() == 0 and last.exists() and int(last.read_text()) < FIRST_NUMBER:
        last.write_text(str(FIRST_NUMBER))


def answers_of(printed: str) -> dict[str, Answer]:
    """From what batch.py printed."""
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith('["')]
    return {name: answer_of(output, max(0, -status), status) for name, status, output in lines}


def answer_of(output: str, number: int, status: int | None, errors: str = "") -> Answer:
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if lines:
        value = json.loads(lines[-1])
        return Answer(value["outcome"], value["detail"])
    if number:
        return Answer("killed", signal.Signals(number).name)
    return Answer("broken", f"status {status}: {(output + errors)[-300:]}")
