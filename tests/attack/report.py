# SPDX-License-Identifier: Apache-2.0
"""python -m tests.attack.report: the attack matrix as one table, printed and written to docs/attack-report.md.

    attempt | outcome attacked | control outside | one column for each cell of matrix.py

the last of them in a node that is booted for it (booted.py), and after it hostile models and updates with a careless reader as
control, and the cases that the taken agent's tests make.  Exit status 1 when something went through that must not.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.attack.arena import Answer, Arena
from tests.attack.attempts import ATTEMPTS
from tests.attack.attempts.registry import OWN_CODE
from tests.attack.booted import Booted, examine_booted, why_not
from tests.attack.gate import answer
from tests.attack.hostile_models import MODELS
from tests.attack.matrix import BESIDE, RUNNABLE, Cell, Found, examine
from tests.step_client import PROJECT, StepClient
from tests.system.attacked import NO_CONTROL_IN_A_CONTAINER

FILE = PROJECT / "docs" / "attack-report.md"
BOOTED = ("tests/system/test_units_attacks*.py", "tests/system/test_units_taken_agent.py")


def main() -> int:
    text, bad = report()
    print(text)
    FILE.write_text(text)
    return 1 if bad else 0


def report() -> tuple[str, int]:
    """The document, and how many things went through that must not."""
    found = {cell: examine(cell) for cell in RUNNABLE}
    missing = why_not()
    booted = None if missing else examine_booted()
    unexpected = failed_booted = 0
    if booted is not None:
        found |= booted.found
        unexpected = sum(len(result.unexplained()) for result in booted.slot.values())
        failed_booted = len(booted.failed_controls())
    controls = dict(_controls())
    models, wrong_models = _models()
    unexpected += sum(len(result.unexplained()) for result in found.values())
    failed = [name for name, (outcome, _) in controls.items() if outcome == "failed"]
    lines = [
        "# Attack report",
        "",
        "Made by `make attack-report`; do not edit. " + _machine(),
        "",
        f"{len(ATTEMPTS)} attempts in {len(found)} cells, {len(MODELS)} hostile models and updates,"
        f" {len(_taken_agent())} cases of a taken agent."
        f" Went through though an outcome was promised: {unexpected}. Controls that failed: {len(failed) + failed_booted}.",
        "",
        *_cells(found),
        "",
        *_table(found, controls, booted),
        "",
        *(_slots(booted) if booted is not None else [f"Cells of backend `systemd` were not run: {missing}."]),
        "",
        *models,
        "",
        *_taken(),
    ]
    return "\n".join(lines) + "\n", unexpected + wrong_models + len(failed) + failed_booted


def _machine() -> str:
    release = platform.freedesktop_os_release().get("PRETTY_NAME", "an unknown system")
    return f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC, {release}, Linux {platform.release()}, {platform.machine()}."


def _cells(found: Mapping[Cell, Found]) -> Iterator[str]:
    yield "## Cells"
    yield ""
    yield "`no-userns`: no user namespaces can be made. `landlock-off`, `abi-2`: a filter around the launcher answers as such a"
    yield "kernel (tests/attack/hosts.py). A policy demands every outcome unless it says otherwise."
    yield "`inner` is the development mode. `systemd` is the shipped unit of a node in a booted container."
    yield ""
    yield "| cell | backend | started by | host | a policy that demands all | the development mode names as open | went through |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for number, (cell, result) in enumerate(found.items(), 1):
        start = f"refused, `{result.refusal[0]}`" if result.refusal else "starts, all proven"
        through = len(result.through())
        went = "nothing can be started" if not result.answers else f"{through}" + (", all named" if through else "")
        names = ", ".join(sorted(result.open)) or "-"
        yield f"| {number} | {cell.backend} | {cell.who} | {cell.host} | {start} | {names} | {went} |"
    yield ""
    yield f"Beside the outcomes, in every cell of `inner` (docs/sandbox.md): {', '.join(sorted(BESIDE))}."


def _table(found: Mapping[Cell, Found], controls: Mapping[str, tuple[str, str]], booted: Booted | None) -> Iterator[str]:
    yield "## Attempts"
    yield ""
    yield "An errno: denied so; a signal: killed so; refused: the start is; **open**: it went through, and the cell named"
    yield "its outcome as open; own code: it went through and attacks no outcome. The control is the same act outside, by root"
    yield "or by the step's uid; that of the cells of `systemd` is made in their guest, whose root may do less."
    yield ""
    head = ["attempt", "attacks", "control", *map(str, range(1, len(found) + 1))] + (
        [] if booted is None else ["control in the guest"]
    )
    yield f"| {' | '.join(head)} |"
    yield "|" + " --- |" * len(head)
    for name, attempt in ATTEMPTS.items():
        told = [_cell(name, result) for result in found.values()]
        if booted is not None:
            absent = attempt.absent or ("right of a container to it" if name in NO_CONTROL_IN_A_CONTAINER else "")
            told.append(_control(booted.controls[name], attempt.control, absent)[1])
        yield f"| {name} | {attempt.outcome} | {controls[name][1]} | {' | '.join(told)} |"


def _slots(booted: Booted) -> Iterator[str]:
    yield "## What is another slot's"
    yield ""
    yield "In backend `systemd` the scratch folders of all slots are in the view: the same acts on what lies in another's,"
    yield "which that folder's mode and Landlock close."
    yield ""
    first = len(RUNNABLE) + 1
    yield f"| attempt | control | {' | '.join(str(first + number) for number in range(len(booted.slot)))} |"
    yield "| --- | --- |" + " --- |" * len(booted.slot)
    for name, control in booted.slot_controls.items():
        told = [_cell(name, result) for result in booted.slot.values()]
        yield f"| {name} | {_control(control, 'root', '')[1]} | {' | '.join(told)} |"


def _cell(name: str, result: Found) -> str:
    if not result.answers:
        return "refused"
    found = result.answers[name]
    if found.outcome in ("denied", "killed"):
        return found.detail.split()[0]
    if ATTEMPTS[name].outcome == OWN_CODE:
        return "own code"
    return "**WENT THROUGH**" if name in result.unexplained() else "**open**"


def _controls() -> Iterator[tuple[str, tuple[str, str]]]:
    arena = Arena("root" if os.geteuid() == 0 else "user")
    try:
        for name, attempt in ATTEMPTS.items():
            if attempt.control == "root" and not arena.root:
                yield name, ("none", "none: needs root")
            else:
                yield name, _control(arena.control(name, attempt.control), attempt.control, attempt.absent)
    finally:
        arena.close()


def _control(found: Answer, who: str, absent: str) -> tuple[str, str]:
    if found.outcome == "allowed":
        return "allowed", f"{who}: succeeds"
    if absent:
        return "none", f"none: no {absent} here ({found.detail.split()[0]})"
    return "failed", f"**{who}: {found.outcome} {found.detail}**"


def _models() -> tuple[list[str], int]:
    lines = ["## Hostile models and updates", "", "| attack | control: a careless reader | gate |", "| --- | --- | --- |"]
    bad = 0
    with StepClient() as client, tempfile.TemporaryDirectory() as folder:
        for number, row in enumerate(MODELS):
            place = Path(folder) / str(number)
            place.mkdir()
            fooled, found = row.naive(row.data), answer(client, row, place)
            bad += found != row.code or not fooled
            lines.append(f"| {row.attack} | {'is taken in' if fooled else '**is not taken in**'} | {found} |")
    return lines, bad


def _taken_agent() -> list[str]:
    """The names of the cases, as pytest collects them."""
    return [name.partition("::")[2] for name in collected(BOOTED[1])]


def collected(file: str) -> list[str]:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", file]
    done = subprocess.run(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True, check=True)
    return [line for line in done.stdout.splitlines() if line.startswith(file)]


def _taken() -> Iterator[str]:
    yield "## A taken agent"
    yield ""
    yield f"Against the real rooms of a booted node, with honest and root's acts as controls: the cases of `{BOOTED[1]}`."
    yield f"`make test` runs them, and with `{BOOTED[0]}` the cells of `systemd` again:"
    yield ""
    for name in _taken_agent():
        yield f"- {name}"


if __name__ == "__main__":
    sys.exit(main())
