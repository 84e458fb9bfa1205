# SPDX-License-Identifier: Apache-2.0
"""A node with fault points, a combiner with fault points, and what a test does with them: arm, wait, kill, let go."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from scaleoutd.devcombiner.npz import flat, write_npz
from scaleoutd.devcombiner.server import DevCombiner
from scaleoutd.runner.runs import run_name
from tests.e2e.site import NodeProcess, Site, events
from tests.living import files_below
from tests.processes import is_alive, processes

NAME = "ward-7"
SMALL = write_npz({"0": flat("f8", (3,), [1.0, 2.0, 3.0])})
# Some chunks of 1 MiB: a stream with a middle.
LARGE = write_npz({"0": flat("f8", (400_000,), [0.25] * 400_000)})

# Waits while the data set has a file `hold`, and says so on the terminal.
WAITING_STEP = """\
import os, time
if os.path.exists(os.environ["SCALEOUTD_DATA_GATE"] + "/hold"):
    print("the step waits")
    while os.path.exists(os.environ["SCALEOUTD_DATA_GATE"] + "/hold"):
        time.sleep(0.01)
"""
WAIT_S = 90.0


def wait_for(predicate: Callable[[], Any], what: Callable[[], object], timeout_s: float = WAIT_S) -> Any:
    """The first true value of `predicate`; for what shows in files and in /proc only."""
    deadline = time.monotonic() + timeout_s
    while not (found := predicate()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what()}")
        time.sleep(0.005)
    return found


class HeldCombiner(DevCombiner):
    """A combiner that stops in the middle of a call: `arm` a point, `wait` until a call stands there, `go`.

    download   after the first chunk of a model was sent
    upload     after the first chunk of an update came
    announced  the update counts, the answer is not sent
    report     a report with done=true came and is not taken
    reported   it is taken, the answer is not sent
    """

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self._armed: set[str] = set()
        self._reached = {name: threading.Event() for name in ("download", "upload", "announced", "report", "reported")}
        self._go = {name: threading.Event() for name in self._reached}
        self.on_result: Callable[[str], None] = lambda model_update_id: None
        service: Any = self._service
        self._hold_transfers(service._transfer)
        poll, show = service._poll, service._show

        def held_poll(request: Any, context: Any, caller: Any) -> Any:
            done = any(report.done for report in request.reports)
            if done:
                self._reach("report")
            answer = poll(request, context, caller)
            if done:
                self._reach("reported")
            return answer

        def held_show(method: Any, when: str, context: Any) -> None:
            if method.name == "SendModelUpdate" and when == "after":
                self._reach("announced")
            show(method, when, context)

        service._poll, service._show = held_poll, held_show

    def _hold_transfers(self, transfer: Any) -> None:
        padded, limited, upload = transfer._padded, transfer._limited, transfer.upload

        def held_padded(chunks: Any, size_bytes: int) -> Iterator[bytes]:
            for chunk in padded(chunks, size_bytes):
                yield chunk
                self._reach("download")

        def held_limited(chunks: Any, context: Any) -> Iterator[bytes]:
            for chunk in limited(chunks, context):
                yield chunk
                self._reach("upload")

        def watched_upload(chunks: Any, context: Any) -> Any:
            self.on_result(str(dict(context.invocation_metadata()).get("model-id", "")))
            return upload(chunks, context)

        transfer._padded, transfer._limited, transfer.upload = held_padded, held_limited, watched_upload

    def _reach(self, name: str) -> None:
        if name in self._armed:
            self._armed.discard(name)
            self._reached[name].set()
            self._go[name].wait(WAIT_S)

    def arm(self, name: str) -> None:
        self._reached[name].clear()
        self._go[name].clear()
        self._armed.add(name)

    def wait_reached(self, name: str) -> None:
        assert self._reached[name].wait(WAIT_S), f"no call came to {name}"

    def go(self) -> None:
        """Every call goes on."""
        self._armed.clear()
        for event in self._go.values():
            event.set()

    def stop(self) -> None:
        self.go()
        super().stop()


class FaultNode(NodeProcess):
    """`scaleoutd client start` whose rooms have the points of folder `points`."""

    def __init__(self, points: Path, arguments: list[str], token: str, *, around: Sequence[str] = ()) -> None:
        self.points = points
        self.around = around  # a command that executes the node's
        super().__init__(arguments, token)

    def command(self) -> list[str]:
        return [*self.around, sys.executable, "-m", "tests.fault.parent", str(self.points), "client", "start", *self.arguments]

    def launchers(self) -> list[int]:
        """Step instances, the spare included: what a template has forked, also one that is dead."""
        of_step = {item.pid: item.parent for item in processes() if item.lives and "scaleoutd.step" in item.command}
        templates = {pid for pid, parent in of_step.items() if parent == self.process.pid}
        return [pid for pid, parent in of_step.items() if pid not in templates and (parent in templates or parent not in of_step)]

    def templates(self) -> list[int]:
        """What forks the step instances."""
        found = (item for item in processes() if item.lives and item.parent == self.process.pid)
        return [item.pid for item in found if "scaleoutd.step" in item.command]

    def _pids(self, victim: str) -> list[int]:
        if victim == "parent":
            return [self.process.pid]
        if victim == "template":
            return self.templates()
        return self.launchers() if victim == "step" else [pid for room, pid in self.children().items() if room == victim]

    def kill(self, victim: str) -> None:
        """kill -9: a room, each step instance (`step`), what forks them (`template`), or the parent; returns when it is dead."""
        # It may be on its way back.
        pids = wait_for(lambda: self._pids(victim), lambda: f"there is no {victim} to kill\n{self.text}")
        for pid in pids:
            with suppress(ProcessLookupError):  # an instance ends by itself, too
                os.kill(pid, signal.SIGKILL)
        if victim == "parent":
            self.process.wait()
        else:
            wait_for(lambda: not any(is_alive(pid) for pid in pids), lambda: f"{victim} {pids} does not die")

    def end(self) -> None:
        """kill -9 of the parent, at the end of a case that failed."""
        self.process.kill()
        self.process.wait()
        self._reader.join(15)
        if self.process.stdout is not None and not self._reader.is_alive():
            self.process.stdout.close()


class FaultSite(Site):
    """A site whose train step can wait, and whose node has fault points.  One node, started again with the same state."""

    combiner: HeldCombiner

    def __init__(self, folder: Path, combiner: HeldCombiner, **policy: Any) -> None:
        self.gate = folder / "gate"
        self.gate.mkdir(parents=True)
        self.points = folder / "points"
        self.points.mkdir()
        policy = {"data_sets": {"gate": {"path": str(self.gate)}}, **policy}
        super().__init__(folder, combiner, train_body=WAITING_STEP, **policy)
        self.project.data_sets = ("gate",)
        self.project.sign()
        # Released and being sent, both on record before the combiner sees a byte of it.
        self.too_early: list[str] = []
        combiner.on_result = self._check_on_record
        self._options = self.arguments(NAME, poll_interval="0.05")
        self._client = NAME
        self.node = self.start_node()

    def _check_on_record(self, update_id: str) -> None:
        for name in ("release", "sending"):
            if not any(event.get("model_update_id") == update_id for event in events(self.state, name)):
                self.too_early.append(f"update {update_id} was sent without {name} on record")

    def start_node(self) -> FaultNode:
        """Starts the node (again) and waits until it is connected."""
        before = self.connects()
        self.launch_node()
        self.wait_connected(before + 1)
        return self.node

    def launch_node(self) -> None:
        self.node = FaultNode(self.points, self._options, self.combiner.mint_enrollment())

    def connects(self) -> int:
        """How often the node has connected."""
        client = self.combiner.board.clients.get(NAME)
        return client.announced.count("Connect") if client else 0

    def heartbeats(self) -> int:
        client = self.combiner.board.clients.get(NAME)
        return client.heartbeats if client else 0

    def wait_heartbeat(self) -> None:
        """The agent lives: one more heartbeat arrives."""
        before = self.heartbeats()
        assert self.combiner.board.wait_until(lambda: self.heartbeats() > before, WAIT_S), self.node.text

    def run_state(self, correlation_id: str) -> str:
        """Where the runner's run-once table has the task; "" when it has none."""
        try:
            written = (self.state / "runner" / "runs" / run_name(correlation_id) / "state").read_bytes()
        except FileNotFoundError:
            return ""
        lines = written.rpartition(b"\n")[0].splitlines()  # a line without its end is being written
        return str(json.loads(lines[-1])["state"]) if lines else ""

    def wait_connected(self, times: int) -> None:
        assert self.combiner.board.wait_until(lambda: self.connects() >= times, WAIT_S), self.node.text

    def arm(self, point: str) -> None:
        (self.points / f"{point}.armed").touch()

    def wait_reached(self, point: str) -> None:
        wait_for((self.points / f"{point}.reached").exists, lambda: f"{point} was not reached; the node said:\n{self.node.text}")

    def go(self) -> None:
        """Every room goes on, and no point is armed any more."""
        for path in self.points.glob("*.armed"):
            path.unlink(missing_ok=True)
        for path in self.points.glob("*.reached"):
            path.with_suffix(".go").touch()

    def clear(self) -> None:
        """Forgets the points of the last case."""
        for path in self.points.iterdir():
            path.unlink()

    @contextmanager
    def step_waits(self) -> Iterator[Callable[[], object]]:
        """Train steps that start meanwhile wait until the end; the function returns when one does."""
        hold = self.gate / "hold"
        hold.touch()
        seen, node = len(self.node.lines), self.node
        try:
            yield lambda: node.wait_for("the step waits", WAIT_S, after=seen)
        finally:
            hold.unlink(missing_ok=True)

    def stop_node(self) -> None:
        assert self.node.stop() == 0, self.node.text


class PrivateSite(FaultSite):
    """A site whose node has a mount namespace of its own (mount_namespaces(7)), where the test mounts over its folders.

    Nothing of it is visible outside; the test looks through /proc/PID/root.  Needs root.
    """

    def __init__(self, folder: Path, combiner: HeldCombiner, mounts: Sequence[tuple[str, str]] = (), **policy: Any) -> None:
        self._mounts = mounts  # (folder below the state, options of a tmpfs), made before the node starts
        self._own_state = folder / "state"
        super().__init__(folder, combiner, **policy)

    def launch_node(self) -> None:
        lines = []
        for name, options in self._mounts:
            (self._own_state / name).mkdir(parents=True, exist_ok=True)
            lines.append(f"mount -t tmpfs -o {options} tmpfs '{self._own_state / name}'")
        script = " && ".join([*lines, 'exec "$@"'])
        around = ["unshare", "-m", "--propagation", "private", "sh", "-c", script, "node"]
        self.node = FaultNode(self.points, self._options, self.combiner.mint_enrollment(), around=around)
        self.state = Path(f"/proc/{self.node.process.pid}/root{self._own_state}")

    def inside(self, *command: str) -> None:
        """Runs a command in the node's mount namespace."""
        subprocess.run(["nsenter", "-t", str(self.node.process.pid), "-m", *command], check=True)

    @contextmanager
    def full(self, name: str) -> Iterator[None]:
        """Meanwhile not a byte more fits into the file system of the state's folder `name`, whatever the node deletes there."""
        folder = self.state / name
        ballast = folder / "ballast"
        with ExitStack() as held, open(ballast, "wb", buffering=0) as file:
            for path in files_below(folder):
                with suppress(FileNotFoundError):
                    held.enter_context(open(path, "rb"))  # what is held open keeps its blocks when it is unlinked
            for size in (1 << 20, 4096, 1):
                try:
                    while file.write(b"\0" * size):
                        pass
                except OSError as exc:
                    assert exc.errno == errno.ENOSPC
            try:
                yield
            finally:
                ballast.unlink()
