# SPDX-License-Identifier: Apache-2.0
"""Pid 1 of a run, and the child of it that becomes the step.

Pid 1 builds the view, forks the main process, gives up everything, and then only reaps, measures and waits.  When the main
process ends it kills what is left (kill(-1) reaches the run's pid namespace and nothing else), counts it, reports, and ends;
the kernel would kill the rest even if it did not.  When the launcher goes away, its end of `control` hangs up and pid 1 ends.

With the backend `inner` there is no pid namespace: the same process is then a child subreaper and kills its descendants
until none is left.  In a unit (backend `systemd`) there is none either, but the run has a uid of its own: kill(-1) reaches the
run there too, and nothing else.

On `control` (SOCK_SEQPACKET, JSON): {"failed": …} or {"ended": …}, in which `over` names the limit that pid 1 saw exceeded.  One
packet from the launcher asks for the end now, for a limit of its own or a cancellation, so that this has its figures too.  On
`door`: {"failed": …} or the listener's descriptor; end of file on `door` means that exec succeeded.
Both wait for the launcher's word (`tell_go`): a run is built while its model arrives, and begins when that is on record.
"""

from __future__ import annotations

import array
import fcntl
import json
import os
import resource
import select
import signal
import socket
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from scaleoutd.core.plan import SandboxPlan
from scaleoutd.errors import LaunchError, ScaleoutError
from scaleoutd.step import confine, limits, namespaces, syscalls, view, watch
from scaleoutd.step.confine import Identity
from scaleoutd.step.landlock import Grant

NULL, OUT, ERR, CONTROL, DOOR = 0, 1, 2, 3, 4
_NICE = -10
_KILL_S = 5.0
_MEASURE_S = 10.0  # for the last measurement of scratch
_MEASURE_EARLY_S = 2.0  # the same when a limit or the launcher ended the run
_GO = b"go"
_PROCESSES_OF_OURS = {"namespaces": 3, "systemd": 3, "inner": 3}  # launcher, pid 1, and the main process before its exec


@dataclass(frozen=True)
class Order:
    """All that a run needs, made by the launcher before the fork."""

    plan: SandboxPlan
    view: view.View
    identity: Identity
    program: bytes
    landlock_abi: int
    watch_memory: bool
    watch_processes: bool
    own_namespaces: bool
    scratch: str  # as pid 1 sees it
    work: Callable[[], None] | None = None  # done by the confined main process instead of the exec: the probes
    unit: bool = False  # backend systemd: the unit's view, and a uid that nobody else has
    person: int | None = None  # standard input, output and error for a person, instead of /dev/null and the output pipe


def run(order: Order, out: int, control: int, door: int) -> NoReturn:
    """The child's side of the launcher's fork.  Never returns."""
    try:
        _settle_descriptors(out, control, door, order.person)
        os.setsid()
        os.umask(0o022)
        if order.own_namespaces:
            with confine.stage("namespaces and view"):
                namespaces.enter(order.view)
        else:
            syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
        wakeup = _catch_children()
        main = os.fork()
        if main == 0:
            _become_step(order)
        os.close(DOOR)
        _take_precedence()
        confine.become(order.identity)
        grants = order.view.grants
        if not order.own_namespaces:
            grants = (*grants, Grant("/proc", "read"))
        # No scopes: a scoped pid 1 could not signal the run, which lives in a Landlock domain of its own.  In a unit no domain at
        # all: /proc shows only whom one may trace (hidepid), and a domain may not trace another that is not below it.
        confine.restrict(grants, order.program, abi=0 if order.unit else order.landlock_abi, scopes=False)
        _wait(order, main, wakeup)
    except BaseException as exc:  # noqa: BLE001 - the last line of defence: report, then end with everything
        _tell(CONTROL, {"failed": _failure(exc)})
    os._exit(70)


def tell_go(control: socket.socket, door: socket.socket) -> None:
    """The launcher's word that the run may begin: to pid 1, then to the main process."""
    for sock in (control, door):
        try:
            sock.send(_GO, socket.MSG_NOSIGNAL)
        except BrokenPipeError:
            pass  # its end is seen where its words are read


def _take_precedence() -> None:
    """Pid 1 sleeps nearly always; when it wants to look, what it watches must not keep the processors from it."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    except PermissionError:
        return  # an ordinary user's launcher may not, and watches as well as it can


def _settle_descriptors(out: int, control: int, door: int, person: int | None) -> None:
    """0 is /dev/null, 1 and 2 the output (or all three a person's), 3 control, 4 door; nothing else stays open."""
    with confine.stage("descriptors"):
        above = 10  # out of the way of the numbers below
        out, control, door = (fcntl.fcntl(fd, fcntl.F_DUPFD, above) for fd in (out, control, door))
        null = fcntl.fcntl(os.open("/dev/null", os.O_RDONLY), fcntl.F_DUPFD, above)
        if person is not None:
            null = out = fcntl.fcntl(person, fcntl.F_DUPFD, above)
        for target, source in ((NULL, null), (OUT, out), (ERR, out), (CONTROL, control), (DOOR, door)):
            os.dup2(source, target)
        syscalls.close_range(DOOR + 1)


def _catch_children() -> socket.socket:
    left, right = socket.socketpair()
    left.setblocking(False)
    right.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(right.fileno(), warn_on_full_buffer=False)
    _keep.append(right)
    return left


_keep: list[socket.socket] = []


def _become_step(order: Order) -> NoReturn:
    """The inner stage, then exec.  Any error is told through the door; nothing runs."""
    plan = order.plan
    try:
        signal.set_wakeup_fd(-1)
        with confine.stage("descriptors"):
            os.dup2(DOOR, CONTROL, inheritable=False)
            syscalls.close_range(CONTROL + 1)
        with confine.stage("session"):
            os.setsid()
            os.umask(0o077)
            if order.person is not None and os.isatty(NULL):
                fcntl.ioctl(NULL, termios.TIOCSCTTY, 0)  # Ctrl-C is for what runs in the shell
        with confine.stage("oom_score_adj"):
            _raise_oom_score(order)
        with confine.stage("rlimits"):
            processes = _process_bound(order) if order.watch_processes else None
            confine.set_rlimits(limits.rlimits_of(plan.limits, address_space=order.watch_memory, processes=processes))
        if not order.unit:
            with confine.stage("working folder"):
                os.chdir(plan.cwd)
        confine.default_signals()
        confine.become(order.identity)
        if order.unit:  # a folder of the step's is closed to the launcher's user
            with confine.stage("working folder"):
                os.chdir(plan.cwd)
        listener = confine.restrict(order.view.grants, order.program, abi=order.landlock_abi, listener=True)
        _tell(CONTROL, {"listener": True}, [listener])
        os.close(listener)
        if not os.read(CONTROL, len(_GO)):
            os._exit(70)
        if order.work is not None:
            os.close(CONTROL)
            order.work()
            os._exit(0)
        os.execvpe(plan.command[0], list(plan.command), dict(plan.environment))  # noqa: S606 - this is what it is for
    except BaseException as exc:  # noqa: BLE001 - told through the door, then the process ends
        if isinstance(exc, OSError):
            exc = LaunchError(
                f"cannot start {plan.command[0]!r}: {exc.strerror}",
                hint="The program must lie in the view of the step and be executable by everybody.",
            )
        if order.work is not None:
            os._exit(71)
        _tell(CONTROL, {"failed": _failure(exc)})
    os._exit(70)


def _raise_oom_score(order: Order) -> None:
    """Then /proc becomes read-only, so that the step cannot lower it again even without Landlock."""
    if os.geteuid() != 0:
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)  # /proc/self is root's while the process is not dumpable
    _write("/proc/self/oom_score_adj", confine.OOM_SCORE_FIRST)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    if order.own_namespaces:
        namespaces.make_read_only("/proc")


def _process_bound(order: Order) -> int:
    """RLIMIT_NPROC of the step: its own, and those of ours that count as its uid."""
    return order.plan.limits.processes + _PROCESSES_OF_OURS[order.plan.backend]


def _wait(order: Order, main: int, wakeup: socket.socket) -> NoReturn:
    """Reaps and measures until the main process ends, a limit is exceeded or the launcher asks; then kills, counts, reports."""
    poll = select.poll()
    poll.register(CONTROL, select.POLLIN)
    poll.register(wakeup, select.POLLIN)
    watcher = watch.Watcher(
        order.scratch,
        order.plan.limits,
        memory=order.watch_memory,
        root_pid=None if order.own_namespaces else os.getpid(),
    )
    status = over = None
    begun = asked = False  # before it begins there is nothing to watch
    while status is None and over is None and not asked:
        events = dict(poll.poll(watch.SPACE_S * 1000 if begun else None))
        if events.get(CONTROL, 0) & (select.POLLHUP | select.POLLERR):  # the launcher is gone
            _kill_rest(order)
            os._exit(0)
        if CONTROL in events:  # a socket that is closed with something unread resets, and the report would be lost
            begun, asked = True, os.read(CONTROL, 64) != _GO
        if wakeup.fileno() in events:
            wakeup.recv(4096)
        status = _reap(main)
        if begun and status is None and not asked:
            over = watcher.look()
    refused = bool(status) and order.watch_processes and _is_fork_refused(order)
    if status is None:
        _halt(order)
    killed = _kill_rest(order, watcher.look_at_processes().processes)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Children of a step that ignores SIGCHLD are in no sum of the kernel's; they were seen while they lived.
    cpu_s = max(usage.ru_utime + usage.ru_stime, watcher.most_cpu_s)
    tree, whole = watch.measure_tree(order.scratch, time.monotonic() + (_MEASURE_S if status is not None else _MEASURE_EARLY_S))
    # What could not be measured is more than there may be: a folder that was closed or is too deep could hold anything.
    scratch_bytes = tree.bytes if whole or status is None else max(tree.bytes, order.plan.limits.scratch_bytes + 1)
    _tell(CONTROL, {"ended": {
        "status": status,
        "over": over,
        "killed": killed,
        "cpu_ms": int(cpu_s * 1000),
        "max_rss_bytes": usage.ru_maxrss * 1024,
        "scratch_bytes": max(scratch_bytes, watcher.largest_scratch if over == "limit-scratch" else 0),
        "largest_bytes": tree.largest_bytes,
        "most_tasks": max(watcher.most_tasks, killed + 1),
        "fork_refused": refused,
    }})  # fmt: skip
    os._exit(0)


def _is_fork_refused(order: Order) -> bool:
    """Whether one process more would be too many now.

    Without a pids cgroup a refused fork leaves no trace, so after the main process has failed we try one ourselves, under the
    same bound less the main process, while what it started is still alive.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    bound = _process_bound(order) - 1
    resource.setrlimit(resource.RLIMIT_NPROC, (bound if hard == resource.RLIM_INFINITY else min(bound, hard), hard))
    try:
        pid = os.fork()
    except BlockingIOError:
        return True
    finally:
        resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))
    if pid == 0:
        os._exit(0)
    return False


def _members(order: Order) -> list[int]:
    return watch.members(None if order.own_namespaces else os.getpid())


def _reap(main: int) -> int | None:
    """Reaps every zombie; the main process's exit code as os.waitstatus_to_exitcode has it, or None."""
    result = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return result
        if pid == 0:
            return result
        if pid == main:
            result = os.waitstatus_to_exitcode(status)


def _halt(order: Order) -> None:
    """Stops a run that will be killed, so that it takes nothing more while it is counted."""
    if order.own_namespaces or order.unit:
        try:
            os.kill(-1, signal.SIGSTOP)
        except ProcessLookupError:
            pass  # nobody is left


def _kill_rest(order: Order, alive: int = 0) -> int:
    """Kills what is left of the run and reaps it; returns `alive`, how many there were.  LaunchError when one will not end: it
    could change the outputs while they are checked, and what the next run finds in scratch."""
    deadline = time.monotonic() + _KILL_S
    while time.monotonic() < deadline:
        if order.own_namespaces or order.unit:
            _kill(-1)
        else:
            for pid in _members(order):
                _kill(pid)
        try:
            while True:
                pid, _ = os.waitpid(-1, 0 if order.own_namespaces else os.WNOHANG)
                if pid == 0:
                    break
        except ChildProcessError:
            return alive
        time.sleep(0.002)
    raise LaunchError(
        f"cannot end the step: a process of it still lives {_KILL_S:.0f} s after it was killed",
        hint="Nothing of this run leaves. Find it with `ps`; only namespaces or a unit end what forks faster than it is killed.",
    )


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has ended meanwhile, or nobody is left


def _failure(exc: BaseException) -> dict[str, str]:
    if isinstance(exc, ScaleoutError):
        return {"code": exc.code, "message": exc.message[:2000], "hint": exc.hint[:2000]}
    return {"code": "launch-failed", "message": f"cannot run the step: {type(exc).__name__}: {exc}"[:2000], "hint": ""}


def _tell(fd: int, body: dict[str, Any], descriptors: list[int] | None = None) -> None:
    """Sends one packet on the bare descriptor; when the launcher is gone there is nobody to tell, and the caller ends."""
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    with socket.socket(fileno=os.dup(fd)) as sock:
        try:
            sock.sendmsg([json.dumps(body).encode()], control, socket.MSG_NOSIGNAL)
        except BrokenPipeError:
            os._exit(70)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
