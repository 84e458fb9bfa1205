# SPDX-License-Identifier: Apache-2.0
"""A data scientist at a terminal: a real pty, a home folder of their own, the official client's command line, a combiner."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from scaleoutd.devcombiner.records import TRAIN as TRAIN_TASK
from scaleoutd.devcombiner.records import VALIDATE as VALIDATE_TASK
from scaleoutd.devcombiner.records import Offer
from scaleoutd.devcombiner.server import DevCombiner
from tests.e2e.site import ROOT, SEED, Project
from tests.processes import descendants, read_process

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
TASKS = {"train": TRAIN_TASK, "validate": VALIDATE_TASK}


class Person:
    """`lines` is what the terminal showed, with the time of each line's arrival (Unix, s) in `times`.

    The combiner takes clients without a certificate, as the official command line has none.
    """

    def __init__(
        self, folder: Path, combiner: DevCombiner, *, train_body: str = "", subfolder: str = "", terminal: bool = True
    ) -> None:
        self.home, self.combiner = folder / "home", combiner
        self.folder = folder / "my-project"
        self.project = Project(self.folder / subfolder if subfolder else self.folder)
        self.home.mkdir(parents=True)
        self.project.write(train_body)
        self.has_terminal = terminal  # else a pipe, as in a script or a container
        self.lines: list[str] = []
        self.raw = b""  # as it came, colours and all
        self.times: list[float] = []
        self._arrived = threading.Condition()
        self._pid = 0
        self._terminal = -1
        self._client = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            sys.stderr.write(self.text + "\n")
        if self._pid:
            os.kill(self._pid, signal.SIGTERM)
            self.wait_end()

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def environment(self, **more: str) -> dict[str, str]:
        return {
            "HOME": str(self.home),
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "TERM": "xterm-256color",
            "PYTHONPATH": str(ROOT),
            # The combiner's CA is of no system store; the official client takes it by these two.
            "REQUESTS_CA_BUNDLE": str(self.combiner.ca_file),
            "SCALEOUT_GRPC_ROOT_CERT_PATH": str(self.combiner.ca_file),
            "SCALEOUT_CLIENT_TASK_POLLING_INTERVAL": "0.2",
            **more,
        }

    def type(self, *arguments: str, **environment: str) -> None:
        """`scaleoutd ARGUMENTS` in the project's folder."""
        command = [sys.executable, "-m", "scaleoutd.cli.scaleoutd", *arguments]
        if self.has_terminal:
            self._pid, self._terminal = pty.fork()
            if self._pid == 0:
                try:
                    os.chdir(self.folder)
                    os.execve(command[0], command, self.environment(**environment))
                finally:
                    os._exit(127)
        else:
            self._terminal, writer = os.pipe()
            output = [(os.POSIX_SPAWN_DUP2, writer, number) for number in (1, 2)]
            actions = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0), *output]
            env = ["/usr/bin/env", "-C", str(self.folder), *command]  # it becomes the command
            self._pid = os.posix_spawn(env[0], env, self.environment(**environment), file_actions=actions, setpgroup=0)
            os.close(writer)
        threading.Thread(target=self._read, args=[self._terminal], daemon=True).start()

    def start(self, *more: str, token: str | None = None, **environment: str) -> None:
        """The seed's command line, word for word, and waits until it is connected."""
        token = self.combiner.mint_enrollment() if token is None else token
        given = ["--token", token] if token else []
        self.type("client", "start", "--api-url", self.combiner.api_url, *given, "--local-package", *more, **environment)
        self.wait_connected()

    def wait_connected(self) -> None:
        assert self.combiner.board.wait_until(lambda: bool(self.combiner.board.connected()), 30), self.text
        self.wait_for("connected to combiner")
        self._client = self.combiner.board.connected()[0]

    @property
    def client_id(self) -> str:
        return self._client

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def command_line(self) -> bytes:
        return Path(f"/proc/{self._pid}/cmdline").read_bytes()

    def rooms(self) -> dict[str, int]:
        """Room → pid."""
        found = {}
        for pid in self.processes():
            command = read_process(pid, "cmdline").decode(errors="replace")
            found.update({room: pid for room in ("agent", "runner", "ledger") if f"scaleoutd.{room}.__main__" in command})
        return found

    def steps(self) -> list[int]:
        """Pids of what runs for a task below this node, and of nobody else on the machine."""
        return [pid for pid in self.processes() if b"SCALEOUTD_RUN=" in read_process(pid, "environ")]

    def processes(self) -> list[int]:
        """Pids of everything below this node."""
        return list(descendants(self._pid))

    def press_ctrl_c(self) -> None:
        """The byte that the key sends; the terminal's line discipline makes SIGINT of it."""
        os.write(self._terminal, b"\x03")

    def wait_end(self, timeout_s: float = 60) -> int:
        """Exit status."""
        deadline = time.monotonic() + timeout_s
        fd = os.pidfd_open(self._pid)
        try:
            if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                os.kill(self._pid, signal.SIGKILL)
                raise AssertionError(f"it did not end within {timeout_s} s:\n{self.text}")
        finally:
            os.close(fd)
            status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
            self._pid = 0
        return status

    def _read(self, terminal: int) -> None:
        rest = b""
        while True:
            try:
                data = os.read(terminal, 65536)
            except OSError:  # EIO: nobody has the other end any more
                data = b""
            at = time.time()
            *lines, rest = (rest + data).split(b"\n")
            with self._arrived:
                self.raw += data
                for line in lines:
                    self.lines.append(_COLOUR.sub("", line.decode(errors="replace")).rstrip("\r"))
                    self.times.append(at)
                self._arrived.notify_all()
            if not data:
                os.close(terminal)
                return

    def wait_for(self, wanted: str, timeout_s: float = 90, after: int = 0) -> int:
        """Index of the first line from `after` on that holds `wanted`."""
        deadline = time.monotonic() + timeout_s
        with self._arrived:
            while True:
                for index in range(after, len(self.lines)):
                    if wanted in self.lines[index]:
                        return index
                left = deadline - time.monotonic()
                assert left > 0, f"{wanted!r} did not come; the terminal shows:\n{self.text}"
                self._arrived.wait(min(left, 0.5))

    def offer(self, task: str = "train", **more: Any) -> str:
        return self.combiner.offer_task(self._client, TASKS[task], self.combiner.put_model(SEED), **more)

    def task(self, task: str = "train", **more: Any) -> Offer:
        correlation_id = self.offer(task, **more)
        offer = self.combiner.board.offers[correlation_id]
        assert self.combiner.board.wait_until(lambda: offer.done, 90), self.text
        return offer

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.project.folder / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
