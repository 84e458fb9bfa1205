# SPDX-License-Identifier: Apache-2.0
"""What an attacker tries from inside a step.  This file is a program: it runs inside the step and, as the control, outside.

    python3 attempts.py NAME TARGETS-JSON       prints one line of JSON: {"outcome": "allowed" | "denied", "detail": …}

An attempt returns when it succeeded and raises OSError when it was denied.  Calls that would do harm are made with arguments
that the kernel refuses after the permission check: `reach` takes every errno but EPERM, EACCES, ENOSYS and the families' own
as "got through".  Standard library only; ctypes for calls that Python has no name for.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import platform
import resource
import signal
import socket
import stat
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Targets = dict[str, Any]
ATTEMPTS: dict[str, Callable[[Targets], object]] = {}
# How the control runs: "root" or "step" (the uid that the step has) outside of any sandbox; or why there is none.
CONTROLS: dict[str, str] = {}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_ARM = platform.machine() == "aarch64"


def number(x86_64: int, aarch64: int | None = None) -> int:
    return x86_64 if not _ARM or aarch64 is None else aarch64


def attempt(name: str, control: str = "root") -> Callable[[Callable[[Targets], object]], Callable[[Targets], object]]:
    def register(function: Callable[[Targets], object]) -> Callable[[Targets], object]:
        ATTEMPTS[name] = function
        CONTROLS[name] = control
        return function

    return register


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


def _simple(name: str, control: str, function: Callable[[Targets], object]) -> None:
    attempt(name, control)(function)


# --- sockets ----------------------------------------------------------------------------------------------------------------

for _name, _family, _kind, _control in (
    ("inet", socket.AF_INET, socket.SOCK_STREAM, "step"),
    ("inet-dgram", socket.AF_INET, socket.SOCK_DGRAM, "step"),
    ("inet6", socket.AF_INET6, socket.SOCK_STREAM, "step"),
    ("netlink", socket.AF_NETLINK, socket.SOCK_RAW, "step"),
    ("packet", socket.AF_PACKET, socket.SOCK_RAW, "root"),
    ("vsock", socket.AF_VSOCK, socket.SOCK_STREAM, "step"),
    ("alg", 38, socket.SOCK_SEQPACKET, "AF_ALG may not be built"),
    ("bluetooth", 31, socket.SOCK_RAW, "AF_BLUETOOTH may not be built"),
    ("unix-dgram", socket.AF_UNIX, socket.SOCK_DGRAM, "step"),
    ("unix-seqpacket", socket.AF_UNIX, socket.SOCK_SEQPACKET, "step"),
):
    _simple(f"socket-{_name}", _control, lambda _, f=_family, k=_kind: socket.socket(f, k).close())  # type: ignore[misc]


@attempt("socketpair-dgram", "step")
def _socketpair_dgram(_: Targets) -> None:
    for sock in socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM):
        sock.close()


@attempt("socket-high-bits", "step")
def _socket_high_bits(_: Targets) -> object:
    """The kernel reads the family as an int; a filter that compares 64 bits may be fooled."""
    return syscall(number(41, 198), 0x1_0000_0000 | socket.AF_INET, socket.SOCK_STREAM, 0)


@attempt("connect-tcp", "step")
def _connect_tcp(t: Targets) -> None:
    socket.create_connection(("127.0.0.1", t["tcp_port"]), 2).close()


@attempt("connect-unix-abstract", "step")
def _connect_abstract(t: Targets) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("\0" + t["abstract_socket"])


@attempt("connect-unix-path", "step")
def _connect_path(t: Targets) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(t["path_socket"])


# --- reading ----------------------------------------------------------------------------------------------------------------

for _what in ("token", "key", "state", "policy", "project"):
    _simple(f"read-{_what}", "step", lambda t, w=_what: Path(t[w]).read_bytes())  # type: ignore[misc]
_simple("read-list-outside", "step", lambda t: os.listdir(t["folder"]))
_simple("read-shadow", "root", lambda _: Path("/etc/shadow").read_bytes())
_simple("read-through-proc-1-root", "root", lambda t: Path(f"/proc/{t.get('trace_pid', 1)}/root{t['token']}").read_bytes())
_simple("read-through-proc-cwd", "root", lambda t: Path(f"/proc/{t['runner_pid']}/cwd/.").stat())
for _what in ("environ", "mem", "maps", "fd", "cmdline"):
    for _who in ("runner", "launcher"):
        _simple(
            f"read-{_who}-{_what}",
            "root",
            lambda t, w=_what, p=_who: (  # type: ignore[misc]
                os.listdir(f"/proc/{t[p + '_pid']}/fd") if w == "fd" else os.open(f"/proc/{t[p + '_pid']}/{w}", os.O_RDONLY)
            ),
        )


@attempt("read-pid-1-environ", "root")
def _read_pid_1(t: Targets) -> bytes:
    """Pid 1 of the run is a fork of the launcher, with its memory."""
    return Path(f"/proc/{t.get('trace_pid', 1)}/environ").read_bytes()


@attempt("read-pid-1-mem", "root")
def _read_pid_1_mem(t: Targets) -> int:
    return os.open(f"/proc/{t.get('trace_pid', 1)}/mem", os.O_RDONLY)


@attempt("open-by-handle", "root")
def _open_by_handle(t: Targets) -> object:
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128))
    mount_id = ctypes.c_int()
    path = ctypes.c_char_p(t.get("handle_path", "/usr").encode())
    syscall(number(303, 264), -100, path, handle, ctypes.byref(mount_id), 0)
    fd = os.open(t.get("handle_path", "/usr"), os.O_RDONLY)
    return syscall(number(304, 265), fd, handle, os.O_RDONLY)


@attempt("inherited-descriptor", "no control: the descriptor exists only in the launcher's parent")
def _inherited(t: Targets) -> str:
    """A descriptor of the parent, passed down by mistake."""
    found = []
    for fd in range(3, 1024):
        try:
            found.append(f"{fd}={os.readlink(f'/proc/self/fd/{fd}')}")
            os.fstat(fd)
        except OSError:
            continue
    found = [text for text in found if "/proc/" not in text and "attempts.py" not in text]
    if not found:
        raise OSError(errno.EBADF, "no descriptor but 0, 1 and 2")
    return ", ".join(found)


@attempt("dmesg", "root")
def _dmesg(_: Targets) -> object:
    return syscall(number(103, 116), 3, ctypes.create_string_buffer(16), 16)


# --- writing ----------------------------------------------------------------------------------------------------------------


def _write(path: str) -> None:
    with open(path, "ab") as file:
        file.write(b"x")


_simple("write-project", "step", lambda t: _write(t["project"]))
_simple("write-outside", "step", lambda t: _write(t["writable"]))
_simple("write-etc", "root", lambda t: _write(t["etc"] + "/scaleoutd-attack"))
_simple("write-usr", "root", lambda t: _write(t["usr"] + "/scaleoutd-attack"))
_simple("write-root", "root", lambda t: os.mkdir(t["root"] + "/scaleoutd-attack"))
_simple("write-passwd", "root", lambda t: _write(t["etc"] + "/passwd"))
_simple("chmod-outside", "step", lambda t: os.chmod(t["mine"], 0o666))
_simple("chmod-usr", "root", lambda t: os.chmod(t["usr"] + "/bin", 0o755))
_simple("chmod-etc-in-view", "root", lambda t: os.chmod(t["etc"] + "/passwd", 0o644))
_simple("utime-outside", "step", lambda t: os.utime(t["mine"]))
_simple("utime-usr", "root", lambda t: os.utime(t["usr"] + "/bin"))
_simple("rename-out-of-scratch", "step", lambda t: _rename_out(t))
_simple("hardlink-from-usr", "root", lambda t: os.link(t["usr"] + "/bin/env", t["scratch"] + "/env"))
_simple("setuid-bit-in-scratch", "no control: the act is allowed, nosuid makes it harmless", lambda t: _setuid_file(t))
_simple(
    "write-oom-score-adj",
    "CAP_SYS_RESOURCE may be missing from this machine's root",
    lambda _: Path("/proc/self/oom_score_adj").write_text("-500"),
)
_simple("write-sysctl", "root", lambda _: open("/proc/sys/kernel/hostname", "r+b").close())
_simple(
    "write-proc-uid-map", "no control: needs a fresh user namespace", lambda _: Path("/proc/self/uid_map").write_text("0 0 1")
)
_simple("write-pid-1-oom", "root", lambda _: open("/proc/1/oom_score_adj", "r+b").close())
_simple("write-cgroup", "no control: the machine's may be read-only", lambda _: _move_to_another_cgroup())
_simple("read-cgroup", "root", lambda _: os.listdir("/sys/fs/cgroup"))


def _move_to_another_cgroup() -> None:
    """Opens the list of processes of the machine's own group, of version 2 or 1, for writing; nothing is written."""
    for group in ("", "/memory"):
        if os.path.exists(f"/sys/fs/cgroup{group}/cgroup.procs"):
            os.close(os.open(f"/sys/fs/cgroup{group}/cgroup.procs", os.O_WRONLY))
            return
    raise OSError(errno.ENOENT, "no cgroup is in the view")


def _rename_out(t: Targets) -> None:
    source = t["scratch"] + "/renamed"
    _write(source)
    os.rename(source, t["folder_writable"] + "/renamed")


def _setuid_file(t: Targets) -> None:
    """A copy of id with the setuid bit: executing it must not change the uid (nosuid, no_new_privs, no execute right)."""
    path = t["scratch"] + "/suid"
    Path(path).write_bytes(Path("/usr/bin/id").read_bytes())
    os.chmod(path, 0o4755)
    if os.spawnv(os.P_WAIT, path, ["id"]) == 127:
        raise OSError(errno.EACCES, "cannot execute in scratch")


# --- devices ----------------------------------------------------------------------------------------------------------------

for _device in ("kmsg", "mem", "tty", "ptmx", "vda", "fuse", "kvm", "loop-control", "vsock", "net/tun"):
    _simple(
        f"device-{_device.replace('/', '-')}",
        "root" if _device in ("kmsg", "ptmx") else "no control: the device may not exist",
        lambda _, d=_device: os.close(os.open("/dev/" + str(d), os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY)),  # type: ignore[misc]
    )
_simple("mknod-char", "root", lambda t: os.mknod(t["scratch"] + "/mem", stat.S_IFCHR | 0o666, os.makedev(1, 1)))
_simple("mknod-block", "root", lambda t: os.mknod(t["scratch"] + "/disk", stat.S_IFBLK | 0o666, os.makedev(254, 0)))


@attempt("tiocsti", "root")
def _tiocsti(_: Targets) -> object:
    """Types into a terminal; the low 32 bits are what the kernel reads."""
    try:
        return f"returned {fcntl.ioctl(0, 0x5412, b'x')!r}"
    except OSError as exc:
        if exc.errno == errno.EPERM:
            raise
        return "reached"


@attempt("tiocsti-high-bits", "root")
def _tiocsti_high(_: Targets) -> object:
    return reach(number(16, 29), 0, 0xFFFFFFFF_00005412, ctypes.create_string_buffer(b"x"))


@attempt("tioclinux", "root")
def _tioclinux(_: Targets) -> object:
    return reach(number(16, 29), 0, 0x541C, ctypes.create_string_buffer(b"\x03"))


# --- namespaces and mounts --------------------------------------------------------------------------------------------------

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
    _simple(f"unshare-{_name}", "root", lambda _, f=_flag: syscall(number(272, 97), f))  # type: ignore[misc]


@attempt("clone-newuser", "root")
def _clone(_: Targets) -> object:
    pid = syscall(number(56, 220), 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


@attempt("clone3-newuser", "root")
def _clone3(_: Targets) -> object:
    arguments = ctypes.create_string_buffer(struct.pack("11Q", 0x10000000, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, 0))
    pid = syscall(435, arguments, 88)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


_simple("setns", "root", lambda _: syscall(number(308, 268), os.open("/proc/self/ns/uts", os.O_RDONLY), 0))
_simple("mount-tmpfs", "root", lambda t: _mount(t, b"tmpfs", 0))
_simple("mount-bind", "root", lambda t: _mount(t, None, 4096))
_simple("mount-remount-rw", "root", lambda t: _remount(t))
_simple("umount", "root", lambda t: reach(number(166, 39), ctypes.c_char_p(t["scratch"].encode() + b"/none"), 2))
_simple("pivot-root", "root", lambda _: reach(number(155, 41), ctypes.c_char_p(b"/none"), ctypes.c_char_p(b"/none")))
_simple("chroot", "root", lambda t: os.chroot(t["scratch"]))
_simple("open-tree", "root", lambda _: syscall(428, -100, ctypes.c_char_p(b"/"), 1))
_simple("fsopen", "root", lambda _: syscall(430, ctypes.c_char_p(b"tmpfs"), 0))
_simple("mount-setattr", "root", lambda _: reach(442, -100, ctypes.c_char_p(b"/none"), 0, ctypes.create_string_buffer(32), 32))


def _mount(t: Targets, kind: bytes | None, flags: int) -> object:
    where = ctypes.c_char_p(t["scratch"].encode())
    source = ctypes.c_char_p(b"/usr")
    return syscall(number(165, 40), source, where, ctypes.c_char_p(kind), flags, ctypes.c_char_p(None))


def _remount(t: Targets) -> object:
    _mount_flags = 32 | 4096  # MS_REMOUNT | MS_BIND
    where = ctypes.c_char_p(t["remount"].encode())
    return syscall(number(165, 40), ctypes.c_char_p(b"none"), where, ctypes.c_char_p(None), _mount_flags, ctypes.c_char_p(None))


# --- other processes and privileges -----------------------------------------------------------------------------------------


def _kill(pid: int, sig: int = 0) -> None:
    os.kill(pid, sig)


_simple("kill-victim", "step", lambda t: _kill(t["victim_pid"]))
_simple("kill-launcher", "root", lambda t: _kill(t["launcher_pid"]))
_simple("kill-runner", "root", lambda t: _kill(t["runner_pid"]))
_simple("tgkill-victim", "step", lambda t: syscall(number(234, 131), t["victim_pid"], t["victim_pid"], 0))
_simple("pidfd-victim", "step", lambda t: os.pidfd_open(t["victim_pid"]))
_simple(
    "pidfd-signal-victim",
    "step",
    lambda t: syscall(number(424), os.pidfd_open(t["victim_pid"]), 0, 0, 0),
)
_simple("pidfd-getfd-victim", "root", lambda t: syscall(number(438), os.pidfd_open(t["victim_pid"]), 0, 0))
_simple("ptrace-child", "step", lambda _: _ptrace_child())
_simple("ptrace-pid-1", "root", lambda t: reach(number(101, 117), 16, t.get("trace_pid", 1), 0, 0))
_simple("process-vm-readv", "root", lambda t: _vm_readv(t))
_simple("kcmp", "root", lambda _: syscall(number(312, 272), os.getpid(), os.getpid(), 0, 0, 0))
_simple("prlimit-pid-1", "root", lambda _: resource.prlimit(1, resource.RLIMIT_NOFILE))
_simple("priority-of-victim", "step", lambda t: os.setpriority(os.PRIO_PROCESS, t["victim_pid"], 19))
_simple("priority-raise", "root", lambda _: os.setpriority(os.PRIO_PROCESS, 0, -5))
_simple("realtime", "root", lambda _: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))
_simple("setuid-0", "root", lambda _: os.setuid(0))
_simple("setgid-0", "root", lambda _: os.setgid(0))
_simple("setgroups", "root", lambda _: os.setgroups([0]))
_simple("setresuid-other", "root", lambda _: os.setresuid(12346, 12346, 12346))
_simple("sethostname", "root", lambda t: socket.sethostname(t["hostname"]))
_simple("rlimit-raise", "CAP_SYS_RESOURCE may be missing from this machine's root", lambda _: _raise_rlimit())


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


@attempt("capabilities", "root")
def _capabilities(_: Targets) -> str:
    text = Path("/proc/self/status").read_text()
    sets = {line.split()[0]: line.split()[1] for line in text.splitlines() if line.startswith("Cap")}
    if not any(int(value, 16) for value in sets.values()):
        raise OSError(errno.EPERM, "every capability set, the bounding set too, is empty")
    return str(sets)


# --- kernel surfaces --------------------------------------------------------------------------------------------------------

_simple(
    "bpf",
    "root",
    lambda _: syscall(number(321, 280), 0, ctypes.create_string_buffer(struct.pack("4I", 2, 4, 4, 1) + bytes(104)), 120),
)
_simple("io-uring", "step", lambda _: syscall(425, 4, ctypes.create_string_buffer(120)))
_simple("userfaultfd", "root", lambda _: syscall(number(323, 282), os.O_CLOEXEC))
_simple("keyctl", "step", lambda _: syscall(number(250, 219), 0, -3, 1))
_simple(
    "add-key",
    "step",
    lambda _: syscall(number(248, 217), ctypes.c_char_p(b"user"), ctypes.c_char_p(b"k"), ctypes.c_char_p(b"v"), 1, -3),
)
_simple("perf-event-open", "root", lambda _: _perf())
_simple("init-module", "modules may not be built", lambda _: reach(number(175, 105), 0, 0, ctypes.c_char_p(b"")))
_simple("kexec-load", "kexec may not be built", lambda _: reach(number(246, 104), 0, 9999, 0, 0xFFFFFFFF))
_simple("reboot", "root", lambda _: reach(number(169, 142), 1, 2, 3, 0))
_simple("swapon", "root", lambda _: reach(number(167, 224), ctypes.c_char_p(b"/none"), 0))
_simple("settimeofday", "root", lambda _: reach(number(164, 170), ctypes.create_string_buffer(b"\xff" * 16), 0))
_simple("iopl", "port access may not be built", lambda _: reach(172, 4) if not _ARM else syscall(172, 4))
_simple("acct", "root", lambda _: reach(number(163, 89), ctypes.c_char_p(b"/none")))
_simple("quotactl", "root", lambda _: reach(number(179, 60), 0, ctypes.c_char_p(b"/none"), 0, 0))
_simple("fanotify", "root", lambda _: syscall(number(300, 262), 0, 0))
_simple("personality-no-aslr", "step", lambda _: syscall(number(135, 92), 0x0040000))
_simple("memfd-secret", "memfd_secret may not be enabled", lambda _: syscall(447, 0))
_simple("landlock-again", "step", lambda _: syscall(444, 0, 0, 1))
_simple("seccomp-listener", "step", lambda _: reach(number(317, 277), 1, 8, 0))
_simple("execveat-memfd", "step", lambda _: reach(number(322, 281), 99, ctypes.c_char_p(b""), 0, 0, 0x1000))
_simple("modify-ldt", "step", lambda _: syscall(154, 0, ctypes.create_string_buffer(16), 16) if not _ARM else syscall(9999))
_simple("x32-call", "x32 may not be built", lambda _: syscall(0x40000000 | 39) if not _ARM else syscall(9999))
_simple("exec-in-scratch", "step", lambda t: _exec_in_scratch(t))
_simple("exec-in-tmp", "step", lambda t: _exec_in_scratch({"scratch": t["tmp"]}))
_simple("core-dump", "root", lambda t: _core_dump(t))


def _perf() -> object:
    attributes = ctypes.create_string_buffer(struct.pack("IIQ", 1, 128, 0) + bytes(112))
    return syscall(number(298, 241), attributes, 0, -1, -1, 0)


@attempt("ia32-call", "IA32 emulation may not be built")
def _ia32(_: Targets) -> object:
    """getpid by int 0x80: the filter must see the foreign architecture."""
    if _ARM:
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


def main() -> None:
    name, targets = sys.argv[1], json.loads(sys.argv[2])
    try:
        detail = ATTEMPTS[name](targets)
        answer = {"outcome": "allowed", "detail": str(detail)[:200]}
    except OSError as exc:
        answer = {"outcome": "denied", "detail": errno.errorcode.get(exc.errno or 0, "") + f" {exc.strerror or exc}"[:200]}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
