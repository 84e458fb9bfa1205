# SPDX-License-Identifier: Apache-2.0
"""Real steps that run into a wall of the sandbox, as a data scientist sees them: file and line, what is not there, what to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from scaleoutd.devcombiner.server import DevCombiner
from tests.e2e.foreground.person import Person

NETWORK = "tried to open a network connection; this sandbox has no network"


@dataclass(frozen=True)
class Wall:
    """`body` stands in train.py from line 7 on; `told` is the one line about the sandbox; `status` how the task must end."""

    body: str
    told: str
    hint: str
    status: str = "FAILED"


WALLS = {
    "socket": Wall("import socket; socket.create_connection(('192.0.2.1', 80))", f"train.py:7 {NETWORK}", "--data ID=PATH"),
    "name": Wall("import socket; socket.gethostbyname('example.org')", f"train.py:7 {NETWORK}", "--data ID=PATH"),
    "download": Wall("import urllib.request as u; u.urlopen('https://example.org')", f"train.py:7 {NETWORK}", "--data ID=PATH"),
    "swallowed": Wall(
        "import socket\ntry: socket.create_connection(('192.0.2.1', 80))\nexcept OSError: pass",
        f"train {NETWORK}", "--data ID=PATH", "COMPLETED",
    ),
    "write into the project": Wall("open('metrics.json', 'w')", "train.py:7 tried to write metrics.json; ", "(<out>)"),
    "write outside": Wall("open('/etc/mine', 'w')", "train.py:7 tried to write /etc/mine; ", "(<out>)"),
    "read outside": Wall("open('/home/no-such-user/data.csv')", "train.py:7 looked for /home/no-such-user/data.csv, ", "--data"),
    "data left out": Wall("open('data.csv')", "train.py:7 looked for data.csv, which is not among", ".scaleoutignore"),
    "program": Wall("import subprocess; subprocess.run(['nvidia-smi-9'])", "train.py:7 tried to start nvidia-smi-9, ", "/usr"),
    "device": Wall("open('/dev/nvidia0')", "train.py:7 looked for /dev/nvidia0; ", "device='cpu'"),
    "user": Wall("import os; os.setpriority(os.PRIO_PROCESS, 0, -5)", "train.py:7 asked for a right that no step has", "explain"),
    "threads": Wall(
        "import threading, time\nfor _ in range(999): threading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
        "train.py:8 could not start a process or thread more; limits.processes allows 256", "raise limits.processes",
    ),
    "files": Wall("x = [open('/dev/null') for _ in range(9999)]", "train.py:7 opened too many files; ", "limits.open_files"),
    "disk": Wall("open('/tmp/x', 'wb').write(bytes(400 << 20))", "train.py:7 filled its space: /tmp holds 256 MiB", "Write less"),
    "memory": Wall("bytearray(1 << 42)", "train.py:7 asked for more memory than limits.memory_bytes allows", "smaller batches"),
    "package": Wall("import no_such_package", "train.py:7 needs the package no_such_package, ", "venv or conda"),
    "keyboard": Wall("input('name? ')", "train.py:7 asked for a line from the keyboard", "client_settings"),
}  # fmt: skip


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    with (
        DevCombiner(client_certificate="none") as combiner,
        Person(tmp_path_factory.mktemp("denied"), combiner, train_body="# the wall") as person,
    ):
        person.start()
        yield person


@pytest.fixture
def person(started: Person) -> Iterator[Person]:
    script = started.project.folder / "train.py"
    before = script.read_text()
    yield started
    script.write_text(before)


@pytest.mark.parametrize("name", WALLS)
def test_a_step_at_a_wall_is_told_once_where_and_what_to_do(name: str, person: Person) -> None:
    wall, before = WALLS[name], len(person.lines)
    person.edit("train.py", "# the wall", wall.body)
    assert person.task().status == wall.status
    last = " sent: " if wall.status == "COMPLETED" else "  → What it printed is in"
    person.wait_for(last, after=before)
    index = person.wait_for(wall.told, after=before)
    assert person.lines[index].startswith("! train"), person.text
    person.wait_for("  → ", after=index)
    assert wall.hint in person.lines[index + 1], person.lines[index + 1]
    about = [line for line in person.lines[before:] if line.startswith("! train")]
    assert len(about) == 1, about


def test_control_a_step_that_meets_no_wall_is_told_nothing(person: Person) -> None:
    before = len(person.lines)
    assert person.task().status == "COMPLETED"
    person.wait_for(" sent: ", after=before)
    assert not [line for line in person.lines[before:] if line.startswith("!")]


def test_a_step_that_printed_nothing_and_died_is_told_by_the_name_of_its_signal(person: Person) -> None:
    before = len(person.lines)
    person.edit("train.py", "# the wall", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert person.task().status == "FAILED"
    index = person.wait_for("[step-killed]", after=before)
    assert "signal 11 (SIGSEGV)" in person.lines[index]
    person.wait_for("It printed nothing.", after=index)
