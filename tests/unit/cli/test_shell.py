# SPDX-License-Identifier: Apache-2.0
"""`run --shell`: the step's own sandbox, by pipe and by pseudo terminal; nothing leaves, and it is on record."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import descendants
from tests.unit.cli.test_status import Person


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Person:
    return Person(tmp_path_factory.mktemp("shell"))


def by_pipe(person: Person, script: str) -> tuple[int, str, str]:
    import subprocess

    run = subprocess.run(
        [*person.command, "run", "train", "--in", "seed.npz", "--shell"],
        cwd=person.project, env=person.environment, input=script, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return run.returncode, run.stdout, run.stderr


def test_it_is_inside_and_its_status_is_the_shells(person: Person) -> None:
    status, out, err = by_pipe(person, 'echo "$SCALEOUTD_COMMAND"; ls /; test -r /in/model.npz && echo model; exit 7\n')
    assert status == 7, err
    lines = out.splitlines()
    assert lines[0] == "python train.py /in/model.npz /scratch/out/model.npz"
    assert {"project", "in", "scratch"} <= set(lines) and not {"home", "root", "var", "mnt"} & set(lines)
    assert lines[-1] == "model"


def test_what_a_step_may_not_a_shell_may_not(person: Person) -> None:
    script = (
        "touch /project/x 2>/dev/null || echo no-write\n"
        f"cat {person.project}/train.py 2>/dev/null || echo no-host\n"
        "python -c 'import socket; socket.socket(2, 1)' 2>/dev/null || echo no-socket\n"
        "touch /scratch/fine && echo control\n"
    )
    status, out, err = by_pipe(person, script)
    assert (status, out.split()) == (0, ["no-write", "no-host", "no-socket", "control"])
    assert "refused by the sandbox: socket" in err


def test_nothing_leaves_and_it_is_on_record(person: Person) -> None:
    by_pipe(person, "cp /in/model.npz /scratch/out/model.npz; echo '{\"num_examples\": 9}' > /scratch/out/model.npz-metadata\n")
    assert not list(person.state.glob("runner/outbox/*"))
    assert not list(person.state.glob("runner/scratch/*/*")) and not list(person.state.glob("runner/in/*"))
    events = [json.loads(line) for line in person.call("audit", "tail", "-n", "100", "--json").stdout.splitlines()]
    assert not [item for item in events if item["type"] in ("release", "computed", "run-about-to-start")]
    shells = [item["body"] for item in events if item["type"] == "operator-command"][-2:]
    assert [body["command"] for body in shells] == ["shell", "shell"]
    assert "exit_status" not in shells[0] and shells[1]["exit_status"] == 0
    assert person.call("audit", "verify", person.state / "audit").returncode == 0


def test_it_is_refused_under_a_policy(person: Person, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(f"version: 1\nproject: {{name: p, path: {person.project}}}\ntrust_root: /nowhere\n")
    run = person.call("run", "train", "--in", "seed.npz", "--shell", "--policy", policy)
    assert run.returncode == 78 and "development mode" in run.stderr


class Terminal:
    """The command in a pseudo terminal of its own, as a person has it."""

    def __init__(self, person: Person) -> None:
        command = [*person.command, "run", "train", "--in", "seed.npz", "--shell"]
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(person.project)
            os.execve(command[0], command, {**person.environment, "TERM": "xterm"})
        self.text = ""

    def until(self, word: str, timeout_s: float = 60.0) -> str:
        deadline = time.monotonic() + timeout_s
        while word not in self.text:
            assert time.monotonic() < deadline, self.text
            if select.select([self.fd], [], [], 0.2)[0]:
                self.text += os.read(self.fd, 4096).decode("utf-8", "replace")
        found, _, self.text = self.text.partition(word)
        return found + word

    def wait_process(self, command: str, timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while command not in descendants(self.pid).values():
            assert time.monotonic() < deadline, descendants(self.pid)
            time.sleep(0.01)

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def end(self) -> int:
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.fd)
        self.pid = 0
        return status


@pytest.fixture
def terminal(person: Person) -> Iterator[Terminal]:
    found = Terminal(person)
    yield found
    if found.pid:
        os.kill(found.pid, signal.SIGKILL)
        os.waitpid(found.pid, 0)


def test_in_a_terminal_there_is_a_prompt_and_ctrl_c_stops_what_runs_and_not_the_shell(terminal: Terminal) -> None:
    terminal.until("(my-project) $ ")
    terminal.type("test -t 0 && test -t 1 && echo is-a-''terminal\n")
    terminal.until("is-a-terminal")
    terminal.type("echo begin''s; sleep 50; echo not-''reached\n")
    terminal.until("begins")
    terminal.until("\n")
    terminal.wait_process("sleep 50 ")  # the shell makes it the foreground before it is executed
    terminal.type("\x03")
    terminal.type("echo still-''here; exit 4\n")
    assert "not-reached" not in terminal.until("still-here")
    assert terminal.end() == 4


def test_the_persons_own_terminal_cannot_be_typed_into(terminal: Terminal) -> None:
    """TIOCSTI on the only terminal there is: denied by the filter; a harmless ioctl on it is the control."""
    terminal.until("(my-project) $ ")
    terminal.type(
        "python -c \"import fcntl,termios; fcntl.ioctl(0, termios.TIOCGWINSZ, b'0'*8); print('con'+'trol');"
        " fcntl.ioctl(0, termios.TIOCSTI, b'x')\" 2>&1 | tail -n 9; exit\n"
    )
    terminal.until("control")
    terminal.until("Error")
    terminal.end()
