# SPDX-License-Identifier: Apache-2.0
"""The list of attempts, and what they are made of.

An attempt returns when it succeeded and raises OSError when it was denied.  Calls that would do harm are made with arguments
that the kernel refuses after the permission check: `reach` takes every errno but EPERM, EACCES, ENOSYS and the families' own
as "got through".
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Targets = dict[str, Any]
Act = Callable[[Targets], object]

# What is attacked: an outcome of the policy, or what all of them stand on.
SOCKET_OUT, SIGNAL_OUT, WRITE_OUTSIDE = "no-socket-out", "no-signal-out", "no-write-outside"
READ_OUTSIDE, FOREIGN_DEVICE = "no-read-outside", "no-foreign-device"
PRIVILEGE, KERNEL = "(privilege)", "(kernel surface)"
OWN_CODE = "(own code)"  # what the step executes is its own and confined as all of it is: this attacks no outcome
ARM = platform.machine() == "aarch64"


@dataclass(frozen=True)
class Attempt:
    """`control`: who succeeds with the same act outside of any sandbox, "root" or "step" (the uid that the step has).
    `absent`: what a machine may lack, so that nobody can do it there; "" where the control must succeed."""

    name: str
    outcome: str
    act: Act
    control: str
    absent: str


ATTEMPTS: dict[str, Attempt] = {}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def attempt(name: str, outcome: str, control: str = "step", absent: str = "") -> Callable[[Act], Act]:
    def register(act: Act) -> Act:
        simple(name, outcome, control, act, absent)
        return act

    return register


def simple(name: str, outcome: str, control: str, act: Act, absent: str = "") -> None:
    if name in ATTEMPTS or control not in ("root", "step"):
        raise ValueError(name)
    ATTEMPTS[name] = Attempt(name, outcome, act, control, absent)


def number(x86_64: int, aarch64: int | None = None) -> int:
    return x86_64 if not ARM or aarch64 is None else aarch64


def syscall(nr: int, *arguments: Any) -> int:
    converted = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result: int = _libc.syscall(ctypes.c_long(nr), *converted)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def reach(nr: int, *arguments: Any) -> str:
    """Whether a call gets past the filter and the permission check."""
    try:
        return f"returned {syscall(nr, *arguments)}"
    except OSError as exc:
        if exc.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EAFNOSUPPORT):
            raise
        return f"reached: {errno.errorcode.get(exc.errno or 0)}"


def open_as(path: str, flags: int) -> None:
    os.close(os.open(path, flags | os.O_CLOEXEC))
