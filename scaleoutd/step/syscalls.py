# SPDX-License-Identifier: Apache-2.0
"""The one file with ctypes: calls of the kernel that Python 3.11 has no name for.

Constants carry the names of the kernel's headers (include/uapi/linux: mount.h, sched.h, prctl.h, capability.h, landlock.h,
seccomp.h).  Every function declares its argument types once, here; `oserror` is the only place that turns errno into an
exception.  Numbers that differ between x86_64 and aarch64 are in `_NUMBERS`; from 424 on they are the same everywhere.
"""

from __future__ import annotations

import ctypes
import os
from typing import NoReturn

# sched.h
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# mount.h
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

# asm-generic/ioctls.h; the module termios is 56 KiB of every launcher
TIOCSCTTY = 0x540E

# prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

# capability.h
_LINUX_CAPABILITY_VERSION_3 = 0x20080522

# landlock.h
LANDLOCK_CREATE_RULESET_VERSION = 1
LANDLOCK_RULE_PATH_BENEATH = 1

# seccomp.h
SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER = 8

_NUMBERS = {"x86_64": {"pivot_root": 155, "seccomp": 317}, "aarch64": {"pivot_root": 41, "seccomp": 277}}
_NR_OPEN_TREE = 428
_NR_MOVE_MOUNT = 429
_NR_CLOSE_RANGE = 436
_NR_MOUNT_SETATTR = 442
_NR_LANDLOCK_CREATE_RULESET = 444
_NR_LANDLOCK_ADD_RULE = 445
_NR_LANDLOCK_RESTRICT_SELF = 446


class mount_attr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class cap_user_header_t(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class cap_user_data_t(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


class landlock_ruleset_attr(ctypes.Structure):
    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class landlock_path_beneath_attr(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


class sock_fprog(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))


libc = ctypes.CDLL(None, use_errno=True)
libc.unshare.argtypes = (ctypes.c_int,)
libc.setns.argtypes = (ctypes.c_int, ctypes.c_int)
libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
libc.sethostname.argtypes = (ctypes.c_char_p, ctypes.c_size_t)
libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
libc.capset.argtypes = (ctypes.POINTER(cap_user_header_t), ctypes.POINTER(cap_user_data_t))
libc.syscall.argtypes = (ctypes.c_long,) * 7
libc.syscall.restype = ctypes.c_long


def machine() -> str:
    """x86_64 or aarch64, as the kernel says."""
    return os.uname().machine


def oserror(call: str) -> NoReturn:
    """Raises the OSError of the call that failed just now."""
    errno = ctypes.get_errno()
    text = os.strerror(errno)
    if errno == 38:
        text += " (the kernel is too old, or a filter around this process forbids the call)"
    raise OSError(errno, text, call)


def _call(name: str, number: int, *arguments: int) -> int:
    result: int = libc.syscall(number, *arguments, *([0] * (6 - len(arguments))))
    if result < 0:
        oserror(name)
    return result


def unshare(flags: int) -> None:
    if libc.unshare(flags) < 0:
        oserror("unshare")


def setns(fd: int, kind: int) -> None:
    if libc.setns(fd, kind) < 0:
        oserror("setns")


def mount(source: str, target: str, fstype: str | None, flags: int, options: str = "") -> None:
    kind = None if fstype is None else fstype.encode()
    if libc.mount(source.encode(), os.fsencode(target), kind, flags, options.encode()) < 0:
        oserror("mount")


def umount2(target: str, flags: int) -> None:
    if libc.umount2(os.fsencode(target), flags) < 0:
        oserror("umount2")


def pivot_root(new_root: str, put_old: str) -> None:
    new, old = ctypes.create_string_buffer(os.fsencode(new_root)), ctypes.create_string_buffer(os.fsencode(put_old))
    _call("pivot_root", _NUMBERS[machine()]["pivot_root"], ctypes.addressof(new), ctypes.addressof(old))


def open_tree(path: str) -> int:
    """A detached copy of the mounts at `path` and below it."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE
    return _call("open_tree", _NR_OPEN_TREE, AT_FDCWD, ctypes.addressof(name), flags)


def move_mount(tree_fd: int, target_fd: int) -> None:
    """Attaches the detached mount `tree_fd` over what `target_fd` (O_PATH) names."""
    empty = ctypes.create_string_buffer(b"")
    where = ctypes.addressof(empty)
    _call("move_mount", _NR_MOVE_MOUNT, tree_fd, where, target_fd, where, MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)


def mount_setattr(fd: int, attributes: int, *, recursive: bool = True) -> None:
    """Adds `attributes` (MOUNT_ATTR_*) to the mount of `fd`."""
    attr = mount_attr(attributes, 0, 0, 0)
    empty = ctypes.create_string_buffer(b"")
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    size = ctypes.sizeof(attr)
    _call("mount_setattr", _NR_MOUNT_SETATTR, fd, ctypes.addressof(empty), flags, ctypes.addressof(attr), size)


def sethostname(name: str) -> None:
    if libc.sethostname(name.encode(), len(name.encode())) < 0:
        oserror("sethostname")


def close_range(first: int, last: int = 0x7FFFFFFF) -> None:
    _call("close_range", _NR_CLOSE_RANGE, first, last, 0)


def prctl(option: int, argument: int = 0) -> int:
    result: int = libc.prctl(option, argument, 0, 0, 0)
    if result < 0:
        oserror("prctl")
    return result


def drop_bounding_set() -> None:
    """Empties the capability bounding set; capability numbers end where PR_CAPBSET_READ says EINVAL."""
    for capability in range(64):
        state: int = libc.prctl(PR_CAPBSET_READ, capability, 0, 0, 0)
        if state < 0:
            return
        if state == 1 and libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            oserror("prctl(PR_CAPBSET_DROP)")


def drop_capabilities() -> None:
    """Ambient, effective, permitted and inheritable sets to zero."""
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    header = cap_user_header_t(_LINUX_CAPABILITY_VERSION_3, 0)
    data = (cap_user_data_t * 2)()
    if libc.capset(ctypes.byref(header), data) < 0:
        oserror("capset")


def landlock_abi() -> int:
    """Landlock's ABI version; 0 when the kernel has none."""
    result: int = libc.syscall(_NR_LANDLOCK_CREATE_RULESET, 0, 0, LANDLOCK_CREATE_RULESET_VERSION, 0, 0, 0)
    return max(0, result)


def landlock_create_ruleset(fs: int, net: int, scoped: int, size: int) -> int:
    attr = landlock_ruleset_attr(fs, net, scoped)
    return _call("landlock_create_ruleset", _NR_LANDLOCK_CREATE_RULESET, ctypes.addressof(attr), size, 0)


def landlock_add_path(ruleset_fd: int, path_fd: int, access: int) -> None:
    rule = landlock_path_beneath_attr(access, path_fd)
    where = ctypes.addressof(rule)
    _call("landlock_add_rule", _NR_LANDLOCK_ADD_RULE, ruleset_fd, LANDLOCK_RULE_PATH_BENEATH, where, 0)


def landlock_restrict_self(ruleset_fd: int) -> None:
    _call("landlock_restrict_self", _NR_LANDLOCK_RESTRICT_SELF, ruleset_fd, 0)


def seccomp_set_filter(program: bytes, *, listener: bool) -> int:
    """Loads classic BPF (8 bytes an instruction); returns the listener's descriptor, or 0 without one."""
    code = ctypes.create_string_buffer(program, len(program))
    prog = sock_fprog(len(program) // 8, ctypes.addressof(code))
    flags = SECCOMP_FILTER_FLAG_NEW_LISTENER if listener else 0
    return _call("seccomp", _NUMBERS[machine()]["seccomp"], SECCOMP_SET_MODE_FILTER, flags, ctypes.addressof(prog))
