# SPDX-License-Identifier: Apache-2.0
"""The inner stage: what a process does to itself before it runs code that is not ours.

The order is part of the design (DESIGN.md section 4); each stage leaves the next one possible, and the first error ends it:
descriptors, session, umask, oom_score_adj → rlimits → groups and uid → bounding set and capabilities → no_new_privs →
Landlock → seccomp.  The bounding set goes first within its stage: dropping it needs CAP_SETPCAP, which the change of uid takes.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from scaleoutd.core.plan import STEP_UID_BASE, SandboxPlan
from scaleoutd.errors import LaunchError
from scaleoutd.step import landlock, syscalls
from scaleoutd.step.landlock import Grant

OOM_SCORE_FIRST = "1000"


@dataclass(frozen=True)
class Identity:
    """Who a confined process is.  `change` is False for an ordinary user, who cannot become somebody else."""

    uid: int
    gid: int
    change: bool


def identity_of(plan: SandboxPlan) -> Identity:
    """The slot's own uid for root and for the launcher of a unit (which has CAP_SETUID), the caller's for an ordinary user."""
    slot = plan.slot
    if os.geteuid() == 0 or plan.backend == "systemd":
        return Identity(STEP_UID_BASE + slot, STEP_UID_BASE + slot, change=True)
    return Identity(os.geteuid(), os.getegid(), change=False)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Turns every failure inside into a LaunchError that names the stage."""
    try:
        yield
    except LaunchError:
        raise
    except (OSError, ValueError) as exc:
        detail = f"{exc.strerror} ({exc.filename})" if isinstance(exc, OSError) else str(exc)
        raise LaunchError(
            f"cannot confine the step: stage {name} failed: {detail}",
            hint="Nothing was run.  Run scaleoutctl doctor; it names what this host cannot do.",
        ) from exc


def set_rlimits(limits: Iterable[tuple[int, int, int]]) -> None:
    for kind, soft, hard in limits:
        _, ceiling = resource.getrlimit(kind)
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(kind, (soft, hard))


def become(identity: Identity) -> None:
    """Groups, gid and uid of `identity`, then no capability in any set, now or by exec."""
    with stage("capability bounding set"):
        try:
            syscalls.drop_bounding_set()
        except PermissionError:
            # An ordinary user without an own user namespace has no capability, so not CAP_SETPCAP either: the set cannot
            # be emptied, and with no_new_privs no exec can draw on it (capabilities(7)).
            if identity.change or _holds_capabilities():
                raise
    with stage("uid"):
        if identity.change:
            os.setgroups([])
            os.setresgid(identity.gid, identity.gid, identity.gid)
            os.setresuid(identity.uid, identity.uid, identity.uid)
    with stage("capabilities"):
        syscalls.drop_capabilities()
    with stage("no_new_privs"):
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)


def _holds_capabilities() -> bool:
    with open("/proc/self/status") as file:
        return any(line.startswith("CapPrm:") and int(line.split()[1], 16) for line in file)


def restrict(grants: Iterable[Grant], program: bytes, *, abi: int, scopes: bool = True, listener: bool = False) -> int:
    """Landlock, then the filter; returns the listener's descriptor (0 without)."""
    with stage("landlock"):
        landlock.restrict(grants, abi=abi, scopes=scopes)
    with stage("seccomp"):
        return syscalls.seccomp_set_filter(program, listener=listener)


def default_signals() -> None:
    """Python ignores SIGPIPE and SIGXFSZ, and ignored signals stay ignored over exec (execve(2))."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
