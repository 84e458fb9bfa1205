# SPDX-License-Identifier: Apache-2.0
"""How an installed node is: what systemd says of its units, what the rooms say at their control sockets, what lies on disk.

Nothing is started to find out, and what this user may not see is left out: root and group scaleoutd-admin see all that matters.

healthy      the three rooms serve, and the agent is connected
held         an administrator paused or drained it
unhealthy    something keeps it from its work; `problems` says what and what to do
stopped      the agent does not run
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from scaleoutd.cli.approve import lines_of as session_lines
from scaleoutd.cli.control import ask
from scaleoutd.cli.measures import ago, counted, size
from scaleoutd.cli.nodestate import read_tasks
from scaleoutd.cli.place import Place
from scaleoutd.cli.policycommand import in_force
from scaleoutd.cli.project import installed
from scaleoutd.core.clock import utc_text
from scaleoutd.errors import PeerError, ScaleoutError

UNITS = {"agent": "scaleoutd.service", "runner": "scaleoutd-runner.service", "ledger": "scaleoutd-ledger.service"}
PROPERTIES = ("ActiveState", "SubState", "Result", "ExecMainStatus", "StatusText", "NRestarts", "NeedDaemonReload")
Health = Literal["healthy", "held", "unhealthy", "stopped"]
ASK_S = 5.0
SHOW_S = 20
CONFIGURATION_STATUSES = {"65", "71", "77", "78"}  # of sysexits(3); systemd does not start such a room again


@dataclass(frozen=True)
class Problem:
    """What is wrong, and what to do."""

    what: str
    fix: str = ""


@dataclass(frozen=True)
class NodeStatus:
    """Everything `status` shows of an installed node; docs/command-line.md documents the keys."""

    health: Health
    units: Mapping[str, Mapping[str, str]]
    rooms: Mapping[str, Mapping[str, Any]]
    policy: Mapping[str, Any] | None
    project: Mapping[str, Any] | None
    tasks: Mapping[str, Any] | None
    disk: Mapping[str, int] | None
    problems: tuple[Problem, ...] = field(default=())


def is_installed(place: Place) -> bool:
    return (place.etc / "scaleoutd.yaml").exists()


def read_status(place: Place) -> NodeStatus:
    problems: list[Problem] = []
    units = read_units(place)
    rooms = _rooms(place, units, problems)
    policy = _policy(place, problems)
    for room, unit in units.items():
        problems += _of_unit(room, unit)
    for report in rooms.values():
        if report["code"]:
            problems.append(Problem(f"{report['room']}: {report['message']} [{report['code']}]", report["hint"]))
    return NodeStatus(
        health=_health(units, rooms, problems),
        units=units,
        rooms=rooms,
        policy=policy,
        project=_project(place),
        tasks=_tasks(place),
        disk=_disk(place),
        problems=tuple(problems),
    )


def read_units(place: Place) -> dict[str, dict[str, str]]:
    """Properties of the rooms' units; empty where systemd does not run, or for another root."""
    program = shutil.which("systemctl")
    if not place.is_this_host or program is None or not Path("/run/systemd/system").is_dir():
        return {}
    command = [program, "show", "--property", ",".join(PROPERTIES), *UNITS.values()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=SHOW_S, check=False).stdout
    blocks = [dict(line.partition("=")[::2] for line in block.splitlines()) for block in shown.strip().split("\n\n")]
    return dict(zip(UNITS, blocks, strict=False))


def _rooms(place: Place, units: Mapping[str, Mapping[str, str]], problems: list[Problem]) -> dict[str, dict[str, Any]]:
    """Reports of the rooms that run: asking one that does not would start it."""
    reports: dict[str, dict[str, Any]] = {}
    for room in UNITS:
        if units and units.get(room, {}).get("ActiveState") not in ("active", "reloading"):
            continue
        if not units and not place.control(room).exists():
            continue
        try:
            report = ask(place, room, ASK_S)
        except PeerError as exc:
            problems.append(Problem(f"{room}: {exc.message} [{exc.code}]", exc.hint))
            continue
        reports[room] = {**vars(report), "facts": dict(report.facts)}
    return reports


def _of_unit(room: str, unit: Mapping[str, str]) -> Iterator[Problem]:
    name = UNITS[room]
    if unit.get("ActiveState") == "failed":
        status, text = unit.get("ExecMainStatus", ""), unit.get("StatusText", "")
        why = f": {text}" if text else ""
        again = " A person is needed: it is not started again by itself." if status in CONFIGURATION_STATUSES else ""
        fix = f"journalctl -u {name} -n 20; then: systemctl restart {name}"
        yield Problem(f"{room}: {name} failed with exit status {status}{why}.{again}", fix)
    if unit.get("NeedDaemonReload") == "yes":
        yield Problem(f"{room}: the files of {name} changed since systemd read them", "systemctl daemon-reload")


def _health(units: Mapping[str, Mapping[str, str]], rooms: Mapping[str, Mapping[str, Any]], problems: list[Problem]) -> Health:
    if "agent" not in rooms:
        # One that runs and does not answer, or not this user, is another thing than one that does not run.
        return "unhealthy" if units.get("agent", {}).get("ActiveState") == "active" else "stopped"
    if problems or len(rooms) < len(UNITS):
        return "unhealthy"
    if any(report["state"] in ("paused", "draining", "drained") for report in rooms.values()):
        return "held"
    serve = all(report["state"] == "serving" for report in rooms.values())
    return "healthy" if serve and rooms["agent"]["facts"].get("connected") is True else "unhealthy"


def _policy(place: Place, problems: list[Problem]) -> dict[str, Any] | None:
    try:
        found, states = in_force(place)
    except ScaleoutError as exc:
        if not _denied(exc):
            problems.append(Problem(f"policy: {exc.message} [{exc.code}]", exc.hint))
        return None
    stale = [path for path, state in states.items() if state in ("stale", "missing")]
    if stale:
        problems.append(Problem(f"policy: not as the policy in force asks for: {', '.join(stale)}", "scaleoutctl policy apply"))
    return {"policy_sha256": found.digest(), "project": found.project.name, "current": not stale}


def _project(place: Place) -> dict[str, Any] | None:
    try:
        return next((row for row in installed(place) if row["state"] == "current"), None)
    except (ScaleoutError, PermissionError):
        return None  # for root and the runner alone


def _tasks(place: Place) -> dict[str, Any] | None:
    """What root may see: how many, and the last one."""
    if not os.access(place.state / "runner/runs", os.R_OK):
        return None
    rows = read_tasks(place.state, [])
    return {"total": len(rows), "failed": sum(row.state == "failed" for row in rows), "last": vars(rows[-1]) if rows else None}


def _disk(place: Place) -> dict[str, int] | None:
    try:
        found = os.statvfs(place.state)
    except OSError:
        return None
    return {"free_bytes": found.f_bavail * found.f_frsize, "size_bytes": found.f_blocks * found.f_frsize}


def _denied(exc: ScaleoutError) -> bool:
    return isinstance(exc.__cause__, PermissionError)


def lines_of(node: NodeStatus) -> Iterator[str]:
    """One screen."""
    now_ms = time.time_ns() // 1_000_000
    agent = node.rooms.get("agent", {}).get("facts", {})
    yield f"scaleoutd  {node.health}"
    for room in UNITS:
        yield f"  {room:<10} {_room_line(room, node, now_ms)}"
    if agent:
        since = agent.get("connected_since_ms")
        state = f"connected to {agent['combiner']}" if agent["connected"] else f"not connected to {agent['combiner']}"
        yield f"  combiner   {state}{_ago(', for {}', since, now_ms)}, as {agent['client_id']}"
        if "certificate_not_after" in agent:
            yield f"  identity   {agent['certificate_subject']}, until {agent['certificate_not_after']}"
    if node.policy is not None:
        stale = "" if node.policy["current"] else ", DROP-INS OUT OF DATE"
        yield f"  policy     {node.policy['policy_sha256'][:16]}, project {node.policy['project']}{stale}"
    if node.project is not None:
        until = utc_text(node.project["expires_ms"])
        yield f"  project    {node.project['project']} version {node.project['version']}, until {until}"
    if node.tasks is not None:
        yield f"  tasks      {_tasks_line(node.tasks, now_ms)}"
    runner = node.rooms.get("runner", {}).get("facts", {})
    if "runs_per_day" in runner and "runs_last_day" in runner:
        yield f"  budget     {runner['runs_last_day']} of {runner['runs_per_day']} runs in the last 24 hours"
    for line in session_lines(runner, now_ms):
        yield f"  {line}"
    trail = node.rooms.get("ledger", {}).get("facts", {})
    if trail:
        yield f"  trail      {counted(trail['events'], 'event')}, {trail['signed_events']} signed"
    if node.disk is not None:
        yield f"  disk       {size(node.disk['free_bytes'])} free"
    for problem in node.problems:
        yield f"  problem    {problem.what}"
        if problem.fix:
            yield f"             → {problem.fix}"


def _room_line(room: str, node: NodeStatus, now_ms: int) -> str:
    report = node.rooms.get(room)
    if report is None:
        unit = node.units.get(room, {})
        return unit.get("ActiveState", "does not run") if unit else "does not run"
    return f"{report['state']}, {report['text']}{_ago(', up {}', report['since_ms'], now_ms)}"


def _tasks_line(told: Mapping[str, Any], now_ms: int) -> str:
    last = told["last"]
    if last is None:
        return "none yet"
    state = last["state"] or last["delivery"]
    return f"{told['total']}, {told['failed']} failed; last: {last['task']} {state}{_ago(', {} ago', last['at_ms'], now_ms)}"


def _ago(template: str, since_ms: int | None, now_ms: int) -> str:
    return template.format(ago((now_ms - since_ms) / 1000)) if since_ms else ""
