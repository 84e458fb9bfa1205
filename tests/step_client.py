# SPDX-License-Identifier: Apache-2.0
"""A synchronous client of a step instance for tests: starts a launcher as the supervisor does and speaks to it."""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scaleoutd.cli.launchers import Launchers
from scaleoutd.core.plan import Bind, GateFacts, GateRules, Limits, Link, ModelFacts, ModelRules, SandboxPlan, StepResult
from scaleoutd.ipc.channel import Channel, Refused
from scaleoutd.ipc.packets import Connection
from scaleoutd.ipc.step import CancelStep, Ended, Execute, Gate, Gated, Inspect, Inspected, Probe, Probed, Started
from scaleoutd.step.start import CONNECTION_FD, launcher_command

MIB = 1 << 20
PYTHON = "/usr/bin/python3"
PROJECT = Path(__file__).resolve().parents[1]

LIMITS = Limits(
    wall_clock_s=150,
    cpu_s=20,
    memory_bytes=512 * MIB,
    processes=64,
    open_files=256,
    file_size_bytes=64 * MIB,
    scratch_bytes=128 * MIB,
    output_bytes=32 * MIB,
    stdout_bytes=MIB,
    tmp_bytes=16 * MIB,
    shm_bytes=16 * MIB,
)


def system_binds() -> tuple[tuple[Bind, ...], tuple[Link, ...]]:
    """/usr with the links of a merged /usr, and the loader's cache."""
    binds = [Bind("/usr", "/usr", executable=True)]
    if Path("/etc/ld.so.cache").exists():
        binds.append(Bind("/etc/ld.so.cache", "/etc/ld.so.cache"))
    links = []
    for name in ("bin", "sbin", "lib", "lib64"):
        path = Path("/") / name
        if path.is_symlink():
            links.append(Link(f"/{name}", str(path.readlink())))
        elif path.exists():
            binds.append(Bind(str(path), str(path), executable=True))
    return tuple(binds), tuple(links)


def forked(launchers: Launchers) -> Channel:
    """The runner's end of a launcher of the foreground that has said hello."""
    ours, theirs = Connection.pair()
    launchers.launch(theirs)
    theirs.close()
    channel = Channel(ours, "step")
    channel.greet("runner")
    return channel


def plan_for(scratch: Path, command: Sequence[str], **changes: Any) -> SandboxPlan:
    """A plan with the machine's /usr and small limits; `limits` may be a dict of changes."""
    binds, links = system_binds()
    limits = dataclasses.replace(LIMITS, **changes.pop("limits", {}))
    values: dict[str, Any] = {
        "run": "test-run",
        "backend": "namespaces",
        "slot": 0,
        "command": tuple(command),
        "cwd": "/scratch",
        "environment": {"PATH": "/usr/bin:/bin", "HOME": "/scratch", "PYTHONDONTWRITEBYTECODE": "1", "LANG": "C.UTF-8"},
        "binds": binds + tuple(changes.pop("more_binds", ())),
        "scratch": str(scratch),
        "limits": limits,
        "links": links,
    }
    return SandboxPlan(**{**values, **changes})


@dataclasses.dataclass
class Finished:
    """An execution's result with what it printed."""

    result: StepResult
    output: str


class StepClient:
    """One launcher and its connection.

    `uid`: start it as that user, from a copy of the package that it can read.  `prelude`: Python to run in the launcher
    before its main, to imitate another kernel.  `before_exec`: called in the child before it changes its uid.  `unit`: as in a
    unit of systemd, though around it there is none.
    """

    def __init__(
        self,
        uid: int | None = None,
        python: str = PYTHON,
        extra_fds: Sequence[int] = (),
        prelude: str = "",
        before_exec: Callable[[], None] = lambda: None,
        unit: bool = False,
    ) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [*launcher_command(python), *(["--service"] if unit else [])]
        if uid is not None:
            command = [part.replace(repr(str(PROJECT)), repr(str(readable_copy()))) for part in command]

        command = [part.replace("; main()", f"; {prelude}; main()") if prelude else part for part in command]

        def prepare() -> None:
            os.dup2(theirs.fileno(), CONNECTION_FD)
            before_exec()
            if uid is not None:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)

        self.process = subprocess.Popen(
            command,
            cwd="/",
            env={},
            stdin=subprocess.DEVNULL,
            stdout=None,
            stderr=None,
            pass_fds=(CONNECTION_FD, theirs.fileno(), *extra_fds),
            preexec_fn=prepare,
        )
        theirs.close()
        self.channel = Channel(Connection(ours), "step")
        self.hello = self.channel.greet("runner", timeout_s=60)

    def __enter__(self) -> StepClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> int:
        """Ends the connection and waits for the launcher's end."""
        self.channel.close()
        return self.process.wait(120)

    def start(self, plan: SandboxPlan, log_fd: int, terminal_fd: int | None = None) -> int:
        """Begins an execution; the pid of the run's pid 1."""
        descriptors = [log_fd] if terminal_fd is None else [log_fd, terminal_fd]
        self.channel.tell(Execute(plan, terminal=terminal_fd is not None), descriptors)
        return self.channel.expect(Started, timeout_s=120).pid

    def finish(self, timeout_s: float = 120) -> StepResult:
        return self.channel.expect(Ended, timeout_s=timeout_s).result

    def cancel(self) -> None:
        self.channel.tell(CancelStep())

    def execute(self, plan: SandboxPlan, terminal_fd: int | None = None) -> Finished:
        with tempfile.TemporaryFile() as log:
            self.start(plan, log.fileno(), terminal_fd)
            result = self.finish()
            log.seek(0)
            return Finished(result, log.read().decode("utf-8", "replace"))

    def inspect(self, plan: SandboxPlan, rules: ModelRules, model_fd: int) -> ModelFacts:
        return self.channel.ask(Inspect(plan, rules), Inspected, descriptors=[model_fd], timeout_s=300).facts

    def gate(self, plan: SandboxPlan, rules: GateRules, model_fd: int | None = None) -> tuple[GateFacts, int | None]:
        self.channel.tell(Gate(plan, rules), [] if model_fd is None else [model_fd])
        received = self.channel.receive(Gated, timeout_s=300)
        fd = received.take() if received.descriptors else None
        received.close()
        return received.message.facts, fd

    def probe(self, plan: SandboxPlan) -> Probed:
        return self.channel.ask(Probe(plan), Probed, timeout_s=120)

    def refused(self, timeout_s: float = 120) -> Refused:
        return self.channel.expect(Refused, timeout_s=timeout_s)


_copies: list[tempfile.TemporaryDirectory[str]] = []


def readable_copy() -> Path:
    """A copy of the package in a folder that every user can read (the checkout may lie below a closed home)."""
    if not _copies:
        folder = tempfile.TemporaryDirectory(prefix="scaleoutd-copy-")
        Path(folder.name).chmod(0o755)
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PROJECT / "scaleoutd", Path(folder.name) / "scaleoutd", ignore=ignore)
        _copies.append(folder)
    return Path(_copies[0].name)
