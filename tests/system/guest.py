# SPDX-License-Identifier: Apache-2.0
"""A booted system that tests ask things of: what a container and a machine have in common.

Everything travels as frames (inside.py) to the one program of ours in the guest, which runs it as root there.  A guest that is
gone is an error of every call in progress, never a wait.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from tests.system.folder import GuestFolder
from tests.system.image import run_inside
from tests.system.inside import CHUNK_BYTES, EXIT, HELLO, RUN, Frames, frame
from tests.system.process import GuestGone, Process, Ran

LOOK_S = 5.0


class Guest:
    """A booted guest.  Paths are paths in the guest unless said."""

    umask = 0o022  # of every command
    patience = 3.0  # how much longer everything may take than on a quiet machine: a limit costs nothing until it is needed

    def __init__(self, suite: str) -> None:
        self.suite = suite
        self._own = GuestFolder()
        self.folder = self._own.path  # of the host
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.folder / "line"))
        self._listener.listen(1)
        self._line: socket.socket | None = None
        self._sending = threading.Lock()
        self._changed = threading.Condition()
        self._ready = 0  # how often the guest has said hello: one more after each reboot
        self._processes: dict[int, Process] = {}
        self._frames = Frames()
        self._last_number = 0
        self.ended = False
        threading.Thread(target=self._listen, daemon=True, name=self.folder.name).start()

    # The line

    def _listen(self) -> None:
        while not self.ended:
            try:
                line, _ = self._listener.accept()
            except OSError:
                return
            self._line = line
            self._read(line)
            self.forget()

    def _read(self, line: socket.socket) -> None:
        self._frames = Frames()
        while True:
            try:
                data = line.recv(CHUNK_BYTES * 4)
            except OSError:
                return
            if not data:
                return
            for kind, number, body in self._frames.feed(data):
                if kind == HELLO:
                    self.forget()
                    with self._changed:
                        self._ready += 1
                        self._changed.notify_all()
                elif process := self._processes.get(number):
                    if kind == EXIT:
                        del self._processes[number]
                    process.happened(kind, body)

    def forget(self) -> None:
        """Ends the wait for what was running: the guest knows nothing of it any more."""
        for number in list(self._processes):
            self._processes.pop(number).lost()

    def lose(self) -> None:
        """The guest is over: whoever waits for it is told."""
        with self._changed:
            self.ended = True
            self._changed.notify_all()
        self.forget()

    def send(self, kind: bytes, number: int, body: bytes = b"") -> None:
        line = self._line
        try:
            with self._sending:
                assert line is not None
                line.sendall(frame(kind, number, body))
        except OSError as error:
            raise GuestGone(f"the guest is gone: {error}\n{self.console()[-2000:]}") from error

    def wait_ready(self, boots: int = 1, timeout_s: float = 60) -> None:
        """Waits until the guest has booted for the n-th time and every start job is over."""
        deadline_s = time.monotonic() + self.patience * timeout_s
        with self._changed:
            while not self._changed.wait_for(lambda: self._ready >= boots or self.ended, LOOK_S):
                if self._started_over():
                    deadline_s = time.monotonic() + self.patience * timeout_s
                elif time.monotonic() > deadline_s:
                    break
            if self._ready < boots:
                raise GuestGone(f"the guest did not boot:\n{self.console()[-4000:]}")
        state = self.run("systemctl is-system-running --wait", check=False)
        assert state.text in ("running", "degraded"), f"{state.told}{self.run('systemctl list-jobs').told}"

    def _started_over(self) -> bool:
        """Whether a boot that will never end was begun again; asked every LOOK_S while it is waited for."""
        return False

    # What tests ask

    def start(
        self,
        command: str | Sequence[str],
        *,
        cwd: str = "/root",
        user: str = "",
        env: Mapping[str, str] | None = None,
        stdin: bytes | None = b"",
        sink: Callable[[bytes], None] | None = None,
    ) -> Process:
        """Starts a command: a string for bash, or a program and its arguments.  With stdin None its input stays open; a sink
        takes its output as it comes."""
        argv = ["/bin/bash", "-c", command] if isinstance(command, str) else list(command)
        shown = command if isinstance(command, str) else shlex.join(command)
        asked = {"argv": argv, "cwd": cwd, "user": user, "env": dict(env or {}), "umask": self.umask}
        with self._changed:
            self._last_number += 1
            number = self._last_number
        process = self._processes[number] = Process(self, number, shown, sink)
        self.send(RUN, number, json.dumps(asked).encode())
        if stdin is not None:
            process.send(stdin)
            process.end_input()
        return process

    def run(
        self,
        command: str | Sequence[str],
        *,
        check: bool = True,
        timeout_s: float = 60,
        cwd: str = "/root",
        user: str = "",
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
    ) -> Ran:
        """Runs a command to its end; a status other than 0 is an AssertionError with what it printed, unless check is False."""
        ran = self.start(command, cwd=cwd, user=user, env=env, stdin=stdin).wait(timeout_s)
        assert not check or ran.status == 0, f"status {ran.status} of {command}\n{ran.told[-8000:]}"
        return ran

    def script(self, text: str, *arguments: str, check: bool = True, timeout_s: float = 60, user: str = "") -> Ran:
        """Runs a whole script given as text, by its #! line or by bash -eu."""
        interpreter = text.split("\n", 1)[0][2:].split() if text.startswith("#!") else ["/bin/bash", "-eu"]
        path = f"/run/script-{self._last_number}"
        self.write(path, text, mode=0o755)
        return self.run([*interpreter, path, *arguments], check=check, timeout_s=timeout_s, user=user)

    def python(self, text: str, *arguments: str, check: bool = True, timeout_s: float = 60, user: str = "") -> Ran:
        """Runs Python text by the guest's own interpreter."""
        return self.run(["/usr/bin/python3", "-IBc", text, *arguments], check=check, timeout_s=timeout_s, user=user)

    def start_own(
        self, module: str, *arguments: str, stdin: bytes | None = b"", sink: Callable[[bytes], None] | None = None
    ) -> Process:
        """Starts one of our own programs that are in every guest (image.INSIDE)."""
        return self.start(["/usr/bin/python3", "-IBc", run_inside(module), *arguments], stdin=stdin, sink=sink)

    # Files

    def write(self, path: str, content: str | bytes, mode: int = 0o644, owner: str = "root:root") -> None:
        """Writes a file and its parent folders."""
        data = content.encode() if isinstance(content, str) else content
        told = 'mkdir -p "$(dirname "$1")" && cat >"$1" && chown "$2" "$1" && chmod "$3" "$1"'
        self.run(["/bin/sh", "-c", told, "sh", path, owner, f"{mode:o}"], stdin=data, timeout_s=300)

    def read(self, path: str) -> str:
        return self.read_bytes(path).decode()

    def read_bytes(self, path: str) -> bytes:
        process = self.start(["cat", path])
        ran = process.wait(300)
        assert ran.status == 0, ran.stderr
        return process.output()

    def push(self, source: Path, to: str) -> None:
        """Copies a file or folder of the host to the path `to`, owned by root, modes kept."""

        def roots(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
            member.uid = member.gid = 0
            member.uname = member.gname = "root"
            return None if "__pycache__" in member.name else member

        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
            archive.add(source, arcname=Path(to).name, filter=roots)
        parent = str(Path(to).parent)
        self.run(["/bin/sh", "-c", 'mkdir -p "$1" && tar -xpf - -C "$1"', "sh", parent], stdin=packed.getvalue(), timeout_s=300)

    def pull(self, path: str, to: Path) -> Path:
        """Copies a file or folder into the new folder `to` of the host, under its own name."""
        process = self.start(["tar", "-cf", "-", "-C", str(Path(path).parent), Path(path).name])
        ran = process.wait(300)
        assert ran.status == 0, ran.stderr
        to.mkdir()
        unpack = ["tar", "-xf", "-", "-C", str(to), "--no-same-owner"]
        subprocess.run(unpack, input=process.output(), check=True)
        return to / Path(path).name

    # Units

    def journal(self, unit: str = "", *, since_boot: bool = True) -> str:
        """The lines of a unit (glob allowed) or of everything, with the time since boot."""
        chosen = ["-u", unit] if unit else []
        return self.run(
            ["journalctl", "--no-pager", "-o", "short-monotonic", *(["-b"] if since_boot else []), *chosen], check=False
        ).stdout

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Properties of a unit as systemctl prints them."""
        told = self.run(["systemctl", "show", unit, *(f"-p{name}" for name in properties)]).stdout
        return dict(line.split("=", 1) for line in told.splitlines() if "=" in line)

    def main_pid(self, unit: str) -> int:
        return int(self.show(unit, "MainPID")["MainPID"])

    def exposure(self, unit: str, *options: str) -> float:
        """The score of systemd-analyze security."""
        told = self.run(["systemd-analyze", "security", "--no-pager", *options, unit], check=False).stdout
        match = re.search(r"Overall exposure level for \S+: ([\d.]+)", told)
        assert match, told
        return float(match.group(1))

    def wait_unit(self, unit: str, states: str = "active", *, timeout_s: float = 60) -> dict[str, str]:
        """Waits until ActiveState or SubState of the unit is one of the states ("active failed")."""
        return self.wait_units(unit, f"ActiveState|SubState={'|'.join(states.split())}", timeout_s=timeout_s)

    def wait_units(self, unit: str, condition: str, *, timeout_s: float = 60) -> dict[str, str]:
        """Waits for `PROPERTY|PROPERTY=REGEX|REGEX` of a unit, asked again each time PID 1 says that something changed."""
        names, values = condition.split("=", 1)
        ran = self.start_own("unit_wait", unit, names, values, str(self.patience * timeout_s)).wait(timeout_s + 10)
        assert ran.status == 0, f"{unit} has not come to {condition}:\n{ran.told}\n{self.journal(unit)[-4000:]}"
        return dict(line.split("=", 1) for line in ran.stdout.splitlines() if "=" in line)

    def wait_journal(self, unit: str, pattern: str, *, timeout_s: float = 60, after: str = "") -> re.Match[str]:
        """Waits until a unit's journal of this boot has a line that matches; `after` is a cursor from `journal_cursor`."""
        start = [f"--after-cursor={after}"] if after else ["-b"]
        process = self.start(["journalctl", "-f", "-n", "all", "-o", "cat", "-u", unit, *start])
        try:
            return process.wait_for(pattern, timeout_s)
        finally:
            process.kill()

    def journal_cursor(self) -> str:
        """Where the journal is now."""
        return self.run(["journalctl", "-n", "0", "--show-cursor", "-q"]).stdout.split("-- cursor: ")[1].strip()

    # Its life

    def boot(self, *argv: str) -> None:
        """Starts the program that is the guest, which dies with this process, and waits until the guest is up."""
        with open(self.folder / "host", "wb") as told:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", *argv],
                stdin=subprocess.DEVNULL,
                stdout=told,
                stderr=subprocess.STDOUT,
                env={**os.environ, "TMPDIR": str(self.folder)},  # where QEMU's snapshot lies
            )
        threading.Thread(target=self._watch, daemon=True, name=f"{self.folder.name} end").start()
        try:
            self.wait_ready()
        except BaseException:
            self.close()
            raise

    def _watch(self) -> None:
        self._process.wait()
        self.lose()

    def pid(self) -> int:
        """The process of the host that is the guest's outermost."""
        return self._process.pid

    def console(self) -> str:
        """What the guest printed on its console, and what started it on its streams."""
        paths = [self.folder / name for name in ("host", "console")]
        return "".join(path.read_text(errors="replace") for path in paths if path.exists())

    def reboot(self) -> None:
        """Reboots in order and waits until it is up again."""
        boots = self._ready
        self.start("systemctl reboot")
        self.wait_ready(boots + 1)

    def close(self) -> None:
        """Ends the guest and removes what it was."""
        self.ended = True
        self._listener.close()
        if self._line:
            self._line.close()
        self._process.kill()
        self._process.wait()
        self._own.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
