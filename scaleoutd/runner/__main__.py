# SPDX-License-Identifier: Apache-2.0
"""`scaleoutd-runner`: the room as a program.

Started by the parent of the rooms with its doors as descriptors, or with --service by systemd, whose socket units are its doors.
"""

from __future__ import annotations

import argparse
import socket
import sys
from pathlib import Path

from scaleoutd.durable import hold_folder, make_private_folder
from scaleoutd.errors import ScaleoutError
from scaleoutd.ipc.activation import Notifier, take_sockets
from scaleoutd.ipc.doors import InheritedClientDoor, InheritedServerDoor
from scaleoutd.ipc.ledger_client import LedgerClient
from scaleoutd.ipc.named import NamedClientDoor, NamedServerDoor, rooms_by_uid
from scaleoutd.ipc.packets import Connection
from scaleoutd.runner.instances import Instances
from scaleoutd.runner.room import Room
from scaleoutd.runner.service import run

STATE = Path("/var/lib/scaleoutd/runner")
POLICY = Path("/etc/scaleoutd/policy.lock")
LOCK_WAIT_S = 15.0  # for a runner whose parent was killed; the folder is held until the process is gone


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scaleoutd-runner", description="Proves, runs confined, decides what leaves.")
    parser.add_argument("--service", action="store_true", help="as a unit of systemd: named sockets, backend systemd")
    parser.add_argument("--state", type=Path, default=STATE, help="the room's own folder")
    parser.add_argument("--policy", type=Path, default=POLICY, help="policy.lock, canonical JSON")
    parser.add_argument("--backend", choices=("namespaces", "systemd", "inner"), default="namespaces")
    parser.add_argument("--terminal", type=int, help="descriptor that gets what steps print, at once")
    parser.add_argument("--compute-lock", type=Path, help="file to lock while a step runs")
    parser.add_argument("--spares", type=int, default=1, help="step instances to keep connected")
    parser.add_argument("--door", type=int, help="descriptor of the door out")
    parser.add_argument("--control", type=int, help="descriptor of the listening socket for a second person")
    parser.add_argument("--accept", type=int, help="descriptor of the door in")
    given = parser.parse_args(arguments)
    if given.service:
        return serve(given.state, given.policy, given.spares)
    if given.door is None or given.accept is None:
        parser.error("--door and --accept, or --service")
    door = InheritedClientDoor(Connection.from_descriptor(given.door))
    accept = InheritedServerDoor(Connection.from_descriptor(given.accept))
    try:
        hold_folder(make_private_folder(given.state), "runner", LOCK_WAIT_S)
    except ScaleoutError as exc:
        print(f"runner: {exc.message} [{exc.code}]", file=sys.stderr, flush=True)
        return exc.exit_status
    room = Room(
        state=given.state,
        policy_file=given.policy,
        ledger=LedgerClient(door, "runner"),
        instances=Instances(door, given.spares),
        backend=given.backend,
        terminal=given.terminal,
        watcher=door.tell if given.terminal is not None else None,
        ask_to_sign=door.ask_to_sign if given.terminal is not None else None,
        compute_lock=given.compute_lock,
    )
    control = socket.socket(fileno=given.control) if given.control is not None else None
    return run(room, accept, accept.ready, control)


def serve(state: Path, policy: Path, spares: int) -> int:
    """The room as a unit."""
    notifier = Notifier.of_environment()
    try:
        sockets = take_sockets()
        hold_folder(state, "runner", LOCK_WAIT_S)
        door = NamedClientDoor()
        accept = NamedServerDoor(sockets["room"], rooms_by_uid(), notifier.ready, notifier.progress, notifier.watchdog_s)
        room = Room(
            state=state,
            policy_file=policy,
            ledger=LedgerClient(door, "runner"),
            instances=Instances(door, spares, units=True),
            backend="systemd",
        )
    except ScaleoutError as exc:
        notifier.failed(exc.code, exc.message)
        print(f"runner: {exc.message} [{exc.code}]", file=sys.stderr, flush=True)
        return exc.exit_status
    return run(room, accept, accept.ready, sockets.get("control"), notifier.failed, notifier.status)


if __name__ == "__main__":
    sys.exit(main())
