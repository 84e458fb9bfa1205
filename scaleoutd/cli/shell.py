# SPDX-License-Identifier: Apache-2.0
"""`scaleoutctl run … --shell`: a shell exactly where the step would run, for a person who wants to know why it fails.

Proven, authorized, copied and planned as a run is; then the plan's command is /bin/sh.  There is no runner, no gate and no
outbox here, so nothing that is made inside can leave.  That it was opened and how it ended is on record.

In a terminal the shell gets a pseudo terminal of its own, relayed byte by byte: the person's own terminal never enters the
sandbox, and the filter denies TIOCSTI and TIOCLINUX.  What programs inside print is not escaped: it is the person's own project.
From a pipe, the shell reads its lines from a socket.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import secrets
import selectors
import shutil
import signal
import socket
import sys
import tempfile
import termios
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

from scaleoutd.cli.foreground import Folders
from scaleoutd.cli.instance import own_instance
from scaleoutd.cli.terminal import say
from scaleoutd.cli.workplace import LedgerDoor, ledger_room, operator, prepare
from scaleoutd.core.grant import Grant, RunsSoFar, authorize
from scaleoutd.core.plan import SandboxPlan, StepResult, Task
from scaleoutd.core.policy import Policy
from scaleoutd.durable import storage_errors, write_all
from scaleoutd.ipc.channel import Channel
from scaleoutd.ipc.ledger_client import LedgerClient
from scaleoutd.ipc.messages import TaskOffer
from scaleoutd.ipc.step import Ended, Execute, Started
from scaleoutd.runner.environments import check_data_set, resolve_environment
from scaleoutd.runner.planner import inputs_of, make_plan

BLOCK_BYTES = 64 * 1024


def open_shell(folders: Folders, policy: Policy, task: Task, model: Path, settings: str) -> int:
    """Opens it, waits for its end; the shell's exit status, or 128 and the signal's number."""
    folders.make(policy)
    rooms = ledger_room(folders)
    try:
        rooms.start()
        ledger = LedgerClient(LedgerDoor(rooms), "cli")
        with _model_folder(folders, model, settings) as folder:
            plan = _plan(folders, policy, ledger, task, settings, folder)
            told = {"command": "shell", "arguments": [task, policy.project.path], "operator": operator()}
            ledger.record("operator-command", **told)  # before anything runs
            say("a shell in the sandbox of the step; $SCALEOUTD_COMMAND is what would run; nothing that you make here leaves")
            result = _run(plan)
            status = result.exit_status if result.exit_status is not None else 128 + (result.signal or 0)
            ledger.record("operator-command", **told, exit_status=status, note=f"{result.ended}, {result.wall_ms} ms")
            if result.denied:
                say("refused by the sandbox: " + ", ".join(f"{name} × {count}" for name, count in sorted(result.denied.items())))
            if result.code:
                say(f"ended by a limit [{result.code}]")
            return status
    finally:
        rooms.stop()


@contextlib.contextmanager
def _model_folder(folders: Folders, model: Path, settings: str) -> Iterator[Path]:
    folder = folders.runner / "in" / f"shell-{secrets.token_hex(12)}"
    with storage_errors(f"copy the model {model}"):
        folder.parent.mkdir(mode=0o711, exist_ok=True)
        folder.mkdir(mode=0o755)
    try:
        with storage_errors(f"copy the model {model}"):
            shutil.copyfile(model, folder / "model.npz")
            (folder / "model.npz-metadata").write_text(settings or "{}", encoding="utf-8")
            for path in (folder, *folder.iterdir()):
                path.chmod(0o755 if path.is_dir() else 0o444)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _plan(folders: Folders, policy: Policy, ledger: LedgerClient, task: Task, settings: str, folder: Path) -> SandboxPlan:
    """Stages 1 to 6 as the runner does them, with the shell in place of the step's command."""
    at = prepare(folders, policy, ledger)
    offer = TaskOffer("shell", task, "model", "local", "local", "local", settings)
    grant = authorize(policy, at.proven.manifest, offer, at.now, RunsSoFar())
    for name, rule in grant.data_sets.items():
        check_data_set(name, rule)
    environment = resolve_environment(grant.environment)
    return _with_shell(make_plan(inputs_of(grant, environment, at.place("shell", grant.backend, folder))), grant)


def _with_shell(plan: SandboxPlan, grant: Grant) -> SandboxPlan:
    more = {"SCALEOUTD_COMMAND": " ".join(plan.command), "PS1": f"({grant.project}) $ ", "TERM": os.environ.get("TERM", "dumb")}
    command = ("/bin/sh", "-i") if sys.stdin.isatty() else ("/bin/sh",)
    return dataclasses.replace(plan, command=command, environment={**plan.environment, **more})


def _run(plan: SandboxPlan) -> StepResult:
    with own_instance() as instance, tempfile.TemporaryFile() as log:
        if sys.stdin.isatty():
            ours, theirs = os.openpty()
            copy_size: Callable[[], None] = lambda: _copy_size(ours)  # noqa: E731
            copy_size()
            half_close: Callable[[], None] = lambda: None  # noqa: E731
        else:
            left, right = socket.socketpair()
            ours, theirs = left.detach(), right.detach()
            copy_size = lambda: None  # noqa: E731
            half_close = lambda: _half_close(ours)  # noqa: E731
        try:
            with _raw_terminal(copy_size):
                instance.channel.tell(Execute(plan, person=True), [log.fileno(), theirs])
                os.close(theirs)
                theirs = -1
                instance.channel.expect(Started, timeout_s=30)
                _relay(instance.channel, ours, half_close)
                return instance.channel.expect(Ended, timeout_s=30).result
        finally:
            os.close(ours)
            if theirs >= 0:
                os.close(theirs)


def _half_close(fd: int) -> None:
    with socket.socket(fileno=os.dup(fd)) as sock:
        sock.shutdown(socket.SHUT_WR)


def _copy_size(fd: int) -> None:
    with contextlib.suppress(OSError):
        fcntl.ioctl(fd, termios.TIOCSWINSZ, fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * 8))


@contextlib.contextmanager
def _raw_terminal(copy_size: Callable[[], None]) -> Iterator[None]:
    """Keys go through as they are; the terminal is as before at the end, whatever happened."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(0)
    old = signal.signal(signal.SIGWINCH, lambda *_: copy_size())
    try:
        tty.setraw(0)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
        signal.signal(signal.SIGWINCH, old)


def _relay(channel: Channel, fd: int, half_close: Callable[[], None]) -> None:
    """Until the step has ended and what it printed was shown."""
    with selectors.DefaultSelector() as selector:
        for source in (0, fd, channel.fileno()):
            with contextlib.suppress(PermissionError):  # a plain file as standard input is always readable
                selector.register(source, selectors.EVENT_READ)
        if 0 not in selector.get_map():
            _send_rest(fd, half_close)
        while True:
            ready = {key.fd for key, _ in selector.select()}
            if 0 in ready:
                data = os.read(0, BLOCK_BYTES)
                if data:
                    _write(fd, data)
                else:
                    selector.unregister(0)
                    half_close()
            if fd in ready and not _copy(fd):
                selector.unregister(fd)
            if channel.fileno() in ready:
                while fd in selector.get_map() and selector.select(0.05) and _copy(fd):
                    pass
                return


def _send_rest(fd: int, half_close: Callable[[], None]) -> None:
    while data := os.read(0, BLOCK_BYTES):
        _write(fd, data)
    half_close()


def _write(fd: int, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the shell has ended
        write_all(fd, data)


def _copy(fd: int) -> bool:
    try:
        data = os.read(fd, BLOCK_BYTES)
    except OSError:  # EIO: nobody has the other end of the pseudo terminal any more
        return False
    if data:
        write_all(1, data)
    return bool(data)
