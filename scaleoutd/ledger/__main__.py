# SPDX-License-Identifier: Apache-2.0
"""Starts the ledger: --state FOLDER --accept FD [--door FD] [--host NAME] [--algorithm ed25519|ecdsa-p256], or --service.

FD of --accept is the inherited socket pair to the parent; --door is taken and closed: the ledger asks nobody.  With --service
the doors are the socket units of systemd.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
from pathlib import Path

from scaleoutd.errors import ScaleoutError
from scaleoutd.hostclock import HostClock
from scaleoutd.ipc.activation import Notifier, take_sockets
from scaleoutd.ipc.doors import InheritedServerDoor
from scaleoutd.ipc.named import NamedServerDoor, rooms_by_uid
from scaleoutd.ipc.packets import Connection
from scaleoutd.ledger.config import LedgerConfig
from scaleoutd.ledger.service import run

STATE = Path("/var/lib/scaleoutd/audit")
LOOK_MS = 5_000  # how old the word on synchronisation may be: a stat for each event would be felt


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="scaleoutd-ledger")
    parser.add_argument("--service", action="store_true")
    parser.add_argument("--state", type=Path, default=STATE)
    parser.add_argument("--accept", type=int)
    parser.add_argument("--door", type=int)
    parser.add_argument("--host", default=socket.gethostname() or "localhost")
    parser.add_argument("--algorithm", choices=("ed25519", "ecdsa-p256"), default="ed25519")
    parser.add_argument("--segment-bytes", type=int, default=LedgerConfig.segment_bytes)
    parser.add_argument("--checkpoint-events", type=int, default=LedgerConfig.checkpoint_events)
    parser.add_argument("--checkpoint-s", type=float, default=LedgerConfig.checkpoint_s)
    parser.add_argument("--heartbeat-s", type=float, default=LedgerConfig.heartbeat_s)
    options = parser.parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(name)s: %(message)s")
    os.umask(0o027)
    if options.door is not None:
        os.close(options.door)
    config = LedgerConfig(
        folder=options.state,
        host=options.host,
        segment_bytes=options.segment_bytes,
        checkpoint_events=options.checkpoint_events,
        checkpoint_s=options.checkpoint_s,
        heartbeat_s=options.heartbeat_s,
        algorithm=options.algorithm,
    )
    notifier = Notifier.of_environment() if options.service else Notifier()
    try:
        if options.service:
            sockets = take_sockets()
            door = NamedServerDoor(sockets["room"], rooms_by_uid(), notifier.ready)
            run(door, config, HostClock(LOOK_MS), sockets.get("control"), notifier)
        elif options.accept is not None:
            run(InheritedServerDoor(Connection.from_descriptor(options.accept)), config, HostClock(LOOK_MS))
        else:
            parser.error("--accept or --service")
    except ScaleoutError as exc:
        notifier.failed(exc.code, exc.message)
        print(f"scaleoutd-ledger: {exc}", file=sys.stderr)
        if exc.hint:
            print(f"  {exc.hint}", file=sys.stderr)
        return exc.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
