# SPDX-License-Identifier: Apache-2.0
"""The compiled filters, and the supervisor's end of user notification (seccomp_unotify(2)).

The bytes are package data made by tools/compile_seccomp.py; they are loaded only when their SHA-256 is the one that
filters.json names, and, when the plan names a digest, only when it is that one.

Notified calls are refused, never continued: the answer is always an errno, so that reading the caller's memory, with its
race, is never needed.  The id is not checked before the answer: the answer itself fails with ENOENT when the caller is gone.
"""

from __future__ import annotations

import fcntl
import functools
import os
import struct
from dataclasses import dataclass

from scaleoutd.core import strictjson
from scaleoutd.errors import KernelSupportError, LaunchError
from scaleoutd.step import syscalls
from scaleoutd.step.digest import sha256_hex

EPERM = 1
ENOENT = 2
EINTR = 4
EAFNOSUPPORT = 97

# linux/seccomp.h: struct seccomp_notif {u64 id; u32 pid, flags; struct seccomp_data {int nr; u32 arch; u64 ip, args[6]}}
_NOTIF = struct.Struct("=QIIiIQ6Q")
_RESPONSE = struct.Struct("=QqiI")
SECCOMP_IOCTL_NOTIF_RECV = 0xC0502100
SECCOMP_IOCTL_NOTIF_SEND = 0xC0182101

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "filters")


@dataclass(frozen=True)
class Filters:
    """The filters of this machine.  `names`: call number → name, of the calls that are notified."""

    step: bytes
    step_sha256: str
    inspect: bytes
    names: dict[int, str]


def load(folder: str = FOLDER) -> Filters:
    """Reads and checks the filters; KernelSupportError for a machine without one, LaunchError for missing or altered bytes."""
    machine = syscalls.machine()
    index = strictjson.parse(_read(folder, "filters.json"), max_bytes=64 * 1024, what="filters.json")
    if machine not in index["notified"]:
        raise KernelSupportError(
            f"cannot confine a step: there is no filter for machine {machine}, only for {', '.join(sorted(index['notified']))}",
            hint="Add the architecture to policy/seccomp/step.json and run tools/compile_seccomp.py.",
        )
    step, step_sha256 = _checked(folder, f"step.{machine}.bpf", index["filters"])
    inspect, _ = _checked(folder, f"inspect.{machine}.bpf", index["filters"])
    return Filters(step, step_sha256, inspect, {int(nr): name for nr, name in index["notified"][machine].items()})


@functools.cache
def loaded() -> Filters:
    """As `load`, once; a template has done it for its launchers."""
    return load()


def _read(folder: str, name: str) -> bytes:
    try:
        with open(os.path.join(folder, name), "rb") as file:
            return file.read()
    except OSError as exc:
        raise LaunchError(
            f"cannot load the filter {name}: {exc.strerror} ({folder})", hint="Install the package again: it is incomplete."
        ) from exc


def _checked(folder: str, name: str, index: dict[str, dict[str, str]]) -> tuple[bytes, str]:
    data = _read(folder, name)
    found, expected = sha256_hex(data), index[name]["sha256"]
    if found != expected:
        raise LaunchError(
            f"cannot load the filter {name}: its SHA-256 is {found}, expected {expected}",
            hint="Install the package again; after a change of policy/seccomp run tools/compile_seccomp.py.",
        )
    return data, found


class Supervisor:
    """Counts and refuses the calls that arrive at a listener."""

    def __init__(self, listener_fd: int, names: dict[int, str]) -> None:
        self.fd = listener_fd
        self.denied: dict[str, int] = {}
        self._names = names

    def answer_one(self) -> None:
        """Receives one notification and refuses it; to be called when the listener is readable."""
        buffer = bytearray(_NOTIF.size)
        try:
            fcntl.ioctl(self.fd, SECCOMP_IOCTL_NOTIF_RECV, buffer)
        except OSError as exc:
            if exc.errno in (ENOENT, EINTR):  # the caller died before it was received
                return
            raise
        identifier, _pid, _flags, number, _arch, _ip, *_args = _NOTIF.unpack(buffer)
        name = self._names.get(number, f"call-{number}")
        self.denied[name] = self.denied.get(name, 0) + 1
        errno = EAFNOSUPPORT if name in ("socket", "socketpair") else EPERM
        try:
            fcntl.ioctl(self.fd, SECCOMP_IOCTL_NOTIF_SEND, bytearray(_RESPONSE.pack(identifier, 0, -errno, 0)))
        except OSError as exc:
            if exc.errno != ENOENT:  # the caller was killed while it waited: nothing to refuse any more
                raise

    def close(self) -> None:
        os.close(self.fd)
