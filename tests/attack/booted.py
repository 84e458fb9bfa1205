# SPDX-License-Identifier: Apache-2.0
"""The cells of backend `systemd`: a container is booted, a node installed and started in it, and its step unit attacked.

What tests/system/test_units_attacks*.py assert, for the report: the same programs, the same drop-ins, their controls once, since
outside of the unit every one of these hosts is the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.attack.arena import Answer
from tests.attack.attempts import ATTEMPTS
from tests.attack.matrix import BOOTED_CELLS, Cell, Found
from tests.system.attacked import NO_CONTROL_IN_A_CONTAINER, AttackedNode
from tests.system.container import Container
from tests.system.hospital import Hospital
from tests.system.image import missing_for_container
from tests.system.install import install_tree


@dataclass(frozen=True)
class Booted:
    """`found` and `slot` by cell: what was attempted outside of the unit's view, and on what is another slot's; `controls` and
    `slot_controls` by attempt."""

    found: Mapping[Cell, Found]
    slot: Mapping[Cell, Found]
    controls: Mapping[str, Answer]
    slot_controls: Mapping[str, Answer]

    def failed_controls(self) -> list[str]:
        """Those that fail though a container's root may do such a thing."""
        may_fail = NO_CONTROL_IN_A_CONTAINER | {name for name, attempt in ATTEMPTS.items() if attempt.absent}
        failed = {name for name, answer in self.controls.items() if answer.outcome != "allowed"} - may_fail
        return sorted(failed | {name for name, answer in self.slot_controls.items() if answer.outcome != "allowed"})


def why_not() -> str:
    """The reason why nothing can be booted here, or ''."""
    return missing_for_container()


def examine_booted() -> Booted:
    """Every cell of BOOTED_CELLS in one guest, one after the other."""
    found, slot = {}, {}
    controls: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, Container() as guest:
        install_tree(guest)
        with Hospital(guest, Path(folder, "site")) as hospital:
            hospital.bring()
            hospital.start()
            node = AttackedNode(hospital)
            for cell in BOOTED_CELLS:
                node.stand_on(cell.host)
                told = node.attempt_all(controls=not controls)
                controls = controls or told["control"]
                found[cell], slot[cell] = (Found(None, answers=answers(told["inside"][kind])) for kind in ("machine", "slot"))
    return Booted(found, slot, answers(controls["machine"]), answers(controls["slot"]))


def answers(told: Mapping[str, tuple[str, str]]) -> dict[str, Answer]:
    return {name: Answer(*answer) for name, answer in told.items()}
