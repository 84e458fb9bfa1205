# SPDX-License-Identifier: Apache-2.0
"""A node in the foreground: its folders, the rooms as children, what steps print on the terminal, an orderly end."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from scaleoutd.agent.config import AgentConfig
from scaleoutd.cli.rooms import Rooms, RoomSpec
from scaleoutd.cli.terminal import StepOutput, say
from scaleoutd.core import records, strictjson
from scaleoutd.core.policy import Policy
from scaleoutd.durable import make_private_folder, replace_file


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


class Node:
    """The rooms of one node.  Without `agent` there are ledger and runner only (`scaleoutctl run`)."""

    def __init__(
        self,
        folders: Folders,
        policy: Policy,
        agent: AgentConfig | None = None,
        *,
        output: StepOutput | None = None,
        on_event: Callable[[str, str], None] = lambda room, what: None,
    ) -> None:
        folders.make(policy)
        self.output = output or StepOutput()
        self._agent = agent
        backend = "namespaces" if policy.backend == "auto" else policy.backend
        specs = [
            RoomSpec("ledger", ["--state", str(folders.audit)], server=True, client=False),
            RoomSpec(
                "runner",
                ["--state", str(folders.runner), "--policy", str(folders.policy_lock), "--backend", backend],
                server=True,
                descriptors=self._terminal,
            ),
        ]
        if agent is not None:
            specs.append(RoomSpec("agent", [], server=False, descriptors=self._configuration))
        self.rooms = Rooms(specs, on_event=on_event, extra={self.output.reader: self.output.pump})
        self._signal = 0

    def _terminal(self) -> tuple[list[str], list[int]]:
        fd = self.output.writer()
        return ["--terminal", str(fd)], [fd]

    def _configuration(self) -> tuple[list[str], list[int]]:
        """The agent's configuration on a descriptor: a token is never on a command line or in an environment."""
        fd = os.memfd_create("scaleoutd-agent-config", os.MFD_CLOEXEC)
        if self._agent is not None:
            os.write(fd, strictjson.canonical(records.encode(self._agent)))
        os.lseek(fd, 0, os.SEEK_SET)
        return ["--config", str(fd)], [fd]

    def run(self) -> int:
        """Starts everything and serves until a signal or until the agent gives up; returns the exit status."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._stop_on)
        try:
            self.rooms.start()
            while not self._signal:
                self.rooms.turn()
                status = self.rooms.ended_with("agent") if self._agent is not None else None
                if status is not None:
                    return status
            say(f"stopping ({signal.Signals(self._signal).name}) …")
            return 0
        finally:
            self.stop()

    def stop(self) -> None:
        self.rooms.stop()
        self.output.close()

    def _stop_on(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
