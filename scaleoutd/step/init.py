# SPDX-License-Identifier: Apache-2.0
"""Pid 1 of a run; its child is the one that becomes the step (mainprocess.py).

Both are forked while the launcher is warm, and wait for their order: pid 1 has made the namespaces and what of the view does
not depend on a plan.  With its order it completes the view, gives up everything, and then only reaps, measures and waits.
When the main process ends it kills what is left (kill(-1) reaches the run's pid namespace and nothing else), counts it, reports,
and ends; the kernel would kill the rest even if it did not.  When the launcher goes away, its end of `control` hangs up and pid 1
ends.

With the backend `inner` there is no pid namespace: the same process is then a child subreaper and kills its descendants
until none is left.  In a unit (backend `systemd`) there is none either, but the run has a uid of its own: kill(-1) reaches the
run there too, and nothing else.

`control` and `door` (SOCK_SEQPACKET, JSON) bring the order first.  Then on `control`: {"failed": …} or {"ended": …}, in which
`over` names the limit that pid 1 saw exceeded.  One packet from the launcher asks for the end now, for a limit of its own or a
cancellation, so that this has its figures too.  On `door`: {"failed": …}, {"left": …} when scratch is to be emptied first, or the
listener's descriptor; end of file on `door` means that exec succeeded.
Both wait for the launcher's word (`tell_go`): a run is built while its model arrives, and begins when that is on record.
"""

from __future__ import annotations

import fcntl
import os
import resource
import select
import signal
import socket
import time
from typing import NoReturn

from scaleoutd.errors import LaunchError
from scaleoutd.step import confine, mainprocess, namespaces, orders, syscalls, watch
from scaleoutd.step.landlock import Grant
from scaleoutd.step.orders import Base, Order

NULL, OUT, ERR, CONTROL, DOOR = 0, 1, 2, 3, 4
_NICE = -10
_KILL_S = 5.0
_MEASURE_S = 10.0  # for the last measurement of scratch
_MEASURE_EARLY_S = 2.0  # the same when a limit or the launcher ended the run


def run(base: Base, out: int, control: int, door: int) -> NoReturn:
    """The child's side of the launcher's fork.  Never returns."""
    try:
        _settle_descriptors(out, control, door)
        os.setsid()
        os.umask(0o022)
        root = -1
        if base.own_namespaces:
            with confine.stage("namespaces and view"):
                root = namespaces.enter()
        else:
            syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
        wakeup = _catch_children()
        view_made, tell_made = os.pipe2(os.O_CLOEXEC)
        main = os.fork()
        if main == 0:
            mainprocess.become_step(base, DOOR, view_made)
        os.close(view_made)
        os.close(DOOR)
        _take_precedence()
        orders.rehearse(base)
        order, trees = _take_order(base, main)
        if base.own_namespaces:
            with confine.stage("namespaces and view"):
                namespaces.fill(root, order.view, trees)
                os.close(root)
        os.write(tell_made, b"1")
        os.close(tell_made)
        confine.become(order.identity)
        grants = order.view.grants
        if not order.own_namespaces:
            grants = (*grants, Grant("/proc", "read"))
        # No scopes: a scoped pid 1 could not signal the run, which lives in a Landlock domain of its own.  In a unit no domain at
        # all: /proc shows only whom one may trace (hidepid), and a domain may not trace another that is not below it.
        confine.restrict(grants, order.program, abi=0 if order.unit else order.landlock_abi, scopes=False)
        _wait(order, main, wakeup)
    except BaseException as exc:  # noqa: BLE001 - the last line of defence: report, then end with everything
        orders.tell(CONTROL, {"failed": orders.failure(exc)})
    os._exit(70)


def _take_order(base: Base, main: int) -> tuple[Order, list[int]]:
    try:
        return orders.take(base, CONTROL)
    except orders.Gone:
        os.kill(main, signal.SIGKILL)
        os.waitpid(main, 0)
        os._exit(0)


def _take_precedence() -> None:
    """Pid 1 sleeps nearly always; when it wants to look, what it watches must not keep the processors from it."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    except PermissionError:
        return  # an ordinary user's launcher may not, and watches as well as it can


def _settle_descriptors(out: int, control: int, door: int) -> None:
    """0 is /dev/null, 1 and 2 the output, 3 control, 4 door; nothing else stays open."""
    with confine.stage("descriptors"):
        above = 10  # out of the way of the numbers below
        out, control, door = (fcntl.fcntl(fd, fcntl.F_DUPFD, above) for fd in (out, control, door))
        null = fcntl.fcntl(os.open("/dev/null", os.O_RDONLY), fcntl.F_DUPFD, above)
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
            begun, asked = True, os.read(CONTROL, 64) != orders.GO
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
    orders.tell(CONTROL, {"ended": {
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
    bound = orders.process_bound(order) - 1
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
