# SPDX-License-Identifier: Apache-2.0
"""`scaleoutctl approve-session`: a second person's word for a session (runner/budget.py).

The runner asks the kernel who it is at the other end.  Of a node in the foreground the socket lies in a folder that others can
reach (cli/approvaldoor.py); `scaleoutd client start` prints the line to type.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from scaleoutd.cli.measures import ago
from scaleoutd.cli.place import JSON_OPTION, ROOT_OPTION, Place
from scaleoutd.cli.terminal import escape, say
from scaleoutd.core.records import decode
from scaleoutd.errors import FormatError, StorageError
from scaleoutd.ipc.control import ApproveSession, Done, Status, StatusReport, call


@click.command("approve-session")
@click.argument("session", required=False)
@click.option("--combiner", default="", metavar="HOST:PORT", help="whose session; needed when none of that name waits yet")
@click.option("--socket", "path", type=click.Path(path_type=Path), help="of a node in the foreground")
@ROOT_OPTION
@JSON_OPTION
def approve_session(session: str | None, combiner: str, path: Path | None, root: Path, as_json: bool) -> None:
    """Let SESSION run, where the policy asks for a second person; without SESSION, list those that wait.

    You must be somebody else than who installed the project, applied the policy or paused the node, under an account of your own
    (not with sudo).  It is on record, and holds for one combiner under the policy in force.

    \b
    Examples:
      scaleoutctl approve-session
      scaleoutctl approve-session 4f1c-ward-7
    """
    where = str(path or Place.of(root).control("runner"))
    if session is None:
        _list(where, as_json)
        return
    try:
        word = decode(ApproveSession, {"session": session, "combiner": combiner}, "approve-session")
    except FormatError as exc:
        raise click.UsageError(f"SESSION: {exc.message}") from exc
    done = call(where, "runner", word)
    if not isinstance(done, Done):
        raise StorageError("cannot understand the runner: it gave another answer")
    if as_json:
        click.echo(json.dumps({"changed": done.changed, "text": done.text}))
    else:
        say(escape(f"{done.text}{'' if done.changed else ' (unchanged)'}"))


def _list(where: str, as_json: bool) -> None:
    report = call(where, "runner", Status())
    if not isinstance(report, StatusReport):
        raise StorageError("cannot understand the runner: it gave another answer")
    waiting = report.facts.get("sessions_waiting", [])
    approved = report.facts.get("sessions_approved", [])
    if as_json:
        click.echo(json.dumps({"approval": report.facts.get("approval"), "waiting": waiting, "approved": approved}, indent=2))
        return
    for line in lines_of(report.facts, time.time_ns() // 1_000_000):
        click.echo(escape(line))
    if not waiting and not approved:
        click.echo("no session waits")


def lines_of(facts: Mapping[str, Any], now_ms: int) -> Iterator[str]:
    """A line for each session that waits, and for each that was approved."""
    for item in facts.get("sessions_waiting", ()):
        since = ago((now_ms - item["since_ms"]) / 1000)
        yield f"waits      session {item['session_id']} of {item['combiner']}, for {since}"
        yield f"           → scaleoutctl approve-session {item['session_id']}"
    for item in facts.get("sessions_approved", ()):
        when = ago((now_ms - item["at_ms"]) / 1000)
        yield f"approved   session {item['session_id']} of {item['combiner']}, by {item['operator']}, {when} ago"
