# SPDX-License-Identifier: Apache-2.0
"""A node in the foreground: its folders, the rooms as children, what a person sees, an orderly end.

What steps print and how tasks end go through this process, so that the terminal has one order: the step's last line, the
failure, what the sandbox had to do with it.  Connections, tasks and deliveries are the agent's lines.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from scaleoutd.agent.config import AgentConfig
from scaleoutd.cli.approvaldoor import door_for
from scaleoutd.cli.denials import SandboxFacts, Witness
from scaleoutd.cli.development import DevelopmentSigner
from scaleoutd.cli.rooms import Rooms, RoomSpec
from scaleoutd.cli.terminal import StepOutput, advise, escape, fail, say, warn
from scaleoutd.core import records, strictjson
from scaleoutd.core.policy import Policy
from scaleoutd.durable import make_private_folder, replace_file
from scaleoutd.ipc.doors import SignedNow, TaskEnded

INTERRUPTED = 130  # of a shell's command that SIGINT ended


@dataclass(frozen=True)
class Folders:
    """Where a node keeps its state: one folder for each room, and the policy in force."""

    state: Path

    @property
    def agent(self) -> Path:
        return self.state / "agent"

    @property
    def runner(self) -> Path:
        return self.state / "runner"

    @property
    def audit(self) -> Path:
        return self.state / "audit"

    @property
    def policy_lock(self) -> Path:
        return self.state / "policy.lock"

    def make(self, policy: Policy) -> None:
        for folder in (self.state, self.agent, self.runner, self.audit):
            make_private_folder(folder)
        replace_file(self.policy_lock, policy.canonical())


def default_state(name: str) -> Path:
    """`$XDG_STATE_HOME/scaleoutd/<name>`, or below ~/.local/state (XDG Base Directory Specification)."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "scaleoutd" / name


def _printed(log: Path) -> str:
    return f"What it printed is in {log}" if log.stat().st_size else "It printed nothing."


def _warn_of(room: str, text: str) -> None:
    """What the runner found out about the sandbox; the others' words are for the log."""
    for line in text.splitlines() if room == "runner" else ():
        warn(escape(line))


class Node:
    """The rooms of one node.  Without `agent` there are ledger and runner only (`scaleoutctl run`).

    With `signer` the project is signed again before a task when it changed; without it nothing is ever signed.
    """

    def __init__(
        self,
        folders: Folders,
        policy: Policy,
        agent: AgentConfig | None = None,
        *,
        output: StepOutput | None = None,
        facts: SandboxFacts | None = None,
        signer: DevelopmentSigner | None = None,
        compute_lock: str = "",
        on_event: Callable[[str, str], None] = lambda room, what: None,
    ) -> None:
        folders.make(policy)
        self._folders = folders
        self._witness = Witness(facts or SandboxFacts.of(policy), advise)
        self.output = output or StepOutput()
        self.output.observe = self._witness.line
        self._agent = agent
        self._signer = signer
        backend = "namespaces" if policy.backend == "auto" else policy.backend
        runner = ["--state", str(folders.runner), "--policy", str(folders.policy_lock), "--backend", backend]
        if compute_lock:
            runner += ["--compute-lock", compute_lock]
        self._approvals = door_for(policy)
        if self._approvals is not None:
            say(f"a second person approves sessions with: scaleoutctl approve-session --socket {self._approvals.path}")
        specs = [
            RoomSpec("ledger", ["--state", str(folders.audit)], server=True, client=False),
            RoomSpec("runner", runner, server=True, descriptors=self._terminal),
        ]
        if agent is not None:
            specs.append(RoomSpec("agent", [], server=False, descriptors=self._configuration))
        self._woken, self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.rooms = Rooms(
            specs,
            on_event=on_event,
            on_status=_warn_of,
            extra={self.output.reader: self.output.pump, self._woken: self._drain},
            on_sign=self._sign if signer is not None else None,
            on_task_ended=self._task_ended,
        )
        self._signal = 0
        self.told: set[str] = set()  # messages of failures that the person has seen

    def _terminal(self) -> tuple[list[str], list[int]]:
        fd = self.output.writer()
        arguments, descriptors = self._approvals.descriptors() if self._approvals is not None else ([], [])
        return ["--terminal", str(fd), *arguments], [fd, *descriptors]

    def _configuration(self) -> tuple[list[str], list[int]]:
        """The agent's configuration on a descriptor: a token is never on a command line or in an environment."""
        fd = os.memfd_create("scaleoutd-agent-config", os.MFD_CLOEXEC)
        if self._agent is not None:
            os.write(fd, strictjson.canonical(records.encode(self._agent)))
        os.lseek(fd, 0, os.SEEK_SET)
        return ["--config", str(fd)], [fd]

    def run(self) -> int:
        """Starts everything and serves until a signal or until the agent gives up; returns the exit status."""
        # A signal must end the wait in select(2) at once: the step is stopped now, not half a second later.
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._stop_on)
        try:
            self.rooms.start()
            while not self._signal:
                self.rooms.turn()
                status = self.rooms.ended_with("agent") if self._agent is not None else None
                if status is not None and not self._signal:
                    return status
            say(f"stopping ({signal.Signals(self._signal).name}); once more ends it by force" if self._by_hand else "stopping")
            return INTERRUPTED if self._by_hand else 0
        finally:
            self.stop()

    @property
    def _by_hand(self) -> bool:
        return self._signal == signal.SIGINT

    def stop(self) -> None:
        self.rooms.stop()
        signal.set_wakeup_fd(-1)
        self.output.close()
        if self._approvals is not None:
            self._approvals.close()
        for fd in (self._woken, self._wake):
            os.close(fd)
        if self.rooms.hurry:
            warn("ended by force: what was running or being sent is taken up at the next start")

    def _stop_on(self, number: int, frame: FrameType | None) -> None:
        if self._signal:
            self.rooms.hurry = True
        self._signal = self._signal or number
        self.rooms.interrupted = True

    def _drain(self) -> None:
        try:
            os.read(self._woken, 4096)
        except BlockingIOError:
            pass

    # --- what the runner says ---------------------------------------------------------------------------------

    def _sign(self) -> SignedNow:
        if self._signer is None:
            raise AssertionError("a node without a signer was asked to sign")
        signed = self._signer.sign()
        for line in self._signer.lines(signed):
            say(line)
        return SignedNow(signed.version, len(signed.changed))

    def _task_ended(self, ended: TaskEnded) -> None:
        self.output.flush()
        if ended.code:
            log = self._folders.runner / "output" / f"{ended.run}.log"
            ran = ended.code.startswith(("step-", "limit-")) and log.exists()
            fail(ended.message, ended.code, _printed(log) if ran else ended.hint)
            self.told.add(ended.message)
        self._witness.ended(ended)
