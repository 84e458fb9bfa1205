# SPDX-License-Identifier: Apache-2.0
"""`scaleoutctl status` and `tasks`: what a node is and does.

Of an installed node the rooms are asked (nodestatus.py); of a node in the foreground its state folder is read, whether it runs or
not.  Exit status of `status`: 0 when every node shown runs (an installed one: is healthy), 3 when one does not (as `systemctl
status`), 1 when something keeps it from its work or cannot be read, 75 when --wait ran out of time.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from scaleoutd.cli.approve import lines_of as session_lines
from scaleoutd.cli.measures import ago, counted, size
from scaleoutd.cli.nodestate import NodeState, TaskRow, newest_node, node_folders, read_node, read_tasks
from scaleoutd.cli.nodestatus import is_installed, read_status
from scaleoutd.cli.nodestatus import lines_of as screen_of
from scaleoutd.cli.place import ROOT_OPTION, Place
from scaleoutd.cli.terminal import escape, warn
from scaleoutd.core.clock import utc_text
from scaleoutd.core.policy import parse_duration
from scaleoutd.errors import ConfigError

STOPPED, UNREADABLE, WAITED_OUT = 3, 1, 75
LOOK_S = 0.5
STATE_DIR = click.option("--state-dir", type=click.Path(path_type=Path, file_okay=False), help="the node's folder [all of yours]")
JSON = click.option("--json", "as_json", is_flag=True, help="one JSON object on standard output")


@click.command("status")
@STATE_DIR
@click.option("--wait", type=click.Choice(["healthy"]), help="until the installed node is so")
@click.option("--timeout", default="2m", show_default=True, metavar="TIME", help="how long --wait waits")
@ROOT_OPTION
@JSON
def status(state_dir: Path | None, wait: str | None, timeout: str, root: Path, as_json: bool) -> int:
    """Say how a node is: running, project, last task, errors, trail, disk.

    The installed node when there is one, else every node of yours in the foreground.

    \b
    Examples:
      scaleoutctl status
      scaleoutctl status --wait healthy --timeout 1m
      scaleoutctl status --state-dir ~/.local/state/scaleoutd/heart --json
    """
    place = Place.of(root)
    if state_dir is None and (wait or is_installed(place) or not place.is_this_host):
        return _installed(place, parse_duration(timeout) if wait else 0, as_json)
    nodes = [read_node(folder) for folder in node_folders(state_dir)]
    if as_json:
        click.echo(json.dumps({"time_ms": _now_ms(), "nodes": [vars(node) for node in nodes]}, indent=2))
    elif not nodes:
        click.echo("no node of yours has run yet; `scaleoutctl run` or `scaleoutd client start` makes one")
    else:
        for number, node in enumerate(nodes):
            if number:
                click.echo("")
            for line in lines_of(node, _now_ms()):
                click.echo(escape(line))
    if any(node.problems for node in nodes):
        return UNREADABLE
    return 0 if nodes and all(node.running for node in nodes) else STOPPED


def _installed(place: Place, wait_s: int, as_json: bool) -> int:
    """The installed node; with `wait_s` not before it is healthy."""
    deadline_s = time.monotonic() + wait_s
    node = read_status(place)
    while wait_s and node.health != "healthy" and time.monotonic() < deadline_s:
        time.sleep(LOOK_S)
        node = read_status(place)
    if as_json:
        click.echo(json.dumps({"time_ms": _now_ms(), **dataclasses.asdict(node)}, indent=2))
    else:
        for line in screen_of(node):
            click.echo(escape(line))
    if wait_s and node.health != "healthy":
        return WAITED_OUT
    return {"healthy": 0, "stopped": STOPPED}.get(node.health, UNREADABLE)


@click.command("tasks")
@click.option("--state-dir", type=click.Path(path_type=Path, file_okay=False), help="the node's folder [the one that wrote last]")
@click.option("-n", "--last", "count", type=click.IntRange(1), default=20, show_default=True, help="how many, the newest ones")
@click.option("--state", "wanted", help="only those in this state, for example failed")
@JSON
def tasks(state_dir: Path | None, count: int, wanted: str | None, as_json: bool) -> int:
    """List a node's tasks with their states, the newest last.

    \b
    Examples:
      scaleoutctl tasks
      scaleoutctl tasks --state failed --json
    """
    folder = _tasks_folder(state_dir)
    problems: list[str] = []
    rows = [row for row in read_tasks(folder, problems) if wanted in (None, row.state, row.delivery)][-count:]
    if as_json:
        told = {"state_dir": str(folder), "tasks": [vars(row) for row in rows], "problems": problems}
        click.echo(json.dumps(told, indent=2))
    else:
        for line in table_of(rows):
            click.echo(escape(line))
        for problem in problems:
            warn(escape(problem))
    return UNREADABLE if problems else 0


def _tasks_folder(state_dir: Path | None) -> Path:
    """The installed node's where there is one: its folders are root's to read."""
    folder = newest_node(state_dir)
    if folder == Place().state and os.geteuid() != 0:
        raise ConfigError("cannot read the tasks of the installed node: only root may", hint="Use sudo.")
    return folder


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def lines_of(node: NodeState, now_ms: int) -> Iterator[str]:
    """One screen."""
    project = node.project
    mode = ", development mode" if project["development"] else ""
    yield f"{project['name'] or '?'}  {node.state_dir}{mode}"
    yield f"  running    {_running(node.running, now_ms)}"
    if node.connection is not None:
        link = node.connection
        state = f"connected to {link['combiner']}" if link["connected"] else f"not connected {_bracketed(link['code'])}".rstrip()
        since = ago((now_ms - link["since_ms"]) / 1000)
        yield f"  combiner   {state if node.running else 'not running'}, last change {since} ago"
    yield f"  project    {_project(project, now_ms)}"
    yield f"  tasks      {_tasks(node.tasks)}"
    last = node.tasks["last"]
    if last:
        told = " ".join(filter(None, (last["task"], last["state"] or last["delivery"], _bracketed(last["code"]))))
        yield f"  last task  {told}, {ago((now_ms - last['at_ms']) / 1000)} ago (run {last['run']})"
    for line in session_lines(node.sessions, now_ms):
        yield f"  {line}"
    trail = node.trail
    signed = f"{trail['signed_events']} signed" + _age(", checkpoint {} ago", trail["checkpoint_ms"], now_ms)
    yield f"  trail      {counted(trail['events'], 'event')}, {size(trail['size_bytes'])}, {signed}"
    yield f"  disk       {size(node.disk['used_bytes'])} used, {size(node.disk['free_bytes'])} free"
    for error, times in once_each(node.errors):
        again = f" (× {times})" if times > 1 else ""
        yield f"  error      {utc_text(error['time_ms'])} {error['message'] or error['event']} [{error['code']}]{again}"
    if node.errors:
        yield f"             → scaleoutctl why {node.errors[-1]['code']}"
    for problem in node.problems:
        yield f"  problem    {problem}"


def once_each(errors: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], int]]:
    """Each error once, as it came last, in the order of that, with how often it is among them."""
    last = {(error["code"], error["message"]): error for error in errors}
    counts = Counter((error["code"], error["message"]) for error in errors)
    return sorted(((error, counts[key]) for key, error in last.items()), key=lambda item: int(item[0]["time_ms"]))


def _running(running: Mapping[str, Any] | None, now_ms: int) -> str:
    if running is None:
        return "no"
    rooms = ", ".join(f"{room} {pid}" for room, pid in sorted(running["rooms"].items()))
    return f"yes, pid {running['pid']}" + _age(" for {}", running["since_ms"] or None, now_ms) + f" ({rooms})"


def _project(project: Mapping[str, Any], now_ms: int) -> str:
    if project["version"] is None:
        return f"{project['folder'] or '?'}: no manifest"
    left_s = (project["expires_ms"] - now_ms) / 1000
    until = f"expires in {ago(left_s)}" if left_s > 0 else f"EXPIRED {ago(-left_s)} ago"
    return f"version {project['version']} in {project['folder']}, {until} ({utc_text(project['expires_ms'])})"


def _tasks(told: Mapping[str, Any]) -> str:
    if not told["total"]:
        return "none"
    parts = [f"{count} {state}" for state, count in told["by_state"].items()]
    parts += [f"{told['undelivered']} not delivered yet"] if told["undelivered"] else []
    return f"{told['total']}: {', '.join(parts)}"


def _age(template: str, since_ms: int | None, now_ms: int) -> str:
    return template.format(ago((now_ms - since_ms) / 1000)) if since_ms else ""


def _bracketed(code: str) -> str:
    return f"[{code}]" if code else ""


def table_of(rows: list[TaskRow]) -> Iterator[str]:
    if not rows:
        yield "no tasks"
        return
    yield f"{'when':<20} {'task':<9} {'state':<12} {'delivery':<12} {'round':<12} run"
    for row in rows:
        when = utc_text(row.at_ms)
        code = f" [{row.code}]" if row.code else ""
        again = f" attempt {row.attempts}" if row.attempts > 1 else ""
        told = f"{row.task or '?':<9} {row.state or '-':<12} {row.delivery or '-':<12} {row.round_id[:12] or '-':<12}"
        yield f"{when:<20} {told} {row.run}{again}{code}"
