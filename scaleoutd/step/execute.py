# SPDX-License-Identifier: Apache-2.0
"""One execution, as the launcher sees it: start, serve, end, report.

A loop over poll(2), without threads: the connection (cancel, end of file), pid 1's reports, the listener of the filter, the
output pipe, and the wall clock.  A run that a limit or the runner ends is first ended by pid 1, which counts what it used;
a pid 1 that does not in time, and everything else, ends through `_kill`: SIGKILL to pid 1 of the run, and the kernel kills the
pid namespace with it.
"""

from __future__ import annotations

import array
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from scaleoutd.core import strictjson
from scaleoutd.core.plan import SandboxPlan, StepResult
from scaleoutd.errors import CODES, LaunchError, PeerError, from_code
from scaleoutd.ipc.channel import Channel
from scaleoutd.ipc.step import CancelStep
from scaleoutd.step import limits, orders, outcomes
from scaleoutd.step.killer import Killer
from scaleoutd.step.seccomp import Filters, Supervisor
from scaleoutd.step.waiting import Waiting

_READ_BYTES = 64 * 1024
_START_TIMEOUT_S = 20.0
_REPORT_S = 3.0  # for pid 1 to kill, count and report when the launcher ends the run
_SERVE_AT_ONCE = 64  # notifications answered before the other descriptors get their turn


class Execution:
    """One run of one plan, in the processes that wait for it: `prepare` (or `run` does it), then `run` once or `close`.

    `renew` empties the scratch folder when the main process has found something in it.
    """

    def __init__(
        self,
        channel: Channel,
        order: orders.Order,
        waiting: Waiting,
        group: limits.Cgroup,
        filters: Filters,
        killer: Killer | None = None,
        renew: Callable[[], None] = lambda: None,
    ) -> None:
        self._channel = channel
        self._renew = renew
        self._killer = killer
        self._order = order
        self.plan: SandboxPlan = order.plan
        self._group = group
        self._names = filters.names
        self._pid = waiting.pid
        self._ends: Waiting | None = waiting
        self._has_order = False
        self._supervisor: Supervisor | None = None
        self._denied: dict[str, int] = {}
        self._report: dict[str, Any] | None = None
        self._verdict: tuple[str, str] | None = None  # ended, code
        self._printed = 0
        self._dropped = 0
        self._peer_gone = False
        self._pid1_gone = False
        self._report_by = float("inf")
        self.output_ended = False  # every process that could write to the output is gone

    def run(self, log_fd: int, terminal_fd: int | None, started: Callable[[int], None] = lambda _: None) -> StepResult:
        """Executes the plan; calls `started` with the pid of the run's pid 1 when the exec has happened.

        Raises what kept the step from starting, and PeerError `peer-closed` when the runner went away meanwhile.
        """
        start = time.monotonic()
        try:
            ends = self.prepare()
            supervisor = self._await_exec(ends.door, ends.control)
            started(self._pid)
            self._serve(supervisor, ends.control, ends.out, log_fd, terminal_fd, start + self.plan.limits.wall_clock_s)
            self._kill()
            self._drain(ends.out, log_fd, terminal_fd)
            wall_ms = int((time.monotonic() - start) * 1000)
        finally:
            self.close()
        if self._peer_gone:
            raise PeerError("cannot report the run: the runner closed the connection", code="peer-closed")
        return self._result(wall_ms)

    def prepare(self) -> Waiting:
        """Gives the order: pid 1 completes the view, the main process confines itself, and does not exec before `run`."""
        if self._ends is None:
            raise LaunchError("cannot start the step: its processes have ended")
        if not self._has_order:
            self._has_order = True
            orders.send(self._order, self._ends.control.fileno(), self._ends.door.fileno())
        return self._ends

    def close(self) -> None:
        """Kills what there is of the run, also of one that did not begin."""
        self._kill()
        if self._ends is not None:
            self._ends.close_ends()
            self._ends = None
        if self._supervisor:
            self._denied = self._supervisor.denied
            self._supervisor.close()
            self._supervisor = None

    def _await_exec(self, door: socket.socket, control: socket.socket) -> Supervisor:
        """Takes the listener, lets the main process go; returns when the exec has happened, raises what failed."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        poll = select.poll()
        poll.register(door, select.POLLIN)
        poll.register(self._channel.fileno(), 0)
        poll.register(control, select.POLLIN)
        while True:
            events = dict(poll.poll(max(0, int((deadline - time.monotonic()) * 1000))))
            if self._channel.fileno() in events:
                raise PeerError("cannot start the step: the runner closed the connection", code="peer-closed")
            if door.fileno() in events:  # before control: a short step may have ended already
                body, descriptors = _receive(door)
                if descriptors:
                    self._supervisor = Supervisor(descriptors[0], self._names)
                    orders.tell_go(control, door)
                elif body is not None and "left" in body:
                    self._renew()
                    orders.tell_go(door)
                elif body is None and self._supervisor:
                    return self._supervisor
                else:  # pid 1 may have told why before it ended
                    self._raise_failure(body or (_receive(control)[0] if _is_readable(control) else None))
            elif control.fileno() in events:
                if not _is_readable(door):
                    self._raise_failure(_receive(control)[0])
            elif time.monotonic() >= deadline:
                raise LaunchError(f"cannot start the step: its stages took longer than {_START_TIMEOUT_S:.0f} s")

    def _raise_failure(self, body: dict[str, Any] | None) -> None:
        failed = (body or {}).get("failed")
        if not isinstance(failed, dict):
            raise LaunchError("cannot start the step: its first process ended without a word")
        raise from_code(str(failed.get("code")), str(failed.get("message")), str(failed.get("hint", "")))

    def _serve(
        self,
        supervisor: Supervisor,
        control: socket.socket,
        out: int,
        log_fd: int,
        terminal_fd: int | None,
        deadline: float,
    ) -> None:
        """Until pid 1 has reported, or is gone, or the runner is."""
        poll = select.poll()
        for fd in (control.fileno(), out, supervisor.fd, self._channel.fileno()):
            poll.register(fd, select.POLLIN)
        while self._report is None and not self._pid1_gone and not self._peer_gone:
            now = time.monotonic()
            if self._verdict is None and now >= deadline:
                self._end(control, "limit", "limit-wall-clock")
            if now >= self._report_by:
                return
            left_ms = int(((deadline if self._verdict is None else self._report_by) - now) * 1000)
            events = dict(poll.poll(min(max(0, left_ms) + 1, 60_000)))
            if self._channel.fileno() in events:
                self._take_message(control)
            if supervisor.fd in events:
                if events[supervisor.fd] & select.POLLIN:
                    _answer(supervisor)
                else:
                    poll.unregister(supervisor.fd)  # POLLHUP: the last process with the filter is gone
            if out in events and not self._copy_output(out, log_fd, terminal_fd):
                poll.unregister(out)
            if control.fileno() in events:
                self._take_report(control)

    def _end(self, control: socket.socket, ended: str, code: str) -> None:
        """The verdict is ours; pid 1 is asked to end the run and to say what it used."""
        if self._verdict is not None:
            return
        self._verdict = (ended, code)
        self._report_by = time.monotonic() + _REPORT_S
        try:
            control.send(b"end", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:  # pid 1 is gone or deaf: `_kill` ends the run
            self._report_by = 0.0

    def _take_message(self, control: socket.socket) -> None:
        try:
            self._channel.expect(CancelStep, timeout_s=0)
        except PeerError:  # end of file, or a message that has no place here: either way the run has lost its sponsor
            self._peer_gone = True
        self._end(control, "cancelled", "step-cancelled")

    def _take_report(self, control: socket.socket) -> None:
        body, _ = _receive(control)
        if body is None:  # pid 1 was killed, by the OOM killer or from outside
            self._pid1_gone = True
            if self._verdict is None:
                code = "limit-memory" if self._group.oom_kills() else "step-killed"
                self._verdict = ("limit" if code == "limit-memory" else "signalled", code)
        elif "ended" in body:
            self._report = body["ended"]
            over = self._report.get("over")
            if self._verdict is None and over is not None:
                self._verdict = ("limit", over if over in CODES else "internal")
        else:
            self._raise_failure(body)

    def _copy_output(self, out: int, log_fd: int, terminal_fd: int | None) -> bool:
        """Copies what is in the pipe now, at most one buffer; False at its end."""
        try:
            data = os.read(out, _READ_BYTES)
        except BlockingIOError:
            return True
        if not data:
            return False
        kept = data[: max(0, self.plan.limits.stdout_bytes - self._printed)]
        self._printed += len(kept)
        self._dropped += len(data) - len(kept)
        _write_all(log_fd, kept)
        if terminal_fd is not None and kept:
            _write_now(terminal_fd, kept)
        return True

    def _drain(self, out: int, log_fd: int, terminal_fd: int | None) -> None:
        """The rest of the pipe: every writer is dead, so there is an end."""
        poll = select.poll()
        poll.register(out, select.POLLIN)
        while poll.poll(1000):
            if not self._copy_output(out, log_fd, terminal_fd):
                self.output_ended = True
                return

    def _kill(self) -> None:
        if self._pid:
            try:
                os.kill(self._pid, signal.SIGKILL)
            except PermissionError:  # it has become the step's user, who is not the launcher's of a unit
                if self._killer is None:
                    raise
                self._killer.kill(self._order.identity)
            _, _, self._usage = os.wait4(self._pid, 0)
            self._pid = 0

    def _result(self, wall_ms: int) -> StepResult:
        report = self._report or {}
        cpu_ms = int((self._usage.ru_utime + self._usage.ru_stime) * 1000)
        status = report.get("status") if self._verdict is None else None
        ended, code = self._verdict or ("signalled" if status is not None and status < 0 else "exited", None)
        if self._verdict is None and self._report is not None:
            code = limits.behind(report, self.plan.limits, self._group)
            ended = "limit" if code else ended
        return StepResult(
            ended=ended,  # type: ignore[arg-type]
            exit_status=status if status is not None and status >= 0 else None,
            signal=-status if status is not None and status < 0 else None,
            code=code,
            wall_ms=wall_ms,
            cpu_ms=max(cpu_ms, int(report.get("cpu_ms", 0))),
            max_rss_bytes=max(self._usage.ru_maxrss * 1024, int(report.get("max_rss_bytes", 0))),
            stdout_bytes=self._printed,
            stdout_dropped_bytes=self._dropped,
            scratch_bytes=int(report.get("scratch_bytes", 0)),
            killed_processes=int(report.get("killed", 0)),
            denied=dict(self._denied),
            enforced=(*limits.enforcement(self._group, self.plan.limits), *outcomes.as_enforced(self._order)),
        )


def _answer(supervisor: Supervisor) -> None:
    """What waits at the listener, but not without end: a step that only makes notifications must not stop the loop."""
    poll = select.poll()
    poll.register(supervisor.fd, select.POLLIN)
    for _ in range(_SERVE_AT_ONCE):
        supervisor.answer_one()
        events = poll.poll(0)
        if not events or not events[0][1] & select.POLLIN:
            return


def _is_readable(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _receive(sock: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """One packet of pid 1 or the main process; (None, []) at the end of file."""
    try:
        data, control, _, _ = sock.recvmsg(16 * 1024, socket.CMSG_SPACE(16), socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return None, []
    descriptors = array.array("i")
    for level, kind, payload in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(payload)
    if not data:
        return None, []
    body = strictjson.parse(data, max_bytes=16 * 1024, what="a report of pid 1")
    return (body if isinstance(body, dict) else {}), list(descriptors)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _write_now(fd: int, data: bytes) -> None:
    """To the terminal as far as it takes it at once: a stopped terminal must not stop the launcher."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    for start in range(0, len(data), select.PIPE_BUF):
        events = poll.poll(0)
        if not events or not events[0][1] & select.POLLOUT:
            return
        try:
            os.write(fd, data[start : start + select.PIPE_BUF])
        except OSError:  # the reader is gone; the log has it all
            return
