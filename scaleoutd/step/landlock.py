# SPDX-License-Identifier: Apache-2.0
"""Landlock rulesets: all rights that the kernel's ABI knows are handled; what is granted is listed by path.

Source: Linux Documentation/userspace-api/landlock.rst.  What Landlock does not cover (chmod, utimes, stat, UDP, Unix sockets
with a path) is held by the mount view, the network namespace and the filter.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from scaleoutd.step import syscalls

EXECUTE = 1 << 0
WRITE_FILE = 1 << 1
READ_FILE = 1 << 2
READ_DIR = 1 << 3
REMOVE_DIR = 1 << 4
REMOVE_FILE = 1 << 5
MAKE_CHAR = 1 << 6
MAKE_DIR = 1 << 7
MAKE_REG = 1 << 8
MAKE_SOCK = 1 << 9
MAKE_FIFO = 1 << 10
MAKE_BLOCK = 1 << 11
MAKE_SYM = 1 << 12
REFER = 1 << 13  # ABI 2
TRUNCATE = 1 << 14  # ABI 3
IOCTL_DEV = 1 << 15  # ABI 5
_ALL_OF_ABI_1 = (1 << 13) - 1

NET_BIND_TCP = 1 << 0  # ABI 4
NET_CONNECT_TCP = 1 << 1
SCOPE_ABSTRACT_UNIX_SOCKET = 1 << 0  # ABI 6
SCOPE_SIGNAL = 1 << 1

_ONLY_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
NEWEST_ABI = 7  # ABI 7 adds audit flags only

Access = Literal["list", "read", "execute", "write", "device", "driver"]
_RIGHTS: dict[str, int] = {
    "list": READ_DIR,
    "read": READ_FILE | READ_DIR,
    "execute": READ_FILE | READ_DIR | EXECUTE,
    "write": (
        READ_FILE | READ_DIR | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SOCK | MAKE_FIFO
        | MAKE_SYM | REFER | TRUNCATE
    ),
    "device": READ_FILE | WRITE_FILE,
    "driver": READ_FILE | WRITE_FILE | IOCTL_DEV,  # what a GPU does, it is asked by ioctl
}  # fmt: skip


@dataclass(frozen=True)
class Grant:
    """`access` to `path` and everything below it."""

    path: str
    access: Access


def handled_fs(abi: int) -> int:
    """Every file-system right that `abi` knows."""
    rights = _ALL_OF_ABI_1
    for level, right in ((2, REFER), (3, TRUNCATE), (5, IOCTL_DEV)):
        if abi >= level:
            rights |= right
    return rights


def create(grants: Iterable[Grant], *, abi: int, scopes: bool = True) -> int:
    """A ruleset's descriptor; paths are resolved now.  Grants of paths that do not exist are an error."""
    handled = handled_fs(abi)
    net = NET_BIND_TCP | NET_CONNECT_TCP if abi >= 4 else 0
    scoped = SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL if abi >= 6 and scopes else 0
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    ruleset = syscalls.landlock_create_ruleset(handled, net, scoped, size)
    for grant in grants:
        fd = os.open(grant.path, os.O_PATH | os.O_CLOEXEC)
        try:
            rights = _RIGHTS[grant.access] & handled
            if not stat.S_ISDIR(os.fstat(fd).st_mode):
                rights &= _ONLY_FILES
            if rights:
                syscalls.landlock_add_path(ruleset, fd, rights)
        finally:
            os.close(fd)
    return ruleset


def restrict(grants: Iterable[Grant], *, abi: int, scopes: bool = True) -> None:
    """Confines the calling thread for good; it must have no_new_privs.  Without Landlock (ABI 0) nothing happens."""
    if abi == 0:
        return
    ruleset = create(grants, abi=abi, scopes=scopes)
    try:
        syscalls.landlock_restrict_self(ruleset)
    finally:
        os.close(ruleset)
