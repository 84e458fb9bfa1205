# SPDX-License-Identifier: Apache-2.0
"""Confined children of the launcher that run our own code: forked without exec while the launcher is warm.

A child gets a function, a few descriptors and a uid, and gives back one JSON object of at most 64 KiB.  It is confined
before it looks at a byte of anybody else: the slot's uid, rlimits, no capability, no_new_privs, an (almost) empty Landlock
ruleset, a filter.  Its wall clock is the launcher's, and so is its end.
"""

from __future__ import annotations

import array
import fcntl
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from scaleoutd.core import strictjson
from scaleoutd.errors import LaunchError, LimitExceededError, PeerError, ScaleoutError, from_code
from scaleoutd.step import confine, landlock, syscalls
from scaleoutd.step.confine import Identity
from scaleoutd.step.killer import Killer
from scaleoutd.step.landlock import Grant

MAX_RESULT_BYTES = 64 * 1024
_LAST_MS = 20  # for a child that has answered and is on its way out
_HEADROOM_BYTES = 512 << 20  # of address space, over what the launcher has mapped

Work = Callable[..., tuple[dict[str, Any], Sequence[int]]]
"""Called with the given descriptors; returns a JSON object and descriptors to hand up."""


@dataclass(frozen=True)
class Cell:
    """How a child is confined."""

    identity: Identity
    program: bytes
    landlock_abi: int
    cpu_s: int
    wall_clock_s: float
    grants: tuple[Grant, ...] = ()
    files: bool = False  # may open (within `grants`) and delete files
    folder: str = "/"  # working folder
    connection_fd: int = -1  # when it hangs up, the child is killed
    killer: Killer | None = None  # where the launcher may not end it itself


@dataclass
class Outcome:
    """What a child answered; the descriptors are the caller's."""

    value: dict[str, Any]
    descriptors: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Opening:
    """What a child opens before it looks at it: `grants` and the working folder hold while it does, and no longer.

    `accept` is called in the launcher with the descriptors, before the child's answer counts; it raises what is wrong.
    """

    grants: tuple[Grant, ...]
    open: Callable[[], Sequence[int]]
    accept: Callable[[list[int]], None]


_ended: list[int] = []  # children that were killed and not yet waited for


def call(cell: Cell, work: Work, descriptors: Sequence[int] = (), opening: Opening | None = None) -> Outcome:
    """Runs `work` in a confined child; with `opening`, on what the child opened first, then on `descriptors`.

    Raises the ScaleoutError that the child reports; LimitExceededError when it runs too long; LaunchError when it ends
    without a word, which is what a filter or an rlimit does to a child that was taken over.  The child is killed when this
    returns; whoever goes on to something else calls `reap` first.
    """
    reap()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        _run(cell, work, descriptors, theirs.fileno(), opening)
    theirs.close()
    try:
        opened = _opened(cell, ours, opening)
        try:
            outcome = _collect(cell, ours)
        except BaseException:
            close_all(opened)
            raise
    finally:
        ours.close()
        end(pid, cell.identity, cell.killer)
        _ended.append(pid)
    return Outcome(outcome.value, [*opened, *outcome.descriptors])


def reap() -> None:
    """Waits until the children that were killed are gone.  The answer is out by then: tearing down a process takes 1 ms."""
    while _ended:
        os.waitpid(_ended.pop(), 0)


def close_all(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())


def _opened(cell: Cell, sock: socket.socket, opening: Opening | None) -> list[int]:
    if opening is None:
        return []
    opened = _collect(cell, sock).descriptors
    try:
        opening.accept(opened)
    except BaseException:
        close_all(opened)
        raise
    return opened


def end(pid: int, identity: Identity, killer: Killer | None) -> None:
    """Kills the child `pid`, who may have become `identity` or not yet."""
    if killer is None:
        os.kill(pid, signal.SIGKILL)
        return
    try:
        os.kill(pid, signal.SIGKILL)
    except PermissionError:  # it is another user by now, and has most often ended by itself
        ended = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(ended, select.POLLIN)
            if not poll.poll(_LAST_MS):
                killer.kill(identity, pid)
        finally:
            os.close(ended)


def _collect(cell: Cell, sock: socket.socket) -> Outcome:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    if cell.connection_fd >= 0:
        poll.register(cell.connection_fd, 0)  # only POLLHUP
    deadline = time.monotonic() + cell.wall_clock_s
    while True:
        left = deadline - time.monotonic()
        events = dict(poll.poll(max(0, int(left * 1000))))
        if sock.fileno() in events:
            break
        if events:
            raise PeerError("cannot go on: the runner closed the connection", code="peer-closed")
        if time.monotonic() >= deadline:
            raise LimitExceededError(
                f"cannot read the data: the confined reader ran longer than {cell.wall_clock_s:.0f} s", code="limit-wall-clock"
            )
    data, control, flags, _ = sock.recvmsg(MAX_RESULT_BYTES + 1, socket.CMSG_SPACE(64), socket.MSG_CMSG_CLOEXEC)
    numbers = array.array("i")
    for level, kind, payload in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers.frombytes(payload[: len(payload) - len(payload) % numbers.itemsize])
    received = list(numbers)
    try:
        if not data:
            raise LaunchError(
                "cannot read the data: the confined reader ended without an answer",
                hint="It was killed by a limit or by its filter; the data may be hostile or need more memory than it may have.",
            )
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(received) > 4:
            raise LaunchError("cannot read the data: the answer of the confined reader is too large")
        value = result_of(data)
    except BaseException:
        for fd in received:
            os.close(fd)
        raise
    return Outcome(value, received)


def result_of(data: bytes) -> dict[str, Any]:
    """The JSON object that the child answered; raises the error that it answered instead, or that its answer is none."""
    value = strictjson.parse(data, max_bytes=MAX_RESULT_BYTES, what="the answer of the confined reader")
    if not isinstance(value, dict):
        raise LaunchError("cannot read the data: the answer of the confined reader is no object")
    if "failed" in value:
        raise _error_of(value["failed"])
    return value


def _error_of(failed: Any) -> ScaleoutError:
    if not isinstance(failed, dict) or not all(isinstance(failed.get(key), str) for key in ("code", "message", "hint")):
        return LaunchError("cannot read the data: the confined reader reported an error that cannot be read")
    return from_code(failed["code"], failed["message"][:2000], failed["hint"][:2000])


def _run(cell: Cell, work: Work, descriptors: Sequence[int], answer: int, opening: Opening | None) -> NoReturn:
    """The child.  Never returns."""
    try:
        kept = _settle([answer, *descriptors])
        _limit_child(cell)
        opened: Sequence[int] = ()
        if opening is not None:
            # Ours alone acts here, on names that are ours: nothing that somebody else wrote was looked at yet.
            with confine.stage("landlock"):
                landlock.restrict(opening.grants, abi=cell.landlock_abi)
            opened = opening.open()
            _answer(kept[0], {}, opened)
        confine.restrict(cell.grants, cell.program, abi=cell.landlock_abi)
        value, passed = work(*opened, *kept[1:])
        _answer(kept[0], value, passed)
        os._exit(0)
    except BaseException as exc:  # noqa: BLE001 - told to the launcher, then the process ends
        try:
            _answer(kept[0], {"failed": _failure(exc)}, ())
        except BaseException:  # noqa: BLE001, S110 - the launcher reports an end without an answer
            pass
    os._exit(70)


def _settle(descriptors: Sequence[int]) -> list[int]:
    """Moves `descriptors` to 0, 1, 2 … and closes all others."""
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD, 64) for fd in descriptors]
    for target, fd in enumerate(moved):
        os.dup2(fd, target)
    syscalls.close_range(len(moved))
    return list(range(len(moved)))


def _limit_child(cell: Cell) -> None:
    """Everything but Landlock and the filter."""
    os.setsid()
    os.umask(0o077)
    confine.default_signals()
    with confine.stage("rlimits"):
        mapped = _mapped_bytes()
        files = 256 if cell.files else 16
        confine.set_rlimits(
            [
                (resource.RLIMIT_CPU, cell.cpu_s, cell.cpu_s + 1),
                (resource.RLIMIT_AS, mapped + _HEADROOM_BYTES, mapped + _HEADROOM_BYTES),
                (resource.RLIMIT_CORE, 1, 1),
                (resource.RLIMIT_FSIZE, 0, 0),
                (resource.RLIMIT_NOFILE, files, files),
                (resource.RLIMIT_MSGQUEUE, 0, 0),
            ]
        )
    # Before the change of uid: the folders above may be closed to the step's uid.  After it where this one is closed to us.
    entered = _entered(cell.folder)
    confine.become(cell.identity)
    if not entered:
        with confine.stage("working folder"):
            os.chdir(cell.folder)
    with confine.stage("rlimits"):
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def _entered(folder: str) -> bool:
    with confine.stage("working folder"):
        try:
            os.chdir(folder)
        except PermissionError:
            return False
    return True


def _mapped_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _answer(fd: int, value: dict[str, Any], passed: Sequence[int]) -> None:
    data = strictjson.canonical(value)
    if passed:
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", passed))]
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=fd)
        sock.sendmsg([data], control, socket.MSG_NOSIGNAL)
        sock.detach()
    else:
        os.write(fd, data)


def _failure(exc: BaseException) -> dict[str, str]:
    if isinstance(exc, ScaleoutError):
        return {"code": exc.code, "message": exc.message[:2000], "hint": exc.hint[:2000]}
    if isinstance(exc, MemoryError):
        return {"code": "limit-memory", "message": "cannot read the data: the reader may not have more memory", "hint": ""}
    text = f"{type(exc).__name__}: {exc}".encode("ascii", "replace").decode()
    return {"code": "internal", "message": f"cannot read the data: {text}"[:2000], "hint": ""}
