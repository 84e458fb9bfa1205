# SPDX-License-Identifier: Apache-2.0
"""Devices, those that a view does not have and those that a terminal is."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat

from .registry import FOREIGN_DEVICE, Targets, attempt, number, reach, simple

FAKES = (
    "mem", "tty", "ptmx", "vda", "fuse", "kvm", "loop-control", "vsock", "net/tun", "uinput", "dri/renderD128", "nvidia0", "kfd",
    "userfaultfd", "hwrng", "mapper/control", "vhost-net",
)  # fmt: skip

# What the machine itself lacks, the arena shows in its place (hosts.py).
for _device in ("kmsg", *FAKES):
    simple(
        f"device-{_device.replace('/', '-')}",
        FOREIGN_DEVICE,
        "root" if _device == "kmsg" else "step",
        lambda _, d=_device: os.close(os.open("/dev/" + str(d), os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY)),  # type: ignore[misc]
    )
simple("mknod-char", FOREIGN_DEVICE, "root", lambda t: os.mknod(t["scratch"] + "/mem", stat.S_IFCHR | 0o666, os.makedev(1, 1)))
simple(
    "mknod-block", FOREIGN_DEVICE, "root", lambda t: os.mknod(t["scratch"] + "/disk", stat.S_IFBLK | 0o666, os.makedev(254, 0))
)


@attempt("tiocsti", FOREIGN_DEVICE, "root")
def _tiocsti(_: Targets) -> object:
    """Types into a terminal; the low 32 bits are what the kernel reads."""
    try:
        return f"returned {fcntl.ioctl(0, 0x5412, b'x')!r}"
    except OSError as exc:
        if exc.errno == errno.EPERM:
            raise
        return "reached"


@attempt("tiocsti-high-bits", FOREIGN_DEVICE, "root")
def _tiocsti_high(_: Targets) -> object:
    return reach(number(16, 29), 0, 0xFFFFFFFF_00005412, ctypes.create_string_buffer(b"x"))


@attempt("tioclinux", FOREIGN_DEVICE, "root")
def _tioclinux(_: Targets) -> object:
    return reach(number(16, 29), 0, 0x541C, ctypes.create_string_buffer(b"\x03"))
