# SPDX-License-Identifier: Apache-2.0
"""Acts that a directive of a unit must forbid, as a program that runs in one: `acts NAME…` prints {"name": "done" or why not}.

Standard library, nothing of ours: it is copied into guests and runs as whoever the unit's user is.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

LIBC = ctypes.CDLL(None, use_errno=True)
OUTSIDE_PORT = 4711  # of a listener on the guest's loopback
QUEUE_KEY = 4711  # of a System V message queue of the guest


def call(name: str, *arguments: object) -> int:
    """A function of libc; OSError when it answers -1."""
    result: int = getattr(LIBC, name)(*arguments)
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def syscall(number: int, *arguments: object) -> int:
    return call("syscall", ctypes.c_long(number), *arguments)


def write(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))


def update(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY))


def read(path: str) -> None:
    with open(path, "rb") as file:
        file.read(1)


def be_there(path: str) -> None:
    os.stat(path)


def in_child(act: Callable[[], object]) -> None:
    """For an act that may kill; OSError with the signal's name."""
    pid = os.fork()
    if pid == 0:
        try:
            act()
        except OSError as exc:
            os._exit(exc.errno or 1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(max(code, 0), signal.Signals(-code).name if code < 0 else os.strerror(code))


def run_machine_code(code: bytes, protection: int) -> int:
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | protection)
    page.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    call("mprotect", ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_EXEC)
    return int(ctypes.CFUNCTYPE(ctypes.c_int)(address)())


def foreign_architecture() -> None:
    """getpid(2) by the 32-bit gate: mov eax, 20; int 0x80; ret."""
    assert run_machine_code(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3", 0) == os.getpid()


def writable_code() -> None:
    mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def setuid_program() -> None:
    found = subprocess.run(["/usr/local/bin/setuid-id", "-u"], capture_output=True, text=True).stdout.strip()
    if found != "0":
        raise OSError(errno.EPERM, f"it ran as {found}")


def connect() -> None:
    socket.create_connection(("127.0.0.1", OUTSIDE_PORT), 2).close()


def open_socket(family: int, kind: int = socket.SOCK_DGRAM) -> None:
    socket.socket(family, kind).close()


def setuid_file(path: str) -> None:
    write(path)
    try:
        os.chmod(path, 0o4755)
    finally:
        os.unlink(path)


def remove_later(path: str) -> None:
    os.mkdir(path)
    os.rmdir(path)


def mount() -> None:
    call("mount", b"probe", b"/mnt", b"tmpfs", 0, None)
    call("umount", b"/mnt")


def mount_for_all() -> None:
    """A mount that PID 1, and so every unit started later, would have too."""
    call("mount", b"probe", b"/mnt", b"tmpfs", 0, None)
    try:
        with open("/proc/1/mountinfo") as file:
            if not any(line.split()[4] == "/mnt" for line in file):
                raise OSError(errno.EXDEV, "the mount is the unit's own")
    finally:
        call("umount", b"/mnt")


def realtime() -> None:
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


def namespace() -> None:
    in_child(lambda: call("unshare", 0x04000000))  # CLONE_NEWUTS


def clock() -> None:
    """Reads the clock's state only, which nobody is forbidden by a capability: adjtimex(2)."""
    call("adjtimex", ctypes.create_string_buffer(512))


def key() -> None:
    call("syscall", ctypes.c_long(248), b"user", b"probe", b"x", ctypes.c_size_t(1), ctypes.c_int(-1))  # add_key, process keyring


def scratch_folder() -> str:
    """A folder in which the unit's user may write: of its state, or what everybody has."""
    state = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    return state or "/tmp"


ACTS: dict[str, Callable[[], object]] = {
    "chown": lambda: os.chown("/srv/owned", 1, 1),
    "setuid-program": setuid_program,
    "write-etc": lambda: write("/etc/probe"),
    "write-usr": lambda: write("/usr/probe"),
    "write-run": lambda: write("/run/probe"),
    "read-home": lambda: read("/root/secret"),
    "see-tmp": lambda: be_there("/tmp/outside"),
    "see-device": lambda: be_there("/dev/console"),
    "open-tun": lambda: update("/dev/net/tun"),
    "open-terminal": lambda: update("/dev/ptmx"),
    "see-queue": lambda: call("msgget", QUEUE_KEY, 0),
    "clock": clock,
    "make-cgroup": lambda: remove_later(
        next(f"/sys/fs/cgroup{p}/probe" for p in ("/memory", "") if os.path.isdir("/sys/fs/cgroup" + p))
    ),
    "set-hostname": lambda: call("sethostname", b"guest", 5),
    "read-kernel-log": lambda: call("klogctl", 10, None, 0),
    "see-modules": lambda: be_there("/usr/lib/modules/" + "".join(os.listdir("/usr/lib/modules")[:1] or ["-"])),
    "write-tunable": lambda: update("/proc/sys/net/ipv4/ip_forward"),
    "see-process": lambda: be_there("/proc/1"),
    "see-cpuinfo": lambda: read("/proc/cpuinfo"),
    "connect": connect,
    "inet-socket": lambda: open_socket(socket.AF_INET),
    "netlink-socket": lambda: open_socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "packet-socket": lambda: open_socket(socket.AF_PACKET),
    "namespace": namespace,
    "realtime": realtime,
    "setuid-file": lambda: setuid_file(f"{scratch_folder()}/probe"),
    "personality": lambda: in_child(lambda: call("personality", ctypes.c_ulong(0x0040000))),
    "writable-code": writable_code,
    "foreign-architecture": lambda: in_child(foreign_architecture),
    "mount": mount,
    "mount-for-all": mount_for_all,
    "priority": lambda: os.setpriority(os.PRIO_PROCESS, 0, 5),
    "affinity": lambda: os.sched_setaffinity(0, os.sched_getaffinity(0)),
    "add-key": key,
    "io-setup": lambda: syscall(206, 1, ctypes.byref(ctypes.c_ulong(0))),
    "io-uring": lambda: syscall(425, 1, ctypes.create_string_buffer(120)),
    "userfaultfd": lambda: syscall(323, 1),
}


def attempt(name: str) -> str:
    try:
        ACTS[name]()
    except OSError as exc:
        return errno.errorcode.get(exc.errno or 0, str(exc.strerror))
    return "done"


if __name__ == "__main__":
    print(json.dumps({name: attempt(name) for name in sys.argv[1:] or ACTS}))
