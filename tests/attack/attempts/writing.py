# SPDX-License-Identifier: Apache-2.0
"""Writing, or changing, what is not in scratch."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from .registry import OWN_CODE, PRIVILEGE, READ_OUTSIDE, WRITE_OUTSIDE, Targets, number, open_as, simple, syscall


def _write(path: str) -> None:
    with open(path, "ab") as file:
        file.write(b"x")


simple("write-project", WRITE_OUTSIDE, "step", lambda t: _write(t["project"]))
simple("write-outside", WRITE_OUTSIDE, "step", lambda t: _write(t["writable"]))
simple("write-etc", WRITE_OUTSIDE, "root", lambda t: _write(t["etc"] + "/scaleoutd-attack"))
simple("write-usr", WRITE_OUTSIDE, "root", lambda t: _write(t["usr"] + "/scaleoutd-attack"))
simple("write-root", WRITE_OUTSIDE, "root", lambda t: os.mkdir(t["root"] + "/scaleoutd-attack"))
simple("write-passwd", WRITE_OUTSIDE, "root", lambda t: _write(t["etc"] + "/passwd"))
simple("chmod-outside", WRITE_OUTSIDE, "step", lambda t: os.chmod(t["mine"], 0o666))
simple("chmod-usr", WRITE_OUTSIDE, "root", lambda t: os.chmod(t["usr"] + "/bin", 0o755))
simple("chmod-etc-in-view", WRITE_OUTSIDE, "root", lambda t: os.chmod(t["etc"] + "/passwd", 0o644))
simple("utime-outside", WRITE_OUTSIDE, "step", lambda t: os.utime(t["mine"]))
simple("utime-usr", WRITE_OUTSIDE, "root", lambda t: os.utime(t["usr"] + "/bin"))
simple("rename-out-of-scratch", WRITE_OUTSIDE, "step", lambda t: _rename_out(t))
simple("hardlink-from-usr", WRITE_OUTSIDE, "root", lambda t: os.link(t["usr"] + "/bin/env", t["scratch"] + "/env"))
simple("setuid-bit-in-scratch", OWN_CODE, "step", lambda t: _setuid_file(t))
simple(
    "write-oom-score-adj", PRIVILEGE, "root", lambda _: Path("/proc/self/oom_score_adj").write_text("-500"), "CAP_SYS_RESOURCE"
)
simple("write-sysctl", WRITE_OUTSIDE, "root", lambda _: open("/proc/sys/kernel/hostname", "r+b").close())
simple("write-proc-uid-map", PRIVILEGE, "step", lambda _: _map_root())
simple("write-pid-1-oom", WRITE_OUTSIDE, "root", lambda _: open("/proc/1/oom_score_adj", "r+b").close())
simple("write-cgroup", WRITE_OUTSIDE, "root", lambda _: _move_to_another_cgroup(), "a writable cgroup")
simple("read-cgroup", READ_OUTSIDE, "root", lambda _: os.listdir("/sys/fs/cgroup"))


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


simple("write-neighbour", WRITE_OUTSIDE, "step", lambda t: _write(t["neighbour"]))
simple("write-neighbour-shm", WRITE_OUTSIDE, "step", lambda t: open_as(t["neighbour_shm"], os.O_WRONLY))
simple("truncate-outside", WRITE_OUTSIDE, "step", lambda t: os.truncate(t["mine"], 1))
simple("chown-outside", WRITE_OUTSIDE, "step", lambda t: os.chown(t["mine"], -1, os.getegid()))
simple("setxattr-outside", WRITE_OUTSIDE, "step", lambda t: os.setxattr(t["mine"], "user.scaleoutd", b"x"), "user attributes")
simple("unlink-outside", WRITE_OUTSIDE, "step", lambda t: os.unlink(t["doomed"]))
simple("mkdir-outside", WRITE_OUTSIDE, "step", lambda t: _make_and_remove(t, os.mkdir, os.rmdir))
simple("symlink-outside", WRITE_OUTSIDE, "step", lambda t: _make_and_remove(t, lambda path: os.symlink("/", path), os.unlink))
simple("mkfifo-outside", WRITE_OUTSIDE, "step", lambda t: _make_and_remove(t, os.mkfifo, os.unlink))
simple("hardlink-of-outside", WRITE_OUTSIDE, "step", lambda t: os.link(t["mine"], t["scratch"] + "/hard"))
simple("write-through-symlink", WRITE_OUTSIDE, "step", lambda t: _write_through_link(t))
simple("write-through-proc-root", WRITE_OUTSIDE, "step", lambda t: _write("/proc/self/root" + t["writable"]))
simple("write-victim-oom", WRITE_OUTSIDE, "step", lambda t: open_as(f"/proc/{t['victim_pid']}/oom_score_adj", os.O_WRONLY))
simple("write-runner-mem", WRITE_OUTSIDE, "root", lambda t: open_as(f"/proc/{t['runner_pid']}/mem", os.O_RDWR))
simple("write-core-pattern", WRITE_OUTSIDE, "root", lambda _: open_as("/proc/sys/kernel/core_pattern", os.O_WRONLY))
simple("write-sysrq", WRITE_OUTSIDE, "root", lambda _: open_as("/proc/sysrq-trigger", os.O_WRONLY), "SysRq")
simple("write-sysfs", WRITE_OUTSIDE, "root", lambda _: open_as("/sys/devices/system/cpu/cpu0/uevent", os.O_WRONLY))


def _make_and_remove(t: Targets, make: Callable[[str], object], remove: Callable[[str], object]) -> None:
    path = t["folder_writable"] + "/made"
    make(path)
    remove(path)


def _write_through_link(t: Targets) -> None:
    link = t["scratch"] + "/to-write"
    if not os.path.lexists(link):
        os.symlink(t["writable"], link)
    _write(link)


def _map_root() -> int:
    """Root in a user namespace of one's own: the map says which one is another's."""
    line = f"0 {os.geteuid()} 1"
    pid = os.fork()
    if pid == 0:
        try:
            with suppress(OSError):  # then the map of the namespace that it is in
                syscall(number(272, 97), 0x10000000)
            Path("/proc/self/uid_map").write_text(line)
        except OSError as exc:
            os._exit(exc.errno or 1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(code, os.strerror(code))
    return pid
