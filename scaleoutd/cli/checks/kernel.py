# SPDX-License-Identifier: Apache-2.0
"""The kernel and what it lets this user do: Landlock, seccomp, user namespaces, cgroups, security modules, the clock."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from scaleoutd.cli.checks.finding import Finding, Subject, fail, ok, read_text, warn
from scaleoutd.core.clock import MAX_SET_BACK_MS, utc_text
from scaleoutd.errors import KernelSupportError, ScaleoutError
from scaleoutd.hostclock import HostClock
from scaleoutd.runner.room import read_floors
from scaleoutd.step import limits, namespaces, syscalls

OLDEST_KERNEL = (5, 12)  # mount_setattr(2)
SECCOMP_ACTIONS = ("kill_process", "errno", "user_notif", "allow")
BUILT_MS = 1_760_000_000_000  # no honest clock shows a time before this version was written


def checks(subject: Subject) -> Iterator[Finding]:
    yield kernel()
    yield landlock()
    yield seccomp()
    yield user_namespaces(subject)
    yield cgroup(subject)
    yield hidepid()
    yield security_modules()
    yield fapolicyd()
    yield fips()
    yield clock(subject)


def kernel() -> Finding:
    release = os.uname().release
    match = re.match(r"(\d+)\.(\d+)", release)
    if match and (int(match[1]), int(match[2])) >= OLDEST_KERNEL:
        return ok("kernel", f"{release} on {os.uname().machine}")
    return fail("kernel", f"{release}; expected 5.12 or later, for mount_setattr", "Update the kernel.")


def landlock() -> Finding:
    abi = syscalls.landlock_abi()
    if abi > 0:
        return ok("landlock", f"ABI {abi}")
    modules = read_text("/sys/kernel/security/lsm")
    why = f"not among the active modules ({modules})" if modules else "the kernel has none, or a container's filter hides it"
    return warn(
        "landlock",
        f"not available: {why}; mount views and uids hold the outcomes instead",
        "Nothing, while `sandbox` below is proven; else add landlock to lsm= on the kernel's command line.",
    )


def seccomp() -> Finding:
    available = (read_text("/proc/sys/kernel/seccomp/actions_avail") or "").split()
    missing = [action for action in SECCOMP_ACTIONS if action not in available]
    if missing:
        return fail(
            "seccomp",
            f"the kernel lacks {', '.join(missing)}; it has {', '.join(available) or 'none'}",
            "Use a kernel of 5.0 or later with CONFIG_SECCOMP_FILTER.",
        )
    return ok("seccomp", "all actions of the filter are there")


def user_namespaces(subject: Subject) -> Finding:
    """Not by reading switches alone: a child really makes one, as the launcher of an ordinary user does."""
    if subject.root:
        return ok("user-namespaces", "not needed: root makes the step's namespaces itself")
    error = _in_child(_enter_user_namespace)
    if error is None:
        return ok("user-namespaces", "can be made by this user")
    cause, fix = _why_no_user_namespace(error)
    if subject.development:
        return warn("user-namespaces", f"{cause}; only the development mode without namespaces is left", fix)
    return fail("user-namespaces", cause, fix)


def _enter_user_namespace() -> str | None:
    try:
        namespaces.enter_user_namespace()
    except KernelSupportError as exc:
        return exc.message
    return None


def _why_no_user_namespace(error: str) -> tuple[str, str]:
    if read_text("/proc/sys/user/max_user_namespaces") == "0":
        return "user.max_user_namespaces is 0", "sysctl -w user.max_user_namespaces=15000   (as root)"
    if read_text("/proc/sys/kernel/unprivileged_userns_clone") == "0":
        return "kernel.unprivileged_userns_clone is 0", "sysctl -w kernel.unprivileged_userns_clone=1   (as root)"
    if read_text("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        return (
            "AppArmor forbids user namespaces to unconfined programs (kernel.apparmor_restrict_unprivileged_userns is 1)",
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0   (as root; or a profile with `userns,`)",
        )
    return (
        f"{error}: no switch forbids it, so a seccomp filter does, as in a container",
        "Start the container with --security-opt seccomp=unconfined, or run outside of it.",
    )


def cgroup(subject: Subject) -> Finding:
    """Makes the group that a launcher would make and enter, and removes it."""
    group = limits.Cgroup()
    group.enter(f"scaleoutd-doctor-{os.getpid()}")
    try:
        if group.memory is not None and group.pids is not None:
            return ok("cgroup", f"v{group.version}: memory and processes of a run can be limited")
        lacks = " and ".join(name for name, folder in (("memory", group.memory), ("processes", group.pids)) if folder is None)
        kind = f"v{group.version}" if group.version else "none that can be used"
    finally:
        group.leave()
    fix = "Enable the memory and pids controllers for this group, and mount the cgroup file system writable."
    if not subject.root:
        fix = "systemd-run --user --scope -p Delegate=yes scaleoutd client start …"
    return warn("cgroup", f"{kind}: {lacks} of a run as a whole cannot be limited, only watched", fix)


def hidepid() -> Finding:
    for line in (read_text("/proc/self/mountinfo") or "").splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[4] == "/proc" and "hidepid=" in after and "hidepid=0" not in after:
            value = after.partition("hidepid=")[2].split(",")[0]
            return warn(
                "hidepid",
                f"/proc hides the processes of others (hidepid={value}): `status` shows this user's nodes only",
                "Nothing for running steps; mount -o remount,gid=GROUP /proc lets a group see them.",
            )
    return ok("hidepid", "/proc shows all processes")


def security_modules() -> Finding:
    enforce = read_text("/sys/fs/selinux/enforce")
    if enforce == "1":
        return warn(
            "security-modules",
            f"SELinux is enforcing, this program is {read_text('/proc/self/attr/current') or '?'}; scaleoutd has no module yet",
            "Nothing while `sandbox` below is proven; else: ausearch -m AVC -ts recent",
        )
    told = "SELinux permissive" if enforce == "0" else "no SELinux"
    if (read_text("/sys/module/apparmor/parameters/enabled") or "N").startswith("Y"):
        profile = read_text("/proc/self/attr/apparmor/current") or read_text("/proc/self/attr/current") or "unconfined"
        return ok("security-modules", f"AppArmor, this program is {profile}; {told}")
    return ok("security-modules", f"{told}, no AppArmor")


def fapolicyd() -> Finding:
    if Path("/etc/fapolicyd").is_dir():
        return warn(
            "fapolicyd",
            "fapolicyd is installed: programs and scripts that it does not trust are not executed",
            f"fapolicyd-cli --file add {os.path.realpath('/proc/self/exe')} && fapolicyd-cli --update   (if it is denied)",
        )
    return ok("fapolicyd", "not installed")


def fips() -> Finding:
    if read_text("/proc/sys/crypto/fips_enabled") == "1":
        return warn(
            "fips",
            "FIPS mode is on: Ed25519 keys are not allowed in it",
            "scaleoutctl keygen --algorithm p256   (for every key that signs here)",
        )
    return ok("fips", "FIPS mode is off")


def clock(subject: Subject) -> Finding:
    now = HostClock()()
    if now.wall_ms < BUILT_MS:
        return fail("clock", f"it shows {utc_text(now.wall_ms)}, before this program was written", "timedatectl set-ntp true")
    path = subject.state / "runner" / "floors.json"
    try:
        floors = read_floors(path)
    except (OSError, ScaleoutError) as exc:
        return fail("clock", f"the floors of this node cannot be read: {exc}", f"See {path}; keep it as evidence.")
    if floors.time_ms - now.wall_ms > MAX_SET_BACK_MS:
        return fail(
            "clock",
            f"it shows {utc_text(now.wall_ms)}, before {utc_text(floors.time_ms)}, a time on record: every run is refused",
            "timedatectl set-ntp true   (if the time on record is the wrong one, it is lowered by a recorded command)",
        )
    if now.synchronised or Path("/run/chrony").is_dir():
        return ok("clock", f"{utc_text(now.wall_ms)}, synchronised")
    return warn(
        "clock",
        f"{utc_text(now.wall_ms)}, not known to be synchronised: expiry dates count by it, and it raises no floor",
        "timedatectl set-ntp true",
    )


def _in_child(act: Callable[[], str | None]) -> str | None:
    """What `act` returns in a forked child: it may change the child for good."""
    read, write = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, (act() or "").encode()[:4096])
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        text = pipe.read().decode("utf-8", "replace")
    os.waitpid(pid, 0)
    return text or None
