# SPDX-License-Identifier: Apache-2.0
"""Namespaces and the mount view (namespaces(7), user_namespaces(7), pivot_root(2), open_tree(2), mount_setattr(2)).

Root makes mounts as root in a mount namespace of the run: paths below a 0700 home stay reachable as sources, and no user
namespace is needed.  An ordinary user's launcher moves itself, once, into a user namespace that maps its own uid and gid and
nothing else; from then on both cases are the same code.  A root is made in two parts: what every run has, before there is a
plan (`enter`), and what the plan names (`fill`).  The sources of the plan are opened by the launcher, in its own mount
namespace: a mount that the host made after `enter` is there.  Every target is walked from the new root by descriptors without
following links.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import replace

from scaleoutd.errors import KernelSupportError
from scaleoutd.step import syscalls
from scaleoutd.step.view import BARE, View

_OF_RUN = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWNET | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS | syscalls.CLONE_NEWCGROUP
_STAGING = "/tmp"  # noqa: S108 - the new root is attached here for an instant, inside the run's own mount namespace
CAP_SYS_ADMIN = 21  # linux/capability.h
HINT_USER_NAMESPACES = (
    "Allow user namespaces (sysctl user.max_user_namespaces > 0, kernel.unprivileged_userns_clone=1; on Ubuntu"
    " kernel.apparmor_restrict_unprivileged_userns=0 or an AppArmor profile with userns), run as root, or use the service."
)


def why_not() -> KernelSupportError | None:
    """Why there can be no namespaces; for an ordinary user this makes the user namespace, once.  Not raised: the backend `inner`
    does not need them."""
    try:
        if os.geteuid() == 0:
            check_root()
        else:
            enter_user_namespace()
    except KernelSupportError as exc:
        return exc
    return None


def enter_user_namespace() -> None:
    """Moves this single-threaded process into an own user namespace with uid and gid mapped to themselves."""
    uid, gid = os.geteuid(), os.getegid()
    try:
        # /proc/self/uid_map belongs to root while the process is not dumpable (proc(5)).
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        for name, line in (("setgroups", "deny"), ("gid_map", f"{gid} {gid} 1"), ("uid_map", f"{uid} {uid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(line)
        syscalls.unshare(syscalls.CLONE_NEWNS)  # AppArmor lets unshare pass and takes the capabilities: find out now
    except OSError as exc:
        raise KernelSupportError(
            f"cannot make a user namespace: {exc.strerror} ({exc.filename})",
            code="namespaces-denied",
            hint=HINT_USER_NAMESPACES,
        ) from exc
    finally:
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)


def check_root() -> None:
    """Root makes mounts and namespaces by CAP_SYS_ADMIN, which a container's root may lack."""
    with open("/proc/self/status") as file:
        held = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
    if not held >> CAP_SYS_ADMIN & 1:
        raise KernelSupportError(
            "cannot make namespaces: this root has no CAP_SYS_ADMIN", code="namespaces-denied", hint=HINT_USER_NAMESPACES
        )


def fork_in_pid_namespace() -> int:
    """Forks; the child is pid 1 of a new pid namespace, and a child of the caller.  Returns as os.fork does."""
    return _fork_as_root() if os.geteuid() == 0 else _fork_through_middle()


def _fork_as_root() -> int:
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.unshare(syscalls.CLONE_NEWPID)  # concerns children only
        try:
            pid = os.fork()
        except BaseException:
            syscalls.setns(own, syscalls.CLONE_NEWPID)
            raise
        if pid:
            syscalls.setns(own, syscalls.CLONE_NEWPID)
        return pid
    finally:
        os.close(own)


def _fork_through_middle() -> int:
    """Going back to the own pid namespace needs a capability over it, which an ordinary user has not: a process between
    forks and ends, and the launcher, as a subreaper, becomes the parent of pid 1 (prctl(2))."""
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    read, write = os.pipe2(os.O_CLOEXEC)
    middle = os.fork()
    if middle == 0:
        try:
            syscalls.unshare(syscalls.CLONE_NEWPID)
            pid = os.fork()
            if pid == 0:
                return 0
            os.write(write, b"%d" % pid)
        except OSError as exc:
            os.write(write, b"-%d" % (exc.errno or 1))
        os._exit(0)
    os.close(write)
    _, _ = os.waitpid(middle, 0)
    answer = int(os.read(read, 32) or b"-3")
    os.close(read)
    if answer < 0:
        raise OSError(-answer, os.strerror(-answer), "unshare or fork")
    return answer


def enter() -> int:
    """Leaves the launcher's namespaces for a root that has what every view has (view.BARE); `fill` adds what a plan names.

    The root's descriptor, which is the caller's.  OSError names the path at fault.
    """
    syscalls.unshare(_OF_RUN)
    syscalls.sethostname("step")
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    present = [attach for attach in BARE.attach if not attach.optional or os.path.exists(attach.source)]
    bare = replace(BARE, attach=tuple(present))
    trees = open_sources(bare)
    syscalls.mount("step", _STAGING, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "size=1m,nr_inodes=8k,mode=0755")
    os.chdir(_STAGING)
    root = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for path in ("/proc", "/sys", "/etc", "/dev"):
        os.close(_make(root, path, folder=True))
    _put(root, bare, trees)
    syscalls.mount("proc", "./proc", "proc", syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC)
    syscalls.pivot_root(".", ".")
    syscalls.umount2(".", syscalls.MNT_DETACH)
    os.chdir("/")
    return root


def fill(root: int, view: View, trees: Sequence[int]) -> None:
    """Completes the root that `enter` made with `view` and the `trees` of its sources; from then on it is read-only."""
    _put(root, view, trees)
    make_read_only("/")


def _put(root: int, view: View, trees: Sequence[int]) -> None:
    """Acts in the working folder, which is `root`."""
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    # Before the binds: one of them may lie below /tmp.
    for tmpfs in view.tmpfs:
        os.close(_make(root, tmpfs.target, folder=True))
        syscalls.mount("step", "." + tmpfs.target, "tmpfs", flags, f"size={tmpfs.size_bytes},nr_inodes=64k,mode=1777")
    for path, target in view.links:
        parent, name = os.path.split(path)
        fd = _make(root, parent, folder=True)
        os.symlink(target, name, dir_fd=fd)
        os.close(fd)
    for file in view.files:
        _write(root, file.path, file.content)
    for tree, attach in zip(trees, view.attach, strict=True):
        _attach(root, tree, attach.target, attach.attributes)


def open_sources(view: View) -> list[int]:
    """Detached copies of the mounts that `view` attaches, as the caller sees them."""
    trees: list[int] = []
    try:
        for attach in view.attach:
            trees.append(_open_source(attach.source))
    except BaseException:
        for tree in trees:
            os.close(tree)
        raise
    return trees


def make_read_only(path: str) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        syscalls.mount_setattr(fd, syscalls.MOUNT_ATTR_RDONLY, recursive=False)
    finally:
        os.close(fd)


def _open_source(path: str) -> int:
    try:
        return syscalls.open_tree(path)
    except OSError as exc:
        raise OSError(exc.errno, exc.strerror, path) from exc


def _attach(root: int, tree: int, target: str, attributes: int) -> None:
    try:
        syscalls.mount_setattr(tree, attributes)
        is_folder = stat.S_ISDIR(os.fstat(tree).st_mode)
        where = _make(root, target, folder=is_folder)
        try:
            syscalls.move_mount(tree, where)
        finally:
            os.close(where)
    except OSError as exc:
        raise OSError(exc.errno, exc.strerror, target) from exc
    finally:
        os.close(tree)


def _make(root: int, path: str, *, folder: bool) -> int:
    """An O_PATH descriptor of `path` below `root`; what is missing is made, no link is followed."""
    parts = [part for part in path.split("/") if part]
    fd = os.dup(root)
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC | (0 if last and not folder else os.O_DIRECTORY)
        try:
            child = os.open(part, flags, dir_fd=fd)
        except FileNotFoundError:
            if last and not folder:
                os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=fd))
            else:
                os.mkdir(part, 0o755, dir_fd=fd)
            child = os.open(part, flags, dir_fd=fd)
        os.close(fd)
        fd = child
    return fd


def _write(root: int, path: str, content: str) -> None:
    parent, name = os.path.split(path)
    folder = _make(root, parent, folder=True)
    try:
        fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=folder)
        os.write(fd, content.encode())
        os.close(fd)
    finally:
        os.close(folder)
