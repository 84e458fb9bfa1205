# SPDX-License-Identifier: Apache-2.0
"""`scaleoutd-runner`: the room as a program, started by the parent of the rooms with its doors as descriptors."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from scaleoutd.durable import hold_folder, make_private_folder
from scaleoutd.errors import ScaleoutError
from scaleoutd.ipc.doors import InheritedClientDoor, InheritedServerDoor
from scaleoutd.ipc.ledger_client import LedgerClient
from scaleoutd.ipc.packets import Connection
from scaleoutd.runner.instances import Instances
from scaleoutd.runner.room import Room
from scaleoutd.runner.service import run

LOCK_WAIT_S = 15.0  # for a runner whose parent was killed; the folder is held until the process is gone


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scaleoutd-runner", description="Proves, runs confined, decides what leaves.")
    parser.add_argument("--state", type=Path, required=True, help="the room's own folder")
    parser.add_argument("--policy", type=Path, required=True, help="policy.lock, canonical JSON")
    parser.add_argument("--backend", choices=("namespaces", "systemd", "inner"), default="namespaces")
    parser.add_argument("--terminal", type=int, help="descriptor that gets what steps print, at once")
    parser.add_argument("--compute-lock", type=Path, help="file to lock while a step runs")
    parser.add_argument("--spares", type=int, default=1, help="step instances to keep connected")
    parser.add_argument("--door", type=int, required=True, help="descriptor of the door out")
    parser.add_argument("--accept", type=int, required=True, help="descriptor of the door in")
    given = parser.parse_args(arguments)
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
    return run(room, accept, accept.ready)


if __name__ == "__main__":
    sys.exit(main())
