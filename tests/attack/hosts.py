# SPDX-License-Identifier: Apache-2.0
"""The hosts of the attack matrix: what is done to a launcher, before it is executed, so that it stands on another host.

    plain          this machine as it is
    no-userns      an ordinary user: a user namespace in which max_user_namespaces is 0, so the kernel itself refuses.  root: a
                   filter that answers CLONE_NEWUSER with ENOSPC as that limit would (a nested root would be no root)
    landlock-off   a filter that answers all calls of Landlock with ENOSYS, as a kernel without it
    abi-2          Landlock says 2, and a filter refuses rulesets larger than those of ABI 2 with E2BIG, as such a kernel.
                   A filter cannot return a positive number, so the launcher's own question is answered by a line of Python

Devices that this machine may lack are shown, open to everybody, in a /dev of the launcher's own mount namespace.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from scaleoutd.step import syscalls
from tests.attack.attempts.devices import FAKES

Host = Literal["plain", "no-userns", "landlock-off", "abi-2"]
HOSTS: tuple[Host, ...] = ("plain", "no-userns", "landlock-off", "abi-2")
PRELUDE: dict[Host, str] = {
    "abi-2": "import scaleoutd.step.syscalls as s; real = s.landlock_abi(); s.landlock_abi = lambda: min(2, real)"
}
_LANDLOCK_CREATE_RULESET, _LANDLOCK_LAST = 444, 446
_ABI_2_RULESET_BYTES = 8
_UNSHARE, _CLONE, _CLONE3 = (97, 220, 435) if os.uname().machine == "aarch64" else (272, 56, 435)
# linux/bpf_common.h, linux/seccomp.h
_LOAD, _EQUAL, _GREATER_EQUAL, _GREATER, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x25, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER, _FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 16, 24
_MS_BIND = 4096
_REAL_DEVICES = ("null", "zero", "full", "random", "urandom", "kmsg")


def before_exec(host: Host, *, user: bool, folder: Path) -> Callable[[], None]:
    """For a child that is still root; `folder` is where its /dev is put together."""

    def become() -> None:
        if os.geteuid() == 0:
            show_devices(folder)
        if host == "no-userns" and user:
            forbid_user_namespaces()
        elif host != "plain":
            install(filter_of(host))

    return become


def show_devices(folder: Path) -> None:
    """A /dev in a mount namespace of this process, with every device that an attempt asks for; the fakes lead to null."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    folder.mkdir(exist_ok=True)
    syscalls.mount("dev", str(folder), "tmpfs", 0, "mode=0755")
    for name in (*_REAL_DEVICES, *FAKES):
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        if name in FAKES and _made(target):
            continue
        target.touch()
        source = f"/dev/{name}" if name in _REAL_DEVICES else "/dev/null"
        if os.path.exists(source):
            syscalls.mount(source, str(target), None, _MS_BIND)
    for name in ("pts", "shm"):
        if os.path.isdir(f"/dev/{name}"):
            (folder / name).mkdir()
            syscalls.mount(f"/dev/{name}", str(folder / name), None, _MS_BIND | syscalls.MS_REC)
    for name, link in (("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1")):
        (folder / name).symlink_to(link)
    syscalls.mount(str(folder), "/dev", None, _MS_BIND | syscalls.MS_REC)


def _made(path: Path) -> bool:
    """A node of its own, not null's: a rule of Landlock is for the inode.  Root of a container may not make one."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        return False
    path.chmod(0o666)
    return True


def forbid_user_namespaces() -> None:
    """In a user namespace of its own, where the number of further ones is set to 0 (user_namespaces(7))."""
    read, write = os.pipe()
    me = os.getpid()
    helper = os.fork()
    if helper == 0:  # the map of many ids must be written from outside
        os.close(write)
        if not os.read(read, 1):  # no namespace was made: the other end is closed, and this process must not stay
            os._exit(1)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{me}/{name}").write_text("0 0 65536")
        os._exit(0)
    syscalls.unshare(syscalls.CLONE_NEWUSER)
    os.write(write, b"1")
    os.waitpid(helper, 0)
    os.close(read)
    os.close(write)
    Path("/proc/sys/user/max_user_namespaces").write_text("0")


def filter_of(host: Host) -> bytes:
    """A classic BPF program; the low half of an argument is enough for each of these."""
    if host == "landlock-off":
        program = [
            (_LOAD, 0, 0, _NUMBER),
            (_GREATER_EQUAL, 0, 2, _LANDLOCK_CREATE_RULESET),
            (_GREATER, 1, 0, _LANDLOCK_LAST),
            (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
            (_RETURN, 0, 0, _ALLOW),
        ]
    elif host == "abi-2":
        program = [
            (_LOAD, 0, 0, _NUMBER),
            (_EQUAL, 0, 3, _LANDLOCK_CREATE_RULESET),
            (_LOAD, 0, 0, _SECOND_ARGUMENT),
            (_GREATER, 0, 1, _ABI_2_RULESET_BYTES),
            (_RETURN, 0, 0, _ERRNO | errno.E2BIG),
            (_RETURN, 0, 0, _ALLOW),
        ]
    else:
        program = [
            (_LOAD, 0, 0, _NUMBER),
            (_EQUAL, 4, 0, _CLONE3),
            (_EQUAL, 1, 0, _UNSHARE),
            (_EQUAL, 0, 4, _CLONE),
            (_LOAD, 0, 0, _FIRST_ARGUMENT),
            (_ANY_BIT, 1, 2, syscalls.CLONE_NEWUSER),
            (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
            (_RETURN, 0, 0, _ERRNO | errno.ENOSPC),
            (_RETURN, 0, 0, _ALLOW),
        ]
    return b"".join(struct.pack("HBBI", *step) for step in program)


def install(program: bytes) -> None:
    """For this process and all it starts.  An ordinary user needs no_new_privs for that."""
    if os.geteuid() != 0:
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    kept = ctypes.create_string_buffer(program, len(program))
    code = syscalls.sock_fprog(len(program) // 8, ctypes.cast(kept, ctypes.c_void_p))
    if syscalls.libc.prctl(22, 2, ctypes.addressof(code), 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise OSError(ctypes.get_errno(), "prctl")
