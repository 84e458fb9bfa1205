# SPDX-License-Identifier: Apache-2.0
"""What a step sees, as a list of acts that can be printed and tested before the kernel is touched.

The view is a tmpfs with: the plan's binds and links; /proc of the run's pid namespace; /dev with null, zero, full,
urandom and the nodes of the plan's devices; sized /tmp and /dev/shm; scratch at /scratch; a few synthetic files of /etc; the
topology files of /sys.  Nothing of it is writable but /tmp, /dev/shm and /scratch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scaleoutd.core.plan import SandboxPlan
from scaleoutd.errors import LaunchError
from scaleoutd.step import syscalls
from scaleoutd.step.landlock import Grant

READ_ONLY = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
WRITABLE = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
# Read-only: a device is written to all the same, but its times, which are those of the host's, are not.
DEVICE = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NOEXEC

DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/urandom")
TOPOLOGY = ("/sys/devices/system/cpu", "/sys/devices/system/node")
SCRATCH = "/scratch"
OURS = ("dev", "proc", "sys")  # top folders that no plan may bind or link into


@dataclass(frozen=True)
class Attach:
    """A copy of the host's mount `source` at `target`, with more mount attributes; left out if `optional` and absent."""

    source: str
    target: str
    attributes: int
    optional: bool = False


@dataclass(frozen=True)
class Tmpfs:
    """A file system in memory of at most `size_bytes`, writable by everybody as /tmp is."""

    target: str
    size_bytes: int


@dataclass(frozen=True)
class SmallFile:
    """A file made for the run."""

    path: str
    content: str


@dataclass(frozen=True)
class View:
    """What is made in a root, and what the step may do there."""

    attach: tuple[Attach, ...]
    tmpfs: tuple[Tmpfs, ...]
    files: tuple[SmallFile, ...]
    links: tuple[tuple[str, str], ...]
    grants: tuple[Grant, ...]


# What every view has, whatever the plan: a sandbox is built this far before there is one.
BARE = View(
    attach=(
        *(Attach(device, device, DEVICE) for device in DEVICES),
        *(Attach(path, path, READ_ONLY | syscalls.MOUNT_ATTR_NOEXEC, optional=True) for path in TOPOLOGY),
    ),
    tmpfs=(),
    files=(),
    links=(
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ),
    grants=(),
)


def check_path(path: str) -> None:
    """A path of the view is absolute and plain: no empty, dot or dot-dot part."""
    parts = path.split("/")[1:]
    if not path.startswith("/") or any(part in ("", ".", "..") for part in parts):
        raise LaunchError(f"cannot build the view: {path!r} is not a plain absolute path")


def of_plan(plan: SandboxPlan, uid: int, gid: int, nodes: Sequence[str] = ()) -> View:
    """The whole view of `plan` for a step that runs as `uid`; `nodes` are those that its devices stand for (devices.py)."""
    more = beside_bare(plan, uid, gid, nodes)
    return View((*BARE.attach, *more.attach), more.tmpfs, more.files, (*more.links, *BARE.links), more.grants)


def beside_bare(plan: SandboxPlan, uid: int, gid: int, nodes: Sequence[str] = ()) -> View:
    """What `plan` adds to BARE, and what may be done in all of it."""
    for path in [bind.target for bind in plan.binds] + [link.path for link in plan.links]:
        check_path(path)
        if path.split("/")[1] in OURS:
            raise LaunchError(f"cannot build the view: {path} would change what every view has")
    binds = sorted(plan.binds, key=lambda bind: bind.target.count("/"))  # a folder before what is mounted inside it
    attach = [
        Attach(bind.source, bind.target, READ_ONLY | (0 if bind.executable else syscalls.MOUNT_ATTR_NOEXEC)) for bind in binds
    ]
    attach += [Attach(node, node, DEVICE) for node in nodes]
    attach.append(Attach(plan.scratch, SCRATCH, WRITABLE))
    taken = {bind.target for bind in binds}
    return View(
        attach=tuple(attach),
        tmpfs=(Tmpfs("/tmp", plan.limits.tmp_bytes), Tmpfs("/dev/shm", plan.limits.shm_bytes)),  # noqa: S108
        files=tuple(file for file in _files(uid, gid) if file.path not in taken and "/etc" not in taken),
        links=tuple((link.path, link.target) for link in plan.links),
        grants=_grants(plan, nodes),
    )


def _files(uid: int, gid: int) -> tuple[SmallFile, ...]:
    """Synthetic /etc: what getpwuid, getaddrinfo and friends read."""
    return (
        SmallFile("/etc/passwd", f"step:x:{uid}:{gid}:step:/scratch:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
        SmallFile("/etc/group", f"step:x:{gid}:\nnogroup:x:65534:\n"),
        SmallFile("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n"),
        SmallFile("/etc/hosts", "127.0.0.1 localhost step\n::1 localhost\n"),
        SmallFile("/etc/resolv.conf", ""),
    )


def _grants(plan: SandboxPlan, nodes: Sequence[str]) -> tuple[Grant, ...]:
    grants = [Grant("/", "list"), Grant("/proc", "read"), Grant("/etc", "read")]
    grants += [Grant(bind.target, "execute" if bind.executable else "read") for bind in plan.binds]
    grants += _device_grants(nodes)
    grants += [Grant(path, "write") for path in (SCRATCH, "/tmp", "/dev/shm")]  # noqa: S108
    return (*grants, Grant("/sys", "read"))


def _device_grants(nodes: Sequence[str]) -> list[Grant]:
    return [*(Grant(device, "device") for device in DEVICES), *(Grant(node, "driver") for node in nodes)]


def of_unit(plan: SandboxPlan, nodes: Sequence[str] = ()) -> View:
    """Backend `systemd`: the view is the unit's, the same for every task; Landlock picks this task's part of it.

    Nothing may be listed but that part: a right to list / would be one for the data sets of other tasks.
    """
    grants = [Grant("/proc", "read"), Grant("/etc", "read"), *(Grant(path, "read") for path in TOPOLOGY)]
    grants += [Grant(bind.source, "execute" if bind.executable else "read") for bind in plan.binds]
    grants += _device_grants(nodes)
    grants += [Grant(path, "write") for path in (plan.scratch, "/tmp", "/dev/shm")]  # noqa: S108
    return View((), (), (), (), tuple(grants))


def of_host(plan: SandboxPlan, nodes: Sequence[str] = ()) -> View:
    """Backend `inner`: no view of its own, only Landlock's list.  The command finds everything at its source; what a target
    would be says to people what the source is for."""
    grants = [Grant(bind.source, "execute" if bind.executable else "read") for bind in plan.binds]
    grants += _device_grants(nodes)
    grants.append(Grant(plan.scratch, "write"))
    return View((), (), (), (), tuple(grants))
