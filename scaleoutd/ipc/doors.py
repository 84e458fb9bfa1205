# SPDX-License-Identifier: Apache-2.0
"""How a room reaches another: doors.

In the foreground the parent of the rooms (cli/foreground) holds one socket pair to each room.  A room that wants to talk
to another asks the parent to open a connection; the parent makes a fresh pair, gives one end to the asker and the other to
the room asked (for the step: to a launcher that it starts for this one connection, as systemd does with Accept=yes).
Which descriptor a request came in on says who asks: no room can claim to be another, and no socket has a name in the file
system.  In the service the same two classes are filled by named sockets (unix(7), SO_PEERCRED for servers, ownership of
the path for clients).

In the foreground the runner has two more things to say to the parent, who is the user's own program: it asks for the project
to be signed again (development only: the parent has the key, no room does), and it tells how a task ended, so that one place
writes to the terminal, in order.

The allowed ways: agent → runner, agent → ledger, runner → step, runner → ledger, cli → runner, cli → ledger.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Protocol

from scaleoutd.core import records
from scaleoutd.errors import PeerError
from scaleoutd.ipc.channel import Channel, message
from scaleoutd.ipc.packets import Connection

SIGN_S = 90.0  # a project with large files is hashed whole

ALLOWED_WAYS = frozenset(
    {
        ("agent", "runner"),
        ("agent", "ledger"),
        ("runner", "step"),
        ("runner", "ledger"),
        ("cli", "runner"),
        ("cli", "ledger"),
    }
)


@message("open")
@dataclass(frozen=True)
class Open:
    """To the parent: a new connection to `room`, please."""

    room: records.Name


@message("opened")
@dataclass(frozen=True)
class Opened:
    """From the parent, with one descriptor: to the asker its end, `room` is who is at the other end."""

    room: records.Name


@message("ready")
@dataclass(frozen=True)
class Ready:
    """To the parent: this room accepts connections."""

    status: str = ""


@message("ask-to-sign")
@dataclass(frozen=True)
class AskToSign:
    """From the runner of a development node, before it verifies: sign what lies in the project now, if it changed."""


@message("signed-now")
@dataclass(frozen=True)
class SignedNow:
    """The project carries a signature of what lies there; `changed` files differ from the one before."""

    version: records.Natural
    changed: records.Natural


@message("task-ended")
@dataclass(frozen=True)
class TaskEnded:
    """From the runner, unanswered: a task's end.  `code` is "" when its result was released; `denied` counts refused calls."""

    task: records.Name
    run: records.Name
    code: Annotated[str, records.Text(64, r"[a-z0-9-]*")] = ""
    message: str = ""
    hint: str = ""
    denied: Mapping[str, int] = field(default_factory=dict)


class ClientDoor(Protocol):
    """Opens connections to other rooms."""

    def connect(self, room: str, timeout_s: float = 10.0) -> Channel: ...


class ServerDoor(Protocol):
    """Yields connections from other rooms; `fileno` becomes readable when one waits or the parent is gone."""

    def accept(self, timeout_s: float | None = None) -> Channel: ...

    def fileno(self) -> int: ...


class InheritedClientDoor:
    """A ClientDoor over the socket pair to the parent; threads take turns."""

    def __init__(self, connection: Connection) -> None:
        self._parent = Channel(connection, "parent")
        self._lock = threading.Lock()

    def connect(self, room: str, timeout_s: float = 10.0) -> Channel:
        with self._lock:
            self._parent.tell(Open(room))
            received = self._parent.receive(Opened, timeout_s=timeout_s)
        if len(received.descriptors) != 1:
            received.close()
            raise PeerError(f"cannot open a connection to {room}: the parent sent no descriptor")
        return Channel(Connection.from_descriptor(received.take()), room)

    def ask_to_sign(self, timeout_s: float = SIGN_S) -> SignedNow:
        """Raises what kept the parent from signing."""
        with self._lock:
            return self._parent.ask(AskToSign(), SignedNow, timeout_s=timeout_s)

    def tell(self, ended: TaskEnded) -> None:
        with self._lock:
            self._parent.tell(ended)


class InheritedServerDoor:
    """A ServerDoor over the socket pair to the parent."""

    def __init__(self, connection: Connection) -> None:
        self._parent = Channel(connection, "parent")

    def fileno(self) -> int:
        return self._parent.fileno()

    def ready(self, status: str = "") -> None:
        """Tells the parent that this room now serves."""
        self._parent.tell(Ready(status))

    def accept(self, timeout_s: float | None = None) -> Channel:
        received = self._parent.receive(Opened, timeout_s=timeout_s)
        if len(received.descriptors) != 1:
            received.close()
            raise PeerError("cannot accept a connection: the parent sent no descriptor")
        return Channel(Connection.from_descriptor(received.take()), received.message.room)
