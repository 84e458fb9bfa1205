# SPDX-License-Identifier: Apache-2.0
"""`scaleoutctl status` of an installed node: rooms that answer, rooms that do not, and what the screen says then."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from scaleoutd.cli.control import pause
from scaleoutd.cli.status import status
from scaleoutd.errors import PolicyDeniedError
from scaleoutd.ipc.control import Command, Control, Done, Operator, StatusReport


class Site:
    """Three rooms that answer what they are told to."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "etc/scaleoutd").mkdir(parents=True)
        (root / "run/scaleoutd").mkdir(parents=True)
        (root / "var/lib/scaleoutd").mkdir(parents=True)
        (root / "etc/scaleoutd/scaleoutd.yaml").write_text("version: 1\napi_url: https://a\n")
        facts: dict[str, dict[str, Any]] = {
            "agent": {"connected": True, "combiner": "c:443", "client_id": "ward-7", "tasks": 0},
            "runner": {"backend": "systemd"},
            "ledger": {"events": 12, "signed_events": 11},
        }
        self.reports = {
            room: StatusReport(room, "1", os.getpid(), 1_790_000_000_000, "serving", "fine", facts=facts[room]) for room in facts
        }
        self.commands: list[tuple[str, Command]] = []
        self.listening: dict[str, tuple[Control, socket.socket]] = {}
        for room in self.reports:
            self.listen(room)

    def listen(self, room: str) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(str(self.root / f"run/scaleoutd/{room}.control"))
        listener.listen()
        self.listening[room] = Control(room, listener, _Desk(self, room)).start(), listener

    def stop(self, room: str) -> None:
        control, listener = self.listening.pop(room)
        control.close()
        listener.close()


class _Desk:
    def __init__(self, site: Site, room: str) -> None:
        self._site, self._room = site, room

    def report(self) -> StatusReport:
        return self._site.reports[self._room]

    def do(self, command: Command, operator: Operator, files: Mapping[str, int]) -> Done:
        if self._room == "ledger":
            raise PolicyDeniedError("no", code="command-refused")
        self._site.commands.append((self._room, command))
        return Done(True, "done")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    for room in list(made.listening):
        made.stop(room)


def run(site: Site, *words: str) -> Result:
    result = CliRunner().invoke(status, [*words, "--root", str(site.root)], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result


def without_policy_problem(found: dict[str, Any]) -> list[str]:
    """A root without policy.lock is a problem of its own, which this file is not about."""
    return [problem["what"] for problem in found["problems"] if not problem["what"].startswith("policy:")]


def test_the_screen_says_what_a_person_wants_to_know(site: Site) -> None:
    shown = run(site).stdout
    for word in ("agent", "runner", "ledger", "connected to c:443", "ward-7", "12 events, 11 signed"):
        assert word in shown, shown


def test_a_missing_policy_is_a_problem_with_the_command_that_helps(site: Site) -> None:
    result = run(site, "--json")
    assert result.return_value == 1 and json.loads(result.stdout)["health"] == "unhealthy"
    assert "scaleoutctl policy apply" in json.loads(result.stdout)["problems"][0]["fix"]


def test_what_keeps_a_room_from_its_work_is_told(site: Site) -> None:
    site.reports["runner"] = replace(
        site.reports["runner"], state="refusing", code="policy-mismatch", message="digests differ", hint="run policy apply"
    )
    found = json.loads(run(site, "--json").stdout)
    assert without_policy_problem(found) == ["runner: digests differ [policy-mismatch]"]


def test_a_room_that_does_not_run_is_not_started(site: Site) -> None:
    site.stop("agent")
    (site.root / "run/scaleoutd/agent.control").unlink()
    result = run(site, "--json")
    assert result.return_value == 3 and json.loads(result.stdout)["health"] == "stopped"
    assert "does not run" in run(site).stdout


def test_wait_ends_in_time_with_a_status_of_its_own(site: Site) -> None:
    assert run(site, "--wait", "healthy", "--timeout", "1s").return_value == 75


def test_a_socket_that_nobody_answers_is_a_problem_and_not_a_traceback(site: Site) -> None:
    site.stop("ledger")
    found = json.loads(run(site, "--json").stdout)
    assert any("ledger" in problem for problem in without_policy_problem(found))


def test_pause_tells_the_runner_first(site: Site) -> None:
    result = CliRunner().invoke(pause, ["--reason", "x", "--root", str(site.root), "--json"], standalone_mode=False)
    assert json.loads(result.stdout)["changed"] is True
    assert [room for room, _ in site.commands] == ["runner", "agent"]
