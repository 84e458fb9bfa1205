# SPDX-License-Identifier: Apache-2.0
"""The main process of a run: our own code that becomes the step.

It is forked by pid 1 while nobody waits, takes its order, and goes through the inner stage (confine.py) once pid 1 has completed
the view.  Confined, it hands the filter's listener to the launcher, waits for its word, and execs.
"""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NoReturn

from scaleoutd.errors import LaunchError
from scaleoutd.step import confine, limits, namespaces, orders, scratch, syscalls
from scaleoutd.step.orders import Base

NULL, OUT, ERR, DOOR, VIEW_MADE = 0, 1, 2, 3, 4


def become_step(base: Base, door: int, view_made: int) -> NoReturn:
    """The inner stage, then exec.  Any error is told through the door; nothing runs."""
    command = "the step"
    try:
        signal.set_wakeup_fd(-1)
        with confine.stage("descriptors"):
            os.dup2(door, DOOR, inheritable=False)
            os.dup2(view_made, VIEW_MADE, inheritable=False)
            syscalls.close_range(VIEW_MADE + 1)
        with confine.stage("session"):
            os.setsid()
            os.umask(0o077)
        with confine.stage("oom_score_adj"):
            _raise_oom_score(base)
        confine.default_signals()
        with suppress(PermissionError):  # `become` says what that means
            syscalls.drop_bounding_set()
        orders.rehearse(base)
        order, passed = orders.take(base, DOOR)
        plan, command = order.plan, repr(order.plan.command[0])
        if passed:
            _take_terminal(passed)
        if not os.read(VIEW_MADE, 1):
            os._exit(70)  # pid 1 has told why
        os.close(VIEW_MADE)
        with confine.stage("rlimits"):
            processes = orders.process_bound(order) if order.watch_processes else None
            confine.set_rlimits(limits.rlimits_of(plan.limits, address_space=order.watch_memory, processes=processes))
        if not order.unit:
            with confine.stage("working folder"):
                os.chdir(plan.cwd)
        confine.become(order.identity)
        if order.unit:  # folders of the step's are closed to the launcher's user
            with confine.stage("scratch"):
                _enter_scratch(order.scratch)
            with confine.stage("working folder"):
                os.chdir(plan.cwd)
        listener = confine.restrict(order.view.grants, order.program, abi=order.landlock_abi, listener=True)
        orders.tell(DOOR, {"listener": True}, [listener])
        os.close(listener)
        _await_word()
        if order.act is not None:
            os.close(DOOR)
            _act(base, order.act, order.scratch)
        os.execvpe(plan.command[0], list(plan.command), dict(plan.environment))  # noqa: S606 - this is what it is for
    except orders.Gone:
        os._exit(0)
    except BaseException as exc:  # noqa: BLE001 - told through the door, then the process ends
        if isinstance(exc, OSError):
            exc = LaunchError(
                f"cannot start {command}: {exc.strerror}",
                hint="The program must lie in the view of the step and be executable by everybody.",
            )
        orders.tell(DOOR, {"failed": orders.failure(exc)})
    os._exit(70)


def _act(base: Base, act: Mapping[str, Any], folder: str) -> NoReturn:
    try:
        base.act(act, folder)
    except BaseException:  # noqa: BLE001 - nobody listens here: what was not answered counts as not done
        os._exit(71)
    os._exit(0)


def _take_terminal(passed: list[int]) -> None:
    """A person's terminal, or pipe, for the standard streams."""
    with confine.stage("descriptors"):
        for target in (NULL, OUT, ERR):
            os.dup2(passed[0], target)
        os.close(passed[0])
    with confine.stage("session"):
        if os.isatty(NULL):
            fcntl.ioctl(NULL, syscalls.TIOCSCTTY, 0)  # Ctrl-C is for what runs in the shell


def _enter_scratch(folder: str) -> None:
    """What an instance that was killed left is deleted by a child that may do nothing else; nothing is left nearly always."""
    if os.listdir(folder):
        orders.tell(DOOR, {"left": True})
        _await_word()
    else:
        scratch.make_output_folder(folder)


def _await_word() -> None:
    """Until the launcher says go on; without a word it is gone."""
    try:
        if os.read(DOOR, len(orders.GO)):
            return
    except ConnectionResetError:
        pass
    os._exit(70)


def _raise_oom_score(base: Base) -> None:
    """Then /proc becomes read-only, so that the step cannot lower it again even without Landlock."""
    if os.geteuid() != 0:
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)  # /proc/self is root's while the process is not dumpable
    _write("/proc/self/oom_score_adj", confine.OOM_SCORE_FIRST)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    if base.own_namespaces:
        namespaces.make_read_only("/proc")


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
