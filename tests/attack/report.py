# SPDX-License-Identifier: Apache-2.0
"""python -m tests.attack.report: the table attempt × mode, with the control beside it (Makefile target attack-report)."""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.attack.arena import Answer, Arena
from tests.attack.attempts import ATTEMPTS, CONTROLS
from tests.attack.gate import answer
from tests.attack.hostile_models import MODELS
from tests.attack.test_attempts import OPEN_IN_INNER
from tests.step_client import StepClient

_WIDTH = 26


def main() -> int:
    """Prints the table; exit status 1 when an attempt went through in a confined mode."""
    modes = ["root", "user", "inner"] if os.geteuid() == 0 else ["user", "inner"]
    arenas = [Arena(mode) for mode in modes]
    through: Counter[str] = Counter()
    try:
        print(f"{'attempt':30}{'control outside':{_WIDTH}}" + "".join(f"{mode:{_WIDTH}}" for mode in modes))
        for name in ATTEMPTS:
            cells = [_control(arenas[0], name)]
            for arena in arenas:
                answer = arena.attempt(name)
                bad = answer.outcome not in ("denied", "killed")
                through[arena.mode] += bad and not (arena.mode == "inner" and name in OPEN_IN_INNER)
                cells.append(_text(answer) if not bad else f"ALLOWED {answer.detail}")
            print(f"{name:30}" + "".join(f"{cell[: _WIDTH - 2]:{_WIDTH}}" for cell in cells), flush=True)
    finally:
        for arena in arenas:
            arena.close()
    print(f"\n{len(ATTEMPTS)} attempts, went through unexpectedly: " + ", ".join(f"{mode} {through[mode]}" for mode in modes))
    print("inner (no namespaces) leaves open, and says so in its probe: " + ", ".join(sorted(OPEN_IN_INNER)))
    return 1 if _hostile_models() or any(through.values()) else 0


def _hostile_models() -> int:
    """The table of hostile models and updates; how many were taken, or did nothing to a careless reader either."""
    bad = 0
    print(f"\n{'hostile model or update':50}{'a careless reader':{_WIDTH}}gate")
    with StepClient() as client, tempfile.TemporaryDirectory() as folder:
        for number, row in enumerate(MODELS):
            place = Path(folder) / str(number)
            place.mkdir()
            fooled, found = row.naive(row.data), answer(client, row, place)
            bad += found != row.code or not fooled
            print(f"{row.attack:50}{'is taken in' if fooled else 'IS NOT TAKEN IN':{_WIDTH}}{found}")
    print(f"\n{len(MODELS)} hostile models and updates, unexpected: {bad}")
    return bad


def _control(arena: Arena, name: str) -> str:
    who = CONTROLS[name]
    if who not in ("root", "step"):
        return f"- {who}"
    if who == "root" and not arena.root:
        return "- needs root"
    return f"{who}: {_text(arena.control(name, who))}"


def _text(answer: Answer) -> str:
    return f"{answer.outcome} {answer.detail}".strip().replace("\n", " ")


if __name__ == "__main__":
    sys.exit(main())
