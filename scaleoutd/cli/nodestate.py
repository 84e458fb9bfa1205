# SPDX-License-Identifier: Apache-2.0
"""A node's state folder, read from outside while the node may be running: nothing is written, locked or repaired.

    STATE/policy.lock, runner/{runs,floors.json,outbox}, agent/spool, audit       see runner/room.py and agent/spool.py

Whether it runs is asked of /proc: the rooms are started with their folders on the command line (rooms.py).
"""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scaleoutd.cli.foreground import default_state
from scaleoutd.cli.place import Place
from scaleoutd.cli.signing import read_unverified
from scaleoutd.cli.trailtail import TrailEnd, segments_of
from scaleoutd.core import strictjson
from scaleoutd.core.catalogue import BY_NAME
from scaleoutd.core.checkpoint import complete_bytes, parse_checkpoint, parse_note, split_notes
from scaleoutd.core.event import Event
from scaleoutd.core.policy import MAX_POLICY_BYTES, parse_policy
from scaleoutd.core.records import encode
from scaleoutd.core.taskstate import AGENT_STATES, RUN_STATES, Line, States
from scaleoutd.errors import ConfigError, ScaleoutError, StorageError
from scaleoutd.runner.budget import read_kept
from scaleoutd.runner.runs import run_name
from scaleoutd.runner.tree import Tree

LOOKED_AT_EVENTS = 400
SHOWN_ERRORS = 5
MAX_TASK_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class TaskRow:
    """One task.  `state` is the runner's, `delivery` the agent's; "" where that room has not seen it or has forgotten it."""

    run: str
    correlation_id: str
    task: str
    state: str
    delivery: str
    at_ms: int
    attempts: int
    code: str
    session_id: str
    round_id: str
    combiner: str


@dataclass(frozen=True)
class NodeState:
    """Everything `status` shows; docs/command-line.md documents the keys."""

    state_dir: str
    running: Mapping[str, Any] | None
    project: Mapping[str, Any]
    connection: Mapping[str, Any] | None
    tasks: Mapping[str, Any]
    errors: tuple[Mapping[str, Any], ...]
    trail: Mapping[str, Any]
    disk: Mapping[str, Any]
    sessions: Mapping[str, Any]
    problems: tuple[str, ...] = field(default=())


def node_folders(given: Path | None) -> list[Path]:
    """The folder that was named, or all of this user's nodes."""
    if given is not None:
        if not (given / "policy.lock").exists() and given.absolute() != Place().state:
            raise ConfigError(
                f"cannot read {given}: it is no state folder of a node, expected policy.lock in it",
                code="config-missing",
                hint="`scaleoutctl status` without --state-dir lists your nodes.",
            )
        return [given.absolute()]
    return sorted(path.parent for path in default_state("any").parent.glob("*/policy.lock"))


def newest_node(given: Path | None) -> Path:
    """The folder that was named, or the installed node's, or the one of this user's nodes that wrote last."""
    if given is None and (Place().etc / "scaleoutd.yaml").exists():
        return Place().state
    folders = node_folders(given)
    if not folders:
        raise ConfigError(
            "cannot find a node of this user",
            code="config-missing",
            hint="Name its folder with --state-dir, or make a first run: `scaleoutctl run train --in MODEL`.",
        )
    return max(folders, key=lambda folder: max((path.stat().st_mtime_ns for path in segments_of(folder / "audit")), default=0))


def read_node(state: Path) -> NodeState:
    problems: list[str] = []
    rows = read_tasks(state, problems)
    events = _last_events(state, problems)
    return NodeState(
        state_dir=str(state),
        running=find_process(state),
        project=_project(state, problems),
        connection=_connection(events),
        tasks=_summary(rows),
        errors=tuple(_error(item) for item in events if _is_error(item))[-SHOWN_ERRORS:],
        trail=_trail(state, events, problems),
        disk=_disk(state),
        sessions=_sessions(state, problems),
        problems=tuple(problems),
    )


# --- processes ----------------------------------------------------------------------------------------------------


def find_process(state: Path) -> dict[str, Any] | None:
    """The parent of the rooms of this folder: pid, since when, and the rooms by pid; None when it does not run."""
    wanted = {"runner": str(state / "runner"), "ledger": str(state / "audit")}
    rooms: dict[str, int] = {}
    parent = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
            for room, folder in wanted.items():
                if _is_room(words, room, folder):
                    rooms[room] = int(entry.name)
                    parent = int(_stat_fields(int(entry.name))[1])
        except (OSError, IndexError, ValueError):
            continue  # it ended while we looked, or it is somebody else's
    if not rooms:
        return None
    return {"pid": parent, "since_ms": _started_ms(parent), "rooms": rooms}


def _is_room(words: list[str], room: str, folder: str) -> bool:
    if not any(f"scaleoutd.{room}.__main__" in word for word in words):
        return False
    return any(word == "--state" and later == folder for word, later in itertools.pairwise(words))


def _stat_fields(pid: int) -> list[str]:
    """/proc/PID/stat after the name, which may hold anything: state, ppid, …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _started_ms(pid: int) -> int:
    try:
        ticks = int(_stat_fields(pid)[19])
        uptime_s = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, IndexError, ValueError):
        return 0
    age_s = uptime_s - ticks / os.sysconf("SC_CLK_TCK")
    return int((time.time() - age_s) * 1000)


# --- tasks --------------------------------------------------------------------------------------------------------


def read_tasks(state: Path, problems: list[str]) -> list[TaskRow]:
    """Every task that one of the two rooms knows, oldest first."""
    rows: dict[str, TaskRow] = {}
    for offer, history in _entries(state / "runner" / "runs", RUN_STATES, problems):
        rows[run_name(str(offer["correlation_id"]))] = _row(offer, history, "")
    for offer, history in _entries(state / "agent" / "spool", AGENT_STATES, problems):
        name = run_name(str(offer["correlation_id"]))
        delivery = history[-1].state if history else ""
        known = rows.get(name)
        rows[name] = (
            TaskRow(**{**vars(known), "delivery": delivery})
            if known
            else TaskRow(**{**vars(_row(offer, history, delivery)), "state": ""})
        )
    return sorted(rows.values(), key=lambda row: row.at_ms)


def _entries(folder: Path, states: States, problems: list[str]) -> Iterator[tuple[Mapping[str, Any], list[Line]]]:
    for path in sorted(folder.glob("*/task.json")):
        try:
            offer = strictjson.parse(path.read_bytes(), max_bytes=MAX_TASK_BYTES, what="a task")
            data = path.with_name("state").read_bytes() if path.with_name("state").exists() else b""
            history = states.parse(data[: data.rfind(b"\n") + 1].splitlines())
            if not isinstance(offer, dict) or not isinstance(offer.get("correlation_id"), str):
                raise StorageError("cannot read task.json: it is no task", code="state-corrupt")
            yield offer, history
        except FileNotFoundError:
            continue  # it was finished while we looked
        except (OSError, ScaleoutError) as exc:
            problems.append(f"{path.parent}: {exc}")


def _row(offer: Mapping[str, Any], history: list[Line], delivery: str) -> TaskRow:
    last = history[-1] if history else None
    code = next((str(line.fields["code"]) for line in reversed(history) if "code" in line.fields), "")
    return TaskRow(
        run=run_name(str(offer["correlation_id"])),
        correlation_id=str(offer["correlation_id"]),
        task=str(offer.get("task") or ""),
        state=last.state if last else "",
        delivery=delivery,
        at_ms=last.at_ms if last else 0,
        attempts=sum(line.state == "about-to-run" for line in history),
        code=code,
        session_id=str(offer.get("session_id", "")),
        round_id=str(offer.get("round_id", "")),
        combiner=str(offer.get("combiner", "")),
    )


def _summary(rows: list[TaskRow]) -> dict[str, Any]:
    return {
        "total": len(rows),
        "by_state": dict(sorted(Counter(row.state for row in rows if row.state).items())),
        "undelivered": sum(bool(row.delivery) for row in rows),
        "last": vars(rows[-1]) if rows else None,
    }


# --- the rest -----------------------------------------------------------------------------------------------------


def _project(state: Path, problems: list[str]) -> dict[str, Any]:
    """From the policy in force; version and expiry as the manifest in the folder says, which `verify` proves."""
    told: dict[str, Any] = {"name": "", "folder": "", "version": None, "expires_ms": None, "development": None}
    try:
        with (state / "policy.lock").open("rb") as file:
            policy = parse_policy(file.read(MAX_POLICY_BYTES + 1))
        told |= {"name": policy.project.name, "folder": policy.project.path, "development": policy.development}
        with Tree(Path(policy.project.path)) as tree:
            found = read_unverified(tree)
        if found is not None:
            told |= {"version": found[1].version, "expires_ms": found[1].expires_ms}
    except (OSError, ScaleoutError) as exc:
        problems.append(f"project: {exc}")
    return told


def _sessions(state: Path, problems: list[str]) -> dict[str, Any]:
    """Which wait for a second person, and which were approved; the keys are those of an installed runner's facts."""
    try:
        kept = read_kept(state / "runner" / "approvals.json")
    except ScaleoutError as exc:
        problems.append(f"approvals: {exc.message}")
        return {}
    return {"sessions_waiting": list(map(encode, kept.waiting)), "sessions_approved": list(map(encode, kept.approved))}


def _last_events(state: Path, problems: list[str]) -> list[Event]:
    try:
        return TrailEnd(state / "audit").last(LOOKED_AT_EVENTS)
    except ScaleoutError as exc:
        problems.append(f"trail: {exc.message}")
        return []


def _connection(events: list[Event]) -> dict[str, Any] | None:
    """The last word about the connection, None when there is none among the last events."""
    for item in reversed(events):
        if item.type in ("connected", "disconnected", "connection-refused", "agent-stopped"):
            told = {"connected": item.type == "connected", "since_ms": item.time_ms}
            return {**told, "combiner": str(item.body.get("combiner", "")), "code": str(item.body.get("code", ""))}
    return None


def _is_error(item: Event) -> bool:
    known = BY_NAME.get(item.type)
    return "code" in item.body and known is not None and known.status == "failure"


def _error(item: Event) -> dict[str, Any]:
    body = {key: str(item.body.get(key, "")) for key in ("code", "message", "hint")}
    return {"time_ms": item.time_ms, "event": item.type, "sequence": item.sequence, **body}


def _trail(state: Path, events: list[Event], problems: list[str]) -> dict[str, Any]:
    folder = state / "audit"
    told: dict[str, Any] = {
        "events": events[-1].sequence + 1 if events else 0,
        "size_bytes": sum(path.stat().st_size for path in segments_of(folder)),
        "last_event_ms": events[-1].time_ms if events else None,
        "signed_events": 0,
        "checkpoint_ms": None,
    }
    path = folder / "checkpoints"
    if path.exists():
        try:
            data = path.read_bytes()
            notes = list(split_notes(data[: complete_bytes(data)]))
            told["checkpoint_ms"] = path.stat().st_mtime_ns // 1_000_000  # a checkpoint itself carries no time
            told["signed_events"] = parse_checkpoint(parse_note(notes[-1]).text).size if notes else 0
        except (OSError, ScaleoutError) as exc:
            problems.append(f"checkpoints: {exc}")
    return told


def _disk(state: Path) -> dict[str, Any]:
    used = 0
    for folder, _, files in os.walk(state):
        for name in files:
            try:
                used += (Path(folder) / name).lstat().st_blocks * 512
            except OSError:
                continue  # it was removed while we looked
    found = os.statvfs(state)
    return {"used_bytes": used, "free_bytes": found.f_bavail * found.f_frsize}
