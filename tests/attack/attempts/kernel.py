# SPDX-License-Identifier: Apache-2.0
"""Surfaces of the kernel that training does not need."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import signal
import struct
import time
from pathlib import Path

from .registry import ARM, KERNEL, OWN_CODE, Targets, attempt, number, reach, simple, syscall

simple(
    "bpf",
    KERNEL,
    "root",
    lambda _: syscall(number(321, 280), 0, ctypes.create_string_buffer(struct.pack("4I", 2, 4, 4, 1) + bytes(104)), 120),
)
simple("io-uring", KERNEL, "step", lambda _: syscall(425, 4, ctypes.create_string_buffer(120)))
simple("userfaultfd", KERNEL, "root", lambda _: syscall(number(323, 282), os.O_CLOEXEC))
simple("keyctl", KERNEL, "step", lambda _: syscall(number(250, 219), 0, -3, 1))
simple(
    "add-key",
    KERNEL,
    "step",
    lambda _: syscall(number(248, 217), ctypes.c_char_p(b"user"), ctypes.c_char_p(b"k"), ctypes.c_char_p(b"v"), 1, -3),
)
simple("perf-event-open", KERNEL, "root", lambda _: _perf())
simple("init-module", KERNEL, "root", lambda _: reach(number(175, 105), 0, 0, ctypes.c_char_p(b"")), "loadable modules")
simple("kexec-load", KERNEL, "root", lambda _: reach(number(246, 104), 0, 9999, 0, 0xFFFFFFFF), "kexec")
simple("reboot", KERNEL, "root", lambda _: reach(number(169, 142), 1, 2, 3, 0))
simple("swapon", KERNEL, "root", lambda _: reach(number(167, 224), ctypes.c_char_p(b"/none"), 0))
simple("settimeofday", KERNEL, "root", lambda _: reach(number(164, 170), ctypes.create_string_buffer(b"\xff" * 16), 0))
simple("delete-module", KERNEL, "root", lambda _: reach(number(176, 106), ctypes.c_char_p(b"none"), 0), "loadable modules")
simple("kexec-file-load", KERNEL, "root", lambda _: reach(number(320, 294), -1, -1, 0, 0, 0xFFFFFFFF), "kexec")
simple("swapoff", KERNEL, "root", lambda _: reach(number(168, 225), ctypes.c_char_p(b"/none")))
simple("clock-settime", KERNEL, "root", lambda _: reach(number(227, 112), 0, 0))
simple("clock-adjtime", KERNEL, "root", lambda _: reach(number(305, 266), 0, 0))
simple("io-uring-register", KERNEL, "step", lambda _: reach(427, -1, 99, 0, 0))
simple("keyctl-session", KERNEL, "step", lambda _: reach(number(250, 219), 1, 0))
simple("request-key", KERNEL, "step", lambda _: reach(number(249, 218), ctypes.c_char_p(b"user"), ctypes.c_char_p(b"none"), 0, 0))
simple("bpf-load", KERNEL, "root", lambda _: reach(number(321, 280), 5, ctypes.create_string_buffer(120), 120))
simple("iopl", KERNEL, "root", lambda _: reach(172, 4) if not ARM else syscall(9999), "port access")
simple("acct", KERNEL, "root", lambda _: reach(number(163, 89), ctypes.c_char_p(b"/none")))
simple("quotactl", KERNEL, "root", lambda _: reach(number(179, 60), 0, ctypes.c_char_p(b"/none"), 0, 0))
simple("fanotify", KERNEL, "root", lambda _: syscall(number(300, 262), 0, 0))
simple("personality-no-aslr", KERNEL, "step", lambda _: syscall(number(135, 92), 0x0040000))
simple("memfd-secret", KERNEL, "step", lambda _: syscall(447, 0), "memfd_secret")
simple("landlock-again", KERNEL, "step", lambda _: syscall(444, 0, 0, 1))
simple("seccomp-listener", KERNEL, "step", lambda _: reach(number(317, 277), 1, 8, 0))
simple("execveat-memfd", KERNEL, "step", lambda _: reach(number(322, 281), 99, ctypes.c_char_p(b""), 0, 0, 0x1000))
simple("modify-ldt", KERNEL, "step", lambda _: syscall(154, 0, ctypes.create_string_buffer(16), 16) if not ARM else syscall(9999))
simple("x32-call", KERNEL, "step", lambda _: syscall(0x40000000 | 39) if not ARM else syscall(9999), "x32")
simple("exec-in-scratch", OWN_CODE, "step", lambda t: _exec_in_scratch(t))
simple("exec-in-tmp", OWN_CODE, "step", lambda t: _exec_in_scratch({"scratch": t["tmp"]}))
simple("exec-from-memfd", OWN_CODE, "step", lambda _: _exec_memfd())
simple("map-write-execute", OWN_CODE, "step", lambda _: _write_execute())
simple("mprotect-execute", OWN_CODE, "step", lambda _: _execute_later())
simple("core-dump", KERNEL, "root", lambda t: _core_dump(t))


def _perf() -> object:
    attributes = ctypes.create_string_buffer(struct.pack("IIQ", 1, 128, 0) + bytes(112))
    return syscall(number(298, 241), attributes, 0, -1, -1, 0)


@attempt("ia32-call", KERNEL, absent="IA32 emulation")
def _ia32(_: Targets) -> object:
    """getpid by int 0x80: the filter must see the foreign architecture."""
    if ARM:
        raise OSError(errno.ENOSYS, "no such architecture")
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20; int 0x80; ret
    function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    return function()


def _exec_in_scratch(t: Targets) -> None:
    path = t["scratch"] + "/program"
    Path(path).write_bytes(Path("/usr/bin/true").read_bytes())
    os.chmod(path, 0o755)
    if os.spawnv(os.P_WAIT, path, [path]) != 0:
        raise OSError(errno.EACCES, "cannot execute what the step wrote")


def _exec_memfd() -> None:
    fd = os.memfd_create("program", 0)
    os.write(fd, Path("/usr/bin/true").read_bytes())
    if os.spawnv(os.P_WAIT, f"/proc/self/fd/{fd}", ["true"]) != 0:
        raise OSError(errno.EACCES, "cannot execute what is no file of the view")


def _write_execute() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def _execute_later() -> None:
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    syscall(number(10, 226), ctypes.addressof(ctypes.c_char.from_buffer(page)), 4096, mmap.PROT_READ | mmap.PROT_EXEC)


def _core_dump(t: Targets) -> None:
    """A crash must leave no copy of memory: neither a file nor a pipe's helper."""
    pid = os.fork()
    if pid == 0:
        os.chdir(t["scratch"])
        if os.getuid() == 0:
            resource.setrlimit(resource.RLIMIT_CORE, (1 << 30, 1 << 30))
        os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(5)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if not os.WCOREDUMP(status):
        raise OSError(errno.EPERM, "no core was written")
