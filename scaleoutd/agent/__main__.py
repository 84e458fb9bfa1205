# SPDX-License-Identifier: Apache-2.0
"""`python -m scaleoutd.agent --config FD_OR_FILE --door FD`: the agent as a child of the rooms' parent; `--service`: as a unit.

The configuration comes on an inherited descriptor (a number) or from a file, so that no token is on a command line or in
the environment.  SIGTERM and SIGINT stop it in order; so does the end of the door, which is the parent's end.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
import threading
from pathlib import Path

from scaleoutd.agent.config import MAX_CONFIG_BYTES, AgentConfig, parse_config
from scaleoutd.agent.log import open_log
from scaleoutd.agent.nodefile import load_agent_config
from scaleoutd.agent.service import run
from scaleoutd.durable import hold_folder, make_private_folder
from scaleoutd.errors import ConfigError, ScaleoutError
from scaleoutd.ipc.activation import Notifier, take_sockets
from scaleoutd.ipc.doors import InheritedClientDoor
from scaleoutd.ipc.named import NamedClientDoor
from scaleoutd.ipc.packets import Connection

STATE = Path("/var/lib/scaleoutd/agent")
LOCK_WAIT_S = 15.0  # for an agent whose parent was killed; the folder is held until the process is gone


def main(argv: list[str] | None = None) -> int:
    """Exit status of the agent; errors.py has the numbers."""
    parser = argparse.ArgumentParser(prog="scaleoutd-agent", allow_abbrev=False)
    parser.add_argument("--config", help="number of a descriptor, or a file")
    parser.add_argument("--door", type=int, help="number of the descriptor to the parent")
    parser.add_argument("--service", action="store_true", help="as a unit of systemd: scaleoutd.yaml, credentials, named sockets")
    arguments = parser.parse_args(argv)
    if not arguments.service and (arguments.config is None or arguments.door is None):
        parser.error("--config and --door, or --service")
    os.umask(0o077)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if arguments.service:
        return serve(stop)
    try:
        config = read_config(arguments.config)
        hold_folder(make_private_folder(config.state), "agent", LOCK_WAIT_S)
        door = InheritedClientDoor(Connection.from_descriptor(arguments.door))
    except ScaleoutError as exc:
        open_log(sys.stderr, "text").error("agent-stopped", exc)
        return exc.exit_status
    log = open_log(sys.stderr, config.log_format, config.log_level)
    threading.Thread(target=_watch_parent, args=(arguments.door, stop), name="parent", daemon=True).start()
    return run(config, door, log, stop)


def serve(stop: threading.Event) -> int:
    """The room as a unit.  Ready when it serves, connected or not: a combiner that is away is no failed start."""
    notifier = Notifier.of_environment()
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    try:
        sockets = take_sockets()
        config = load_agent_config(Path(credentials) if credentials else None, STATE)
        hold_folder(config.state, "agent", LOCK_WAIT_S)
    except ScaleoutError as exc:
        notifier.failed(exc.code, exc.message)
        open_log(sys.stderr, "text").error("agent-stopped", exc)
        return exc.exit_status
    log = open_log(sys.stderr, config.log_format, config.log_level)
    return run(config, NamedClientDoor(), log, stop, control=sockets.get("control"), notifier=notifier)


def read_config(where: str) -> AgentConfig:
    """From descriptor `where`, which is closed then, or from the file of that name."""
    try:
        if where.isdigit():
            with os.fdopen(int(where), "rb") as file:
                return parse_config(file.read(MAX_CONFIG_BYTES + 1))
        return parse_config(Path(where).read_bytes())
    except OSError as exc:
        raise ConfigError(f"cannot read the agent's configuration: {exc.strerror}", code="config-missing") from exc


def _watch_parent(fd: int, stop: threading.Event) -> None:
    """Sets `stop` when the other end of the door is closed.  Without POLLIN: the answers there are another thread's."""
    poll = select.poll()
    poll.register(fd, select.POLLRDHUP)
    poll.poll()
    stop.set()


if __name__ == "__main__":
    sys.exit(main())
