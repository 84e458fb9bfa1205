# SPDX-License-Identifier: Apache-2.0
"""Files, folders and processes that are not the step's."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from pathlib import Path

from .registry import READ_OUTSIDE, Targets, attempt, number, open_as, simple, syscall

for _what in ("token", "key", "state", "policy", "project"):
    simple(f"read-{_what}", READ_OUTSIDE, "step", lambda t, w=_what: Path(t[w]).read_bytes())  # type: ignore[misc]
simple("read-list-outside", READ_OUTSIDE, "step", lambda t: os.listdir(t["folder"]))
simple("read-shadow", READ_OUTSIDE, "root", lambda _: Path("/etc/shadow").read_bytes())
simple(
    "read-through-proc-1-root",
    READ_OUTSIDE,
    "root",
    lambda t: Path(f"/proc/{t.get('trace_pid', 1)}/root{t['token']}").read_bytes(),
)
simple("read-through-proc-cwd", READ_OUTSIDE, "root", lambda t: Path(f"/proc/{t['runner_pid']}/cwd/.").stat())
for _what in ("environ", "mem", "maps", "fd", "cmdline"):
    for _who in ("runner", "launcher"):
        simple(
            f"read-{_who}-{_what}",
            READ_OUTSIDE,
            "root",
            lambda t, w=_what, p=_who: (  # type: ignore[misc]
                os.listdir(f"/proc/{t[p + '_pid']}/fd") if w == "fd" else os.open(f"/proc/{t[p + '_pid']}/{w}", os.O_RDONLY)
            ),
        )


@attempt("read-pid-1-environ", READ_OUTSIDE, "root")
def _read_pid_1(t: Targets) -> bytes:
    """Pid 1 of the run is a fork of the launcher, with its memory."""
    return Path(f"/proc/{t.get('trace_pid', 1)}/environ").read_bytes()


@attempt("read-pid-1-mem", READ_OUTSIDE, "root")
def _read_pid_1_mem(t: Targets) -> int:
    return os.open(f"/proc/{t.get('trace_pid', 1)}/mem", os.O_RDONLY)


@attempt("open-by-handle", READ_OUTSIDE, "root")
def _open_by_handle(t: Targets) -> object:
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128))
    mount_id = ctypes.c_int()
    path = ctypes.c_char_p(t.get("handle_path", "/usr").encode())
    syscall(number(303, 264), -100, path, handle, ctypes.byref(mount_id), 0)
    fd = os.open(t.get("handle_path", "/usr"), os.O_RDONLY)
    return syscall(number(304, 265), fd, handle, os.O_RDONLY)


@attempt("inherited-descriptor", READ_OUTSIDE)
def _inherited(t: Targets) -> str:
    """A descriptor of the parent, passed down by mistake."""
    found = []
    for fd in range(3, 1024):
        try:
            found.append(f"{fd}={os.readlink(f'/proc/self/fd/{fd}')}")
            os.fstat(fd)
        except OSError:
            continue
    found = [text for text in found if "/proc/" not in text and "/attempts/" not in text]
    if not found:
        raise OSError(errno.EBADF, "no descriptor but 0, 1 and 2")
    return ", ".join(found)


@attempt("dmesg", READ_OUTSIDE, "root")
def _dmesg(_: Targets) -> object:
    return syscall(number(103, 116), 3, ctypes.create_string_buffer(16), 16)


simple("read-neighbour", READ_OUTSIDE, "step", lambda t: Path(t["neighbour"]).read_bytes())  # another run's result
simple("read-neighbour-shm", READ_OUTSIDE, "step", lambda t: Path(t["neighbour_shm"]).read_bytes())
simple("read-neighbour-tmp", READ_OUTSIDE, "step", lambda t: Path(t["neighbour_tmp"]).read_bytes())
simple("stat-outside", READ_OUTSIDE, "step", lambda t: os.stat(t["token"]))
simple("readlink-outside", READ_OUTSIDE, "step", lambda t: os.readlink(t["link"]))
simple("getxattr-outside", READ_OUTSIDE, "step", lambda t: os.listxattr(t["token"]))
simple("watch-outside", READ_OUTSIDE, "step", lambda t: _watch(t))
simple("read-by-dotdot", READ_OUTSIDE, "step", lambda t: Path("../" * 40 + t["token"].lstrip("/")).read_bytes())
simple("read-runner-exe", READ_OUTSIDE, "root", lambda t: os.readlink(f"/proc/{t['runner_pid']}/exe"))
simple("read-runner-root", READ_OUTSIDE, "root", lambda t: os.listdir(f"/proc/{t['runner_pid']}/root"))
simple("read-victim-stat", READ_OUTSIDE, "step", lambda t: Path(f"/proc/{t['victim_pid']}/stat").read_bytes())
simple("read-kcore", READ_OUTSIDE, "root", lambda _: open_as("/proc/kcore", os.O_RDONLY), "/proc/kcore")
simple("read-debugfs", READ_OUTSIDE, "root", lambda _: os.listdir("/sys/kernel/debug"), "debugfs")
simple("read-block-devices", READ_OUTSIDE, "step", lambda _: os.listdir("/sys/block"))
simple("read-modules", READ_OUTSIDE, "step", lambda _: os.listdir("/sys/module"))
simple("read-host-interfaces", READ_OUTSIDE, "step", lambda _: os.listdir("/sys/class/net"))
simple("read-machine-id", READ_OUTSIDE, "step", lambda _: Path("/etc/machine-id").read_bytes(), "a machine id")
simple("read-sysv-shm", READ_OUTSIDE, "step", lambda t: syscall(number(29, 194), t["shm_key"], 0, 0))
simple("read-through-symlink", READ_OUTSIDE, "step", lambda t: _through_link(t))


def _watch(t: Targets) -> int:
    fd = syscall(number(294, 26), 0)
    return syscall(number(254, 27), fd, ctypes.c_char_p(t["folder"].encode()), 0xFFF)


def _through_link(t: Targets) -> bytes:
    link = Path(t["scratch"], "link")
    link.unlink(missing_ok=True)
    link.symlink_to(t["token"])
    return link.read_bytes()


def _through_root(t: Targets) -> bytes:
    return Path(f"/proc/{t.get('trace_pid', 1)}/root{t['token']}").read_bytes()
