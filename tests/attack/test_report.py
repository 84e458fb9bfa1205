# SPDX-License-Identifier: Apache-2.0
"""docs/attack-report.md lists what is attempted today, and nothing in it went through."""

from __future__ import annotations

from tests.attack.attempts import ATTEMPTS
from tests.attack.hostile_models import MODELS
from tests.attack.matrix import BOOTED_CELLS, CELLS
from tests.attack.report import BOOTED, FILE, collected
from tests.system.unit_arena import IN_ANOTHER_SLOT

AGAIN = "run `make attack-report` as root"


def rows(heading: str) -> list[list[str]]:
    part = FILE.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    table = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")]
    return table[2:] if table[1][0].startswith("-") else table[1:]


def test_the_document_has_every_attempt_and_cell() -> None:
    assert [row[0] for row in rows("Attempts")] == list(ATTEMPTS), AGAIN
    assert [row[1:4] for row in rows("Cells")] == [[cell.backend, cell.who, cell.host] for cell in (*CELLS, *BOOTED_CELLS)], AGAIN
    assert [row[0] for row in rows("What is another slot's")] == list(IN_ANOTHER_SLOT), AGAIN
    assert [row[0] for row in rows("Hostile models and updates")] == [row.attack for row in MODELS], AGAIN


def test_the_document_has_every_case_of_the_taken_agent() -> None:
    listed = [line.removeprefix("- ") for line in FILE.read_text().splitlines() if line.startswith("- ")]
    assert listed == [name.partition("::")[2] for name in collected(BOOTED[1])], AGAIN


def test_nothing_in_it_went_through() -> None:
    text = FILE.read_text()
    assert "WENT THROUGH" not in text and "Went through though an outcome was promised: 0." in text
    assert "Controls that failed: 0." in text
