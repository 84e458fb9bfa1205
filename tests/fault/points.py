# SPDX-License-Identifier: Apache-2.0
"""Named points at which a room of a test node stops until the test lets it go on, or kills it or another process there.

The product has no hook for this: `tests.fault.parent` starts each room through `main` here, which wraps functions of the room
before it runs.  Between test and room there is a folder:

    ROOM.POINT.armed     made by the test: the next time ROOM comes to POINT it stops there, once
    ROOM.POINT.reached   the same file, renamed by the room that stands there
    ROOM.POINT.go        made by the test: go on

Only the thread at the point stops; the room's other threads run.  Points are named where they are installed, below.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Reach = Callable[[str], None]


class Points:
    """The room's side of the folder."""

    def __init__(self, folder: Path, room: str) -> None:
        self._stem = f"{folder}/{room}."

    def armed(self, name: str) -> bool:
        return os.path.exists(f"{self._stem}{name}.armed")

    def reach(self, name: str) -> None:
        stem = self._stem + name
        try:
            os.rename(f"{stem}.armed", f"{stem}.reached")
        except FileNotFoundError:
            return
        while not os.path.exists(f"{stem}.go"):
            time.sleep(0.005)


def around(owner: Any, name: str, reach: Reach, before: str = "", after: str = "") -> None:
    """Wraps `owner.name`: it comes to the point `before`, runs, comes to the point `after`."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*args: Any, **more: Any) -> Any:
        if before:
            reach(before)
        result = original(*args, **more)
        if after:
            reach(after)
        return result

    setattr(owner, name, wrapped)


def around_named(owner: Any, name: str, reach: Reach, before: str, after: str) -> None:
    """The same for a method whose first argument names what happens: `record` → `record-release`, `recorded-release`."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(self: Any, what: str, *args: Any, **more: Any) -> Any:
        if before:
            reach(f"{before}-{what}")
        result = original(self, what, *args, **more)
        reach(f"{after}-{_variant(what, more)}")
        return result

    setattr(owner, name, wrapped)


def _variant(what: str, more: dict[str, Any]) -> str:
    """An entry is `acknowledged` three times; the field says which: acknowledged, -recorded, -confirmed."""
    return what + "".join(f"-{key}" for key in ("recorded", "confirmed") if key in more)


def install_runner(points: Points) -> None:
    reach = points.reach
    outbox, pipeline, runs, service, store = (
        importlib.import_module(f"scaleoutd.runner.{name}") for name in ("outbox", "pipeline", "runs", "service", "store")
    )
    around(runs.Runs, "_open", reach, before="entry-half")
    around(pipeline, "verify", reach, before="verify", after="verified")
    around(store, "check_files", reach, after="copy-half")
    around(store, "sync_folder", reach, before="copied")
    around(pipeline, "snapshot_project", reach, before="snapshot", after="snapshot-made")
    around(pipeline, "receive", reach, after="received")
    around(pipeline, "inspect", reach, before="inspect", after="inspected")
    around_named(pipeline.Task, "record", reach, before="record", after="recorded")
    around(pipeline, "execute", reach, before="execute", after="executed")
    around(pipeline, "gate", reach, before="gate", after="gated")
    around(outbox, "sync_folder", reach, before="outbox-half")
    around(outbox.Outbox, "put", reach, after="outbox-written")
    around(pipeline, "put_in_outbox", reach, after="computed")
    around(pipeline, "release", reach, after="released")
    service.release = pipeline.release  # type: ignore[attr-defined]  # imported by name
    around(outbox.Outbox, "remove", reach, before="remove", after="removed")
    client = importlib.import_module("scaleoutd.ipc.ledger_client").LedgerClient
    around_named(client, "record", reach, before="tell", after="told")


def install_agent(points: Points) -> None:
    reach = points.reach
    edge, pipeline, spool, trail = (
        importlib.import_module(f"scaleoutd.agent.{name}") for name in ("dialects.edge", "pipeline", "spool", "trail")
    )
    backoff, service, worker = (importlib.import_module(f"scaleoutd.agent.{name}") for name in ("backoff", "service", "worker"))
    for module in (service, worker):  # the shortest that the configuration allows; a test would wait for nothing else
        module.Backoff = lambda *limits: backoff.Backoff(0.1, 0.4)  # type: ignore[attr-defined]
    importlib.import_module("scaleoutd.agent.tokens").COOL_DOWN_S = 0.4  # type: ignore[attr-defined]
    around(spool.Spool, "receive", reach, before="receive", after="spooled")
    around_named(spool.Entry, "advance", reach, before="", after="state")
    around_named(trail.Trail, "must", reach, before="record", after="recorded")
    around(edge.Edge, "download", reach, before="download", after="downloaded")
    around(edge.Edge, "upload", reach, before="upload", after="uploaded")
    around(edge.Edge, "send_update", reach, before="announce", after="announced")
    around(pipeline, "_tell_delivered", reach, before="tell-delivered", after="told-delivered")
    around(spool.Spool, "finish", reach, before="finish", after="finished")
    around(spool.shutil, "rmtree", reach, before="remove-task")


def install_ledger(points: Points) -> None:
    reach = points.reach
    checkpoints = importlib.import_module("scaleoutd.ledger.checkpoints")
    journal = importlib.import_module("scaleoutd.ledger.journal")
    original = journal.Journal.append

    def append(self: Any, lines: list[bytes]) -> None:
        codes = [match[1].decode() for line in lines if (match := re.search(rb'"event_code":"([a-z-]+)"', line))]
        for code in codes:
            reach(f"write-{code}")
        if codes and points.armed(f"torn-{codes[-1]}"):
            data = b"".join(line + b"\n" for line in lines)
            os.pwrite(self._fd, data[: len(data) // 2], self._end)
            reach(f"torn-{codes[-1]}")
        original(self, lines)
        for code in codes:
            reach(f"wrote-{code}")

    journal.Journal.append = append
    around(checkpoints.CheckpointFile, "append", reach, before="sign", after="signed")


INSTALL: dict[str, Callable[[Points], None]] = {"runner": install_runner, "agent": install_agent, "ledger": install_ledger}


def main(folder: str, room: str) -> int:
    """Runs `room` with its points."""
    INSTALL[room](Points(Path(folder), room))
    status: int = importlib.import_module(f"scaleoutd.{room}.__main__").main()
    return status


def command(folder: str, room: str, arguments: list[str], root: Path) -> list[str]:
    """What `room_command` is in a test node.  The room's module is named, so that a test finds the process by it."""
    start = (
        f"import sys; sys.path.insert(0, {str(root)!r}); sys.argv[0] = 'scaleoutd-{room}';"
        f" from tests.fault.points import main; sys.exit(main({folder!r}, {room!r}))  # scaleoutd.{room}.__main__"
    )
    return [sys.executable, "-I", "-B", "-c", start, *arguments]
