# SPDX-License-Identifier: Apache-2.0
"""Namespaces and mounts."""

from __future__ import annotations

import ctypes
import os
import signal
import struct

from .registry import PRIVILEGE, Targets, attempt, number, reach, simple, syscall

for _name, _flag in (
    ("user", 0x10000000),
    ("mount", 0x20000),
    ("pid", 0x20000000),
    ("net", 0x40000000),
    ("ipc", 0x8000000),
    ("uts", 0x4000000),
    ("cgroup", 0x2000000),
    ("time", 0x80),
):
    simple(f"unshare-{_name}", PRIVILEGE, "root", lambda _, f=_flag: syscall(number(272, 97), f))  # type: ignore[misc]


@attempt("clone-newuser", PRIVILEGE, "root")
def _clone(_: Targets) -> object:
    pid = syscall(number(56, 220), 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


@attempt("clone3-newuser", PRIVILEGE, "root")
def _clone3(_: Targets) -> object:
    arguments = ctypes.create_string_buffer(struct.pack("11Q", 0x10000000, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, 0))
    pid = syscall(435, arguments, 88)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


simple("setns", PRIVILEGE, "root", lambda _: syscall(number(308, 268), os.open("/proc/self/ns/uts", os.O_RDONLY), 0))
simple("mount-tmpfs", PRIVILEGE, "root", lambda t: _mount(t, b"tmpfs", 0))
simple("mount-bind", PRIVILEGE, "root", lambda t: _mount(t, None, 4096))
simple("mount-remount-rw", PRIVILEGE, "root", lambda t: _remount(t))
simple("umount", PRIVILEGE, "root", lambda t: reach(number(166, 39), ctypes.c_char_p(t["scratch"].encode() + b"/none"), 2))
simple("pivot-root", PRIVILEGE, "root", lambda _: reach(number(155, 41), ctypes.c_char_p(b"/none"), ctypes.c_char_p(b"/none")))
simple("chroot", PRIVILEGE, "root", lambda t: os.chroot(t["scratch"]))
simple("open-tree", PRIVILEGE, "root", lambda _: syscall(428, -100, ctypes.c_char_p(b"/"), 1))
simple("fsopen", PRIVILEGE, "root", lambda _: syscall(430, ctypes.c_char_p(b"tmpfs"), 0))
simple("move-mount", PRIVILEGE, "root", lambda _: reach(429, -1, ctypes.c_char_p(b""), -1, ctypes.c_char_p(b""), 0))
simple("fspick", PRIVILEGE, "root", lambda _: reach(433, -100, ctypes.c_char_p(b"/none"), 0))
simple(
    "mount-setattr",
    PRIVILEGE,
    "root",
    lambda _: reach(442, -100, ctypes.c_char_p(b"/none"), 0, ctypes.create_string_buffer(32), 32),
)


def _mount(t: Targets, kind: bytes | None, flags: int) -> object:
    where = ctypes.c_char_p(t["scratch"].encode())
    source = ctypes.c_char_p(b"/usr")
    return syscall(number(165, 40), source, where, ctypes.c_char_p(kind), flags, ctypes.c_char_p(None))


def _remount(t: Targets) -> object:
    _mount_flags = 32 | 4096  # MS_REMOUNT | MS_BIND
    where = ctypes.c_char_p(t["remount"].encode())
    return syscall(number(165, 40), ctypes.c_char_p(b"none"), where, ctypes.c_char_p(None), _mount_flags, ctypes.c_char_p(None))
