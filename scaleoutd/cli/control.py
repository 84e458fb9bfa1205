# SPDX-License-Identifier: Apache-2.0
"""`scaleoutctl drain`, `pause`, `resume`, `reload`: an administrator's words to a running node (ipc/control.py).

Who may is decided by the sockets: root and group scaleoutd-admin.  Each command is on record with the operator's uid and name.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from scaleoutd.cli.place import JSON_OPTION, ROOT_OPTION, Place
from scaleoutd.cli.terminal import escape, say
from scaleoutd.core.policy import parse_duration
from scaleoutd.core.records import decode
from scaleoutd.durable import storage_errors
from scaleoutd.errors import FormatError, ScaleoutError, StorageError
from scaleoutd.ipc.control import (
    Command,
    CredentialName,
    Done,
    Drain,
    Pause,
    Reload,
    Resume,
    Status,
    StatusReport,
    call,
    login_uid,
)

WAITED_OUT = 75  # EX_TEMPFAIL
LOOK_S = 0.5
CREDENTIALS: tuple[CredentialName, ...] = ("ca.pem", "client.pem", "client.key")


@click.command("drain")
@click.option("--wait", is_flag=True, help="until everything that was begun is delivered")
@click.option("--timeout", "timeout", default="1h", show_default=True, metavar="TIME", help="how long --wait waits")
@ROOT_OPTION
@JSON_OPTION
def drain(wait: bool, timeout: str, root: Path, as_json: bool) -> int:
    """Take no new task; end and deliver what was begun.  Until `scaleoutctl resume` or a restart.

    Exit status 75 when --wait ran out of time.

    \b
    Example:
      scaleoutctl drain --wait && systemctl restart scaleoutd
    """
    place, limit_s = Place.of(root), parse_duration(timeout)
    done = command(place, "agent", Drain())
    drained = _wait_drained(place, limit_s) if wait else ask(place, "agent").state == "drained"
    _tell({"agent": done}, as_json, drained=drained)
    return WAITED_OUT if wait and not drained else 0


@click.command("pause")
@click.option("--reason", required=True, metavar="TEXT", help="why; it goes on record")
@ROOT_OPTION
@JSON_OPTION
def pause(reason: str, root: Path, as_json: bool) -> None:
    """Let no run begin, and keep it so over a reboot, until `scaleoutctl resume`.  A run that goes on ends and is delivered.

    \b
    Example:
      scaleoutctl pause --reason "audit of ward 7"
    """
    try:
        word = replace(decode(Pause, {"reason": reason}, "pause"), login_uid=login_uid())
    except FormatError as exc:
        raise click.UsageError(f"--reason: {exc.message}") from exc
    place = Place.of(root)
    # The runner first: from its answer on nothing begins, whatever becomes of the agent.
    _tell(_all(place, word), as_json)


@click.command("resume")
@ROOT_OPTION
@JSON_OPTION
def resume(root: Path, as_json: bool) -> None:
    """Take back `pause` and `drain`.

    \b
    Example:
      scaleoutctl resume
    """
    place = Place.of(root)
    _tell(_all(place, Resume()), as_json)


@click.command("reload")
@ROOT_OPTION
@JSON_OPTION
def reload(root: Path, as_json: bool) -> None:
    """Have the rooms read certificates and policy again; no connection is cut.  `systemctl reload scaleoutd` does the same.

    Root hands the files of /etc/scaleoutd/identity over.  What cannot be used is refused, and what was in use stays.

    \b
    Example:
      sudo scaleoutctl reload
    """
    place = Place.of(root)
    answers = {"agent": reload_agent(place)}
    answers["runner"] = command(place, "runner", Reload())
    _tell(answers, as_json)


def reload_agent(place: Place) -> Done:
    """Root hands the credentials over; from others the agent reads again what it can reach itself."""
    with _identity(place) as files:
        return command(place, "agent", Reload(tuple(files)), list(files.values()))  # type: ignore[arg-type]  # keys of CREDENTIALS


@contextmanager
def _identity(place: Place) -> Iterator[dict[str, int]]:
    files: dict[str, int] = {}
    try:
        for name in CREDENTIALS if os.geteuid() == 0 else ():
            path = place.identity / name
            with storage_errors(f"open {path}"):
                if path.exists():
                    files[name] = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        yield files
    finally:
        for fd in files.values():
            os.close(fd)


def _all(place: Place, word: Command) -> dict[str, Done]:
    """Runner and agent; the second is told although the first does not answer, and then the first's error is raised."""
    answers: dict[str, Done] = {}
    failure: ScaleoutError | None = None
    for room in ("runner", "agent"):
        try:
            answers[room] = command(place, room, word)
        except ScaleoutError as exc:
            failure = failure or exc
    if failure is not None:
        for room, done in answers.items():
            say(escape(f"{room}: {done.text}"))
        raise failure
    return answers


def command(place: Place, room: str, word: Command, descriptors: list[int] | None = None) -> Done:
    answer = call(str(place.control(room)), room, word, descriptors=descriptors or ())
    if not isinstance(answer, Done):
        raise StorageError(f"cannot understand the {room}: it gave another answer")
    return answer


def ask(place: Place, room: str, timeout_s: float = 10.0) -> StatusReport:
    answer = call(str(place.control(room)), room, Status(), timeout_s=timeout_s)
    if not isinstance(answer, StatusReport):
        raise StorageError(f"cannot understand the {room}: it gave another answer")
    return answer


def _wait_drained(place: Place, limit_s: float) -> bool:
    """Asks now and then: the room has no list of who waits, which a caller could fill."""
    deadline_s = time.monotonic() + limit_s
    while ask(place, "agent").state not in ("drained", "paused"):
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(min(LOOK_S, max(0.0, deadline_s - time.monotonic())))
    return True


def _tell(answers: Mapping[str, Done], as_json: bool, **more: Any) -> None:
    if as_json:
        rooms = {room: {"changed": done.changed, "text": done.text} for room, done in answers.items()}
        click.echo(json.dumps({"changed": any(done.changed for done in answers.values()), "rooms": rooms, **more}))
        return
    for room, done in answers.items():
        say(escape(f"{room}: {done.text}{'' if done.changed else ' (unchanged)'}"))
    if "drained" in more:
        say("drained" if more["drained"] else "not drained yet; see `scaleoutctl status`")
