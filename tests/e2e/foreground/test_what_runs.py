# SPDX-License-Identifier: Apache-2.0
"""What a step is given in the foreground: project, files of it, Python, data; and rooms that come back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scaleoutd.core.project import IGNORE_FILE
from scaleoutd.devcombiner.server import DevCombiner
from tests.e2e.foreground.person import Person

LOOK = """
import os
print("prefix", sys.prefix)
print("files", sorted(os.listdir(".")))
print("data", {key: open(path).read() for key, path in os.environ.items() if key.startswith("SCALEOUTD_DATA_")})
"""


@pytest.fixture
def looker(tmp_path: Path, combiner: DevCombiner) -> Person:
    """Not started yet."""
    return Person(tmp_path, combiner, train_body=LOOK)


def _printed(person: Person, word: str) -> str:
    return person.lines[person.wait_for(f"│ {word} ")].split(f"│ {word} ")[1]


def test_the_project_is_the_one_that_is_named(looker: Person, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    looker.project.folder.rename(elsewhere)
    looker.folder.mkdir()
    with looker as person:
        person.start("--project", str(elsewhere))
        assert f"project elsewhere in {elsewhere}" in person.text
        assert person.task().status == "COMPLETED"


def test_what_is_ignored_is_not_signed_not_seen_and_not_a_change(looker: Person) -> None:
    (looker.folder / IGNORE_FILE).write_text("notes/\n*.csv\n!kept.csv\n")
    (looker.folder / "notes").mkdir()
    for name in ("notes/a.txt", "rows.csv", "kept.csv"):
        (looker.folder / name).write_text("1")
    with looker as person:
        person.start()
        assert person.task().status == "COMPLETED"
        files = _printed(person, "files")
        assert "'kept.csv'" in files and "rows.csv" not in files and "notes" not in files
        (looker.folder / "rows.csv").write_text("2")
        (looker.folder / "notes" / "b.txt").write_text("2")
        person.task()
        assert "re-signed" not in person.text
        (looker.folder / "kept.csv").write_text("2")
        person.task()
        person.wait_for("re-signed, 1 file changed: kept.csv")


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_the_active_environment_s_python_runs_the_step(variable: str, looker: Person, tmp_path: Path) -> None:
    prefix = tmp_path / "my-env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(prefix)], check=True)
    with looker as person:
        person.start(**{variable: str(prefix)})
        assert f"steps run with {prefix}/bin/python" in person.text
        assert person.task().status == "COMPLETED"
        assert _printed(person, "prefix") == str(prefix)


def test_without_an_environment_it_is_the_python_of_the_path(looker: Person) -> None:
    with looker as person:
        person.start(PATH="/usr/bin:/bin")
        assert person.task().status == "COMPLETED"
        assert _printed(person, "prefix") == "/usr"


def test_data_are_where_the_variable_says_and_cannot_be_written(looker: Person, tmp_path: Path) -> None:
    samples = tmp_path / "samples.csv"
    samples.write_text("a,b")
    with looker as person:
        person.start("--data", f"samples={samples}")
        assert person.task().status == "COMPLETED"
        assert _printed(person, "data") == "{'SCALEOUTD_DATA_SAMPLES': 'a,b'}"
        person.edit("train.py", "import os", "import os; open(os.environ['SCALEOUTD_DATA_SAMPLES'], 'a')")
        assert person.task().status == "FAILED"
        told = person.lines[person.wait_for("! train.py:8 ")]
        assert " /data/samples; " in told  # denied by its mode for root's slot, read-only for its owner
    assert samples.read_text() == "a,b"


@pytest.mark.parametrize("room", ["agent", "runner", "ledger"])
def test_a_room_that_is_killed_comes_back_says_so_and_the_next_task_is_done(room: str, person: Person) -> None:
    person.start()
    assert person.task().status == "COMPLETED"
    before = person.rooms()
    os.kill(before[room], signal.SIGKILL)
    index = person.wait_for(f"! room {room}: ended -9")
    person.wait_for(f"! room {room}: restarting", after=index)
    assert person.task().status == "COMPLETED"
    after = person.rooms()
    assert after[room] != before[room]
    assert {name for name in after if after[name] == before[name]} == {"agent", "runner", "ledger"} - {room}
