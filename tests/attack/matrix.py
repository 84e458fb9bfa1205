# SPDX-License-Identifier: Apache-2.0
"""The cells of the attack matrix: backend × who started the launcher × host, and what is expected in each.

A cell holds when no attempt succeeds; where an outcome cannot be proven the start must be refused when the policy demands it
(which is the default), and the development mode must name it.  There, an attempt that succeeds attacks an outcome that was named,
or is one of `BESIDE`, what docs/sandbox.md says lies beside the outcomes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from scaleoutd.core.plan import OUTCOMES
from scaleoutd.errors import KernelSupportError
from tests.attack.arena import Answer, Arena
from tests.attack.attempts import ATTEMPTS
from tests.attack.attempts.registry import OWN_CODE
from tests.attack.hosts import HOSTS, Host

# Without namespaces, whatever Landlock can do: it does not know these.
BESIDE = frozenset(
    {
        *("stat-outside", "readlink-outside", "getxattr-outside", "watch-outside"),  # names and facts of files, not contents
        *("affinity-of-victim", "scheduler-of-victim"),  # of one's own uid's processes
    }
)


@dataclass(frozen=True)
class Cell:
    backend: str
    who: str  # root or user
    host: Host
    starts: bool = True  # whether a policy that demands every outcome gets a run

    @property
    def name(self) -> str:
        return f"{self.backend} {self.who} {self.host}"

    @property
    def mode(self) -> str:
        return "inner" if self.backend == "inner" else self.who


CELLS = (
    Cell("namespaces", "root", "plain"),
    Cell("namespaces", "root", "no-userns"),
    Cell("namespaces", "root", "landlock-off"),
    Cell("namespaces", "root", "abi-2"),
    Cell("namespaces", "user", "plain"),
    Cell("namespaces", "user", "no-userns", starts=False),
    Cell("namespaces", "user", "landlock-off"),
    Cell("namespaces", "user", "abi-2"),
    Cell("inner", "user", "plain", starts=False),
    Cell("inner", "user", "no-userns", starts=False),
    Cell("inner", "user", "landlock-off", starts=False),
    Cell("inner", "user", "abi-2", starts=False),
)
# Of the shipped step unit, in a booted container (tests/system/attacked.py).
BOOTED_CELLS = tuple(Cell("systemd", "root", host) for host in HOSTS)
# Root's launcher can imitate all of them; an ordinary user's tests have no other user, and no /dev of their own.
RUNNABLE = CELLS if os.geteuid() == 0 else tuple(cell for cell in CELLS if cell.who == "user" and cell.host != "no-userns")


@dataclass(frozen=True)
class Found:
    """What a cell gave.  `refusal`: code and message of the refused start; `answers` are empty where nothing can be started
    at all; `open`: the outcomes that the development mode names."""

    refusal: tuple[str, str] | None
    open: frozenset[str] = frozenset()
    answers: Mapping[str, Answer] = field(default_factory=dict)

    def through(self) -> set[str]:
        """Attempts that succeeded, without those that are the step's own code's."""
        return {
            name
            for name, answer in self.answers.items()
            if answer.outcome not in ("denied", "killed") and ATTEMPTS[name].outcome != OWN_CODE
        }

    def unexplained(self) -> set[str]:
        """Of those, what attacks no outcome that was named as open."""
        return {name for name in self.through() - BESIDE if ATTEMPTS[name].outcome not in self.open}


def examine(cell: Cell) -> Found:
    """Starts the launcher of the cell, has it prove all outcomes, and makes every attempt."""
    arena = Arena(cell.mode, cell.host)
    try:
        refusal = None
        try:
            arena.open_outcomes(OUTCOMES)
        except KernelSupportError as exc:
            refusal = exc.code, exc.message
        if refusal and refusal[0] == "namespaces-denied":
            return Found(refusal)
        named = arena.open_outcomes(()) if refusal else set()
        return Found(refusal, frozenset(named), arena.attempt_all(ATTEMPTS))
    finally:
        arena.close()
