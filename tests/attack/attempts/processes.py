# SPDX-License-Identifier: Apache-2.0
"""Other processes, and privileges of one's own."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import socket
import struct
import subprocess
import time
from pathlib import Path

from .registry import PRIVILEGE, SIGNAL_OUT, Targets, attempt, number, reach, simple, syscall


def _kill(pid: int, sig: int = 0) -> None:
    os.kill(pid, sig)


simple("kill-victim", SIGNAL_OUT, "step", lambda t: _kill(t["victim_pid"]))
simple("kill-launcher", SIGNAL_OUT, "root", lambda t: _kill(t["launcher_pid"]))
simple("kill-runner", SIGNAL_OUT, "root", lambda t: _kill(t["runner_pid"]))
simple("tgkill-victim", SIGNAL_OUT, "step", lambda t: syscall(number(234, 131), t["victim_pid"], t["victim_pid"], 0))
simple("pidfd-victim", PRIVILEGE, "step", lambda t: os.pidfd_open(t["victim_pid"]))
simple(
    "pidfd-signal-victim",
    SIGNAL_OUT,
    "step",
    lambda t: syscall(number(424), os.pidfd_open(t["victim_pid"]), 0, 0, 0),
)
simple("pidfd-getfd-victim", PRIVILEGE, "root", lambda t: syscall(number(438), os.pidfd_open(t["victim_pid"]), 0, 0))
simple("sigqueue-victim", SIGNAL_OUT, "step", lambda t: _sigqueue(t["victim_pid"]))
simple("affinity-of-victim", PRIVILEGE, "step", lambda t: os.sched_setaffinity(t["victim_pid"], os.sched_getaffinity(0)))
simple("ioprio-of-victim", PRIVILEGE, "step", lambda t: syscall(number(251, 30), 1, t["victim_pid"], 2 << 13 | 7))
simple("prlimit-of-victim", PRIVILEGE, "step", lambda t: resource.prlimit(t["victim_pid"], resource.RLIMIT_CORE))
simple(
    "scheduler-of-victim", PRIVILEGE, "step",
    lambda t: os.sched_setscheduler(t["victim_pid"], os.SCHED_BATCH, os.sched_param(0)),
)  # fmt: skip
simple("move-pages-of-runner", PRIVILEGE, "root", lambda t: syscall(number(279, 239), t["runner_pid"], 0, 0, 0, 0, 0), "NUMA")
simple("ptrace-child", PRIVILEGE, "step", lambda _: _ptrace_child())
simple("ptrace-pid-1", PRIVILEGE, "root", lambda t: reach(number(101, 117), 16, t.get("trace_pid", 1), 0, 0))
simple("process-vm-readv", PRIVILEGE, "root", lambda t: _vm_readv(t))
simple("kcmp", PRIVILEGE, "root", lambda _: syscall(number(312, 272), os.getpid(), os.getpid(), 0, 0, 0))
simple("prlimit-pid-1", PRIVILEGE, "root", lambda _: resource.prlimit(1, resource.RLIMIT_NOFILE))
simple("priority-of-victim", PRIVILEGE, "step", lambda t: os.setpriority(os.PRIO_PROCESS, t["victim_pid"], 19))
simple("priority-raise", PRIVILEGE, "root", lambda _: os.setpriority(os.PRIO_PROCESS, 0, -5))
simple("realtime", PRIVILEGE, "root", lambda _: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))
simple(
    "timer-slack-of-victim", PRIVILEGE, "root",
    lambda t: Path(f"/proc/{t['victim_pid']}/timerslack_ns").write_text("50000"),
)  # fmt: skip
simple("timer-wake-alarm", PRIVILEGE, "root", lambda _: os.close(syscall(number(283, 85), 8, 0)), "CAP_WAKE_ALARM")
simple("setuid-0", PRIVILEGE, "root", lambda _: os.setuid(0))
simple("setuid-program", PRIVILEGE, "step", lambda t: _setuid_program(t))
simple("setgid-0", PRIVILEGE, "root", lambda _: os.setgid(0))
simple("setgroups", PRIVILEGE, "root", lambda _: os.setgroups([0]))
simple("setresuid-other", PRIVILEGE, "root", lambda _: os.setresuid(12346, 12346, 12346))
simple("sethostname", PRIVILEGE, "root", lambda t: socket.sethostname(t["hostname"]))
simple("rlimit-raise", PRIVILEGE, "root", lambda _: _raise_rlimit(), "CAP_SYS_RESOURCE")


def _sigqueue(pid: int) -> int:
    return syscall(number(129, 138), pid, 0, ctypes.create_string_buffer(struct.pack("3i", 0, 0, -1) + bytes(116)))


def _ptrace_child() -> object:
    pid = os.fork()
    if pid == 0:
        time.sleep(2)
        os._exit(0)
    try:
        return reach(number(101, 117), 16, pid, 0, 0)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _vm_readv(t: Targets) -> object:
    target = (ctypes.c_char * 16)()
    vector = struct.pack("PN", ctypes.addressof(target), 16)
    local = ctypes.create_string_buffer(vector)
    return syscall(number(310, 270), os.getpid(), local, 1, local, 1, 0)


def _raise_rlimit() -> None:
    for kind in (resource.RLIMIT_NPROC, resource.RLIMIT_NOFILE, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE):
        _, hard = resource.getrlimit(kind)
        if hard == resource.RLIM_INFINITY:
            resource.setrlimit(kind, (1000, 1000))
            hard = 1000
        try:
            resource.setrlimit(kind, (hard + 1, hard + 1))
        except ValueError as exc:  # how the resource module says EPERM
            raise OSError(errno.EPERM, str(exc)) from exc


@attempt("capabilities", PRIVILEGE, "root")
def _capabilities(_: Targets) -> str:
    text = Path("/proc/self/status").read_text()
    sets = {line.split()[0]: line.split()[1] for line in text.splitlines() if line.startswith("Cap")}
    if not any(int(value, 16) for value in sets.values()):
        raise OSError(errno.EPERM, "every capability set, the bounding set too, is empty")
    return str(sets)


def _setuid_program(t: Targets) -> None:
    """A setuid program of root that is in the view: nosuid and no_new_privs make it an ordinary one."""
    done = subprocess.run([t["setuid_program"], "-u"], stdout=subprocess.PIPE, text=True)
    if done.stdout != "0\n":
        raise OSError(errno.EPERM, f"its uid is {done.stdout.strip()}")
