# SPDX-License-Identifier: Apache-2.0
"""docs/coming-from-scaleout.md against the program: the tables of flags and variables, and the commands that it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scaleoutd.cli import official, scaleoutctl
from scaleoutd.cli.scaleoutd import start

DOCUMENT = (Path(__file__).resolve().parents[3] / "docs" / "coming-from-scaleout.md").read_text()
FATES = {"as there": "honoured", "no effect": "no-effect", "refused": "refused"}


def rows(document: str, heading: str) -> dict[tuple[str, ...], tuple[str, str]]:
    """Names → fate and text of the table below `heading`."""
    section = document.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    found = {}
    for line in section.splitlines():
        if line.startswith("| `"):
            names, fate, text = (cell.strip() for cell in line.strip("|").split(" | "))
            found[tuple(re.findall("`([^`]+)`", names))] = (FATES[fate], text.strip(" |"))
    return found


def differences(document: str) -> list[str]:
    told = []
    for heading, table in (("Flags of `client start`", official.FLAGS), ("Variables", official.VARIABLES)):
        shown = rows(document, heading)
        for entry in table:
            fate, text = shown.pop(entry.names, ("missing", ""))
            if fate != entry.fate or (entry.instead and text != entry.instead):
                told.append(f"{entry.names}: {fate} {text!r}")
        told += [f"{names}: not in the program" for names in shown]
    return told


def test_the_tables_are_the_program_s_own() -> None:
    assert differences(DOCUMENT) == []


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("| `--token` | as there |", "| `--token` | no effect |"),
        ("| `--trainer`, `-tr` |", "| `--trainer` |"),
        ("there is no plaintext", "there is plaintext"),
        ("| `SCALEOUT_AUTH_TOKEN` |", "| `SCALEOUT_AUTH_TOKENS` |"),
    ],
)
def test_a_table_that_rots_is_found(right: str, wrong: str) -> None:
    assert right in DOCUMENT
    assert differences(DOCUMENT.replace(right, wrong, 1))


def test_commands_and_flags_that_the_document_names_exist() -> None:
    named = set(re.findall(r"`scaleoutctl ([a-z]+)", DOCUMENT))
    assert named
    assert named - set(scaleoutctl.COMMANDS) == set()
    ours = DOCUMENT.partition("New here: ")[2].partition(";")[0]
    known = {name for parameter in start.params for name in parameter.opts}
    assert set(re.findall(r"`(--[a-z-]+)", ours)) - known == set()
