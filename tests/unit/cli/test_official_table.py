# SPDX-License-Identifier: Apache-2.0
"""The table of the official client's flags and variables, held against the published package itself."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import click
import pytest

from scaleoutd.cli import official
from scaleoutd.cli.enroll import enroll
from scaleoutd.cli.scaleoutd import start

ROOT = Path(__file__).resolve().parents[3]
OFFICIAL = next((path for path in (ROOT / ".venv-official/bin/python",) if path.exists()), None)
needs_official = pytest.mark.skipif(OFFICIAL is None, reason="no .venv-official here: `make setup` makes it")
LIST_OPTIONS = """
import json
from scaleout.cli.client_cmd import client_start_cmd, enroll_client
print(json.dumps([[[*p.opts] for p in c.params] for c in (client_start_cmd, enroll_client)]))
"""


def official_options() -> tuple[list[list[str]], list[list[str]]]:
    done = subprocess.run([str(OFFICIAL), "-c", LIST_OPTIONS], capture_output=True, text=True, check=True)
    begin, enrolling = json.loads(done.stdout.splitlines()[-1])
    return begin, enrolling


def spellings(command: click.Command) -> set[str]:
    return {name for parameter in command.params for name in parameter.opts}


@needs_official
def test_every_flag_of_the_official_start_is_in_the_table_and_on_our_command_line() -> None:
    begin, _ = official_options()
    assert len(begin) > 10
    known = {name for entry in official.FLAGS for name in entry.names}
    given = {name for names in begin for name in names}
    assert given - known == set()
    assert given - spellings(start) == set()


@needs_official
def test_every_flag_of_the_official_enroll_is_ours_too() -> None:
    _, enrolling = official_options()
    assert {name for names in enrolling for name in names} - spellings(enroll) == set()


@needs_official
def test_every_variable_that_the_official_package_reads_is_in_the_table() -> None:
    assert OFFICIAL is not None
    reads = re.compile(r"""(?:environ\.get\(|getenv\(|environ\[|env\.get\(|env\[)\s*["'](SCALEOUT_[A-Z_]+)["']""")
    found: set[str] = set()
    for package in ("scaleout", "scaleoututil"):
        for path in (OFFICIAL.parent.parent / "lib").glob(f"python3*/site-packages/{package}/**/*.py"):
            if "tests" not in path.parts:
                found |= set(reads.findall(path.read_text()))
    assert len(found) > 15
    assert found - {entry.names[0] for entry in official.VARIABLES} == set()


def test_the_table_names_only_flags_that_we_take() -> None:
    assert {name for entry in official.FLAGS for name in entry.names} <= spellings(start)


@pytest.mark.parametrize(
    "entry", [e for e in (*official.FLAGS, *official.VARIABLES) if e.fate != "honoured"], ids=lambda entry: entry.names[0]
)
def test_what_is_not_honoured_says_what_holds_instead(entry: official.Entry) -> None:
    assert len(entry.instead) > 10
    assert entry.fate == "no-effect" or "; " in entry.instead, "a refusal needs its replacement"
