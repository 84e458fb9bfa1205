# SPDX-License-Identifier: Apache-2.0
"""The ledger's loop: one process, one thread, poll(2).

Rules:
  1. A peer cannot make the ledger wait: sockets do not block, a hello is not waited for, an answer that does not fit into the
     peer's buffer ends the connection.
  2. All requests that can be read in one round are made durable with one barrier.
  3. The room of a connection is what the door says; a hello that says otherwise ends it.
  4. When the parent's door closes or SIGTERM comes: `ledger-stopped`, a checkpoint, the end.
  5. When the disk cannot be trusted any more the process ends: only reading again can say what is there.
"""

from __future__ import annotations

import logging
import math
import os
import select
import signal
import socket
import time
from dataclasses import dataclass
from typing import Protocol

from scaleoutd import __version__
from scaleoutd.durable import hold_folder, make_private_folder
from scaleoutd.errors import LedgerError, PeerError, ScaleoutError
from scaleoutd.ipc.activation import Notifier
from scaleoutd.ipc.channel import PROTOCOL, Channel, Hello, Refused
from scaleoutd.ipc.control import Control
from scaleoutd.ipc.doors import ServerDoor
from scaleoutd.ipc.messages import Append, AskFloors, Floors, Recorded
from scaleoutd.ipc.named import peer_of
from scaleoutd.ledger.config import LedgerConfig
from scaleoutd.ledger.control import LedgerDesk, text_of
from scaleoutd.ledger.recorder import Clock, Recorder, Request

LOG = logging.getLogger("scaleoutd.ledger")
MAX_CLIENTS_OF_A_ROOM = 24  # a taken one must not take the places of the others
STATE_S = 5.0
ROOMS = frozenset({"agent", "runner", "cli"})


class ReadyServerDoor(ServerDoor, Protocol):
    """A ServerDoor that hears when the room serves."""

    def ready(self, status: str = "") -> None: ...


@dataclass
class _Client:
    channel: Channel
    uid: int
    greeted: bool = False


def run(
    door: ReadyServerDoor,
    config: LedgerConfig,
    clock: Clock,
    control: socket.socket | None = None,
    notifier: Notifier = Notifier(),  # noqa: B008 - tells nobody
) -> None:
    """Serves until the door closes or SIGTERM; ScaleoutError when the ledger cannot go on.

    `control` is the listening socket for administrators (ipc/control.py).
    """
    if not config.folder.is_dir():
        make_private_folder(config.folder)  # a service manager's own folder keeps the mode it was given, for its readers
    lock = hold_folder(config.folder, "ledger", config.lock_wait_s)
    try:
        with _Stop() as stop:
            recorder = Recorder(config, clock, os.geteuid())
            if control is not None:
                Control("ledger", control, LedgerDesk(recorder), LOG.warning).start()
            try:
                door.ready(text_of(recorder))
                reason = Service(door, recorder, stop.fileno(), notifier).serve()
            except BaseException:
                recorder.close("failed")
                raise
            recorder.close(reason)
    finally:
        os.close(lock)


class Service:
    """The connections and the loop over them."""

    def __init__(self, door: ServerDoor, recorder: Recorder, stop_fd: int, notifier: Notifier) -> None:
        self._door, self._recorder, self._stop_fd, self._notifier = door, recorder, stop_fd, notifier
        self._clients: dict[int, _Client] = {}
        self._told_trouble, self._told_signed, self._told_s = recorder.trouble, recorder.signed, time.monotonic()
        self._poll = select.poll()
        self._poll.register(door.fileno(), select.POLLIN)
        self._poll.register(stop_fd, select.POLLIN)

    def serve(self) -> str:
        """Returns why it ended."""
        reason = ""
        try:
            while not reason:
                reason = self._turn()
        finally:
            for client in list(self._clients.values()):
                self._drop(client)
        return reason

    def _turn(self) -> str:
        self._notifier.progress()
        wait_s = min(self._recorder.idle_s(), self._notifier.watchdog_s / 4 or math.inf)
        ready = {fd for fd, _ in self._poll.poll(wait_s * 1000)}
        requests: list[tuple[_Client, Append]] = []
        for fd in ready & self._clients.keys():
            client = self._clients[fd]
            request = self._read(client)
            if isinstance(request, Append):
                requests.append((client, request))
        answers = self._recorder.commit([Request(client.channel.peer, client.uid, body.entries) for client, body in requests])
        for (client, _), answer in zip(requests, answers, strict=True):
            self._tell(client, Refused.of(answer) if isinstance(answer, ScaleoutError) else answer)
        if self._recorder.failed:
            raise LedgerError("cannot go on: the disk did not take a write", hint="See the kernel's log, then start it again.")
        self._recorder.settle()
        self._tell_state()
        reason = ""
        if self._door.fileno() in ready:
            reason = self._accept()
        return "SIGTERM" if self._stop_fd in ready else reason

    def _tell_state(self) -> None:
        """Trouble and its end at once; else what was signed, now and then: each word wakes the service manager."""
        trouble, signed, now_s = self._recorder.trouble, self._recorder.signed, time.monotonic()
        if trouble == self._told_trouble and (signed == self._told_signed or now_s - self._told_s < STATE_S):
            return
        self._told_trouble, self._told_signed, self._told_s = trouble, signed, now_s
        self._notifier.status(text_of(self._recorder))

    def _accept(self) -> str:
        """Takes a new connection; the reason to end when the door is closed."""
        try:
            channel = self._door.accept(timeout_s=0)
        except PeerError as exc:
            if exc.code == "peer-closed":
                return "the door closed"
            LOG.warning("%s", exc, extra={"code": exc.code})
            return ""
        held = sum(client.channel.peer == channel.peer for client in self._clients.values())
        if channel.peer not in ROOMS or held >= MAX_CLIENTS_OF_A_ROOM:
            LOG.warning("a connection of %s was refused", channel.peer, extra={"code": "peer-denied"})
            channel.close()
            return ""
        os.set_blocking(channel.fileno(), False)
        client = _Client(channel, _uid_of(channel))
        self._clients[channel.fileno()] = client
        self._poll.register(channel.fileno(), select.POLLIN)
        self._tell(client, Hello(PROTOCOL, __version__, "ledger"))
        return ""

    def _read(self, client: _Client) -> Append | None:
        """The client's next request; what can be answered at once is."""
        try:
            kinds = (Append, AskFloors) if client.greeted else (Hello,)
            received = client.channel.receive(*kinds, timeout_s=0)
            if received.descriptors:
                received.close()
                raise PeerError("cannot take a message with descriptors")
            body = received.message
            if isinstance(body, Append):
                return body
            if isinstance(body, AskFloors):
                self._tell(client, self._recorder.answer_floors())
            else:
                self._welcome(client, body)
        except PeerError as exc:
            if exc.code != "peer-closed":
                LOG.warning("the connection of %s ends: %s", client.channel.peer, exc, extra={"code": exc.code})
                self._tell(client, Refused.of(exc))
            self._drop(client)
        except ScaleoutError as exc:  # a Refused that nobody asked for
            LOG.warning("the connection of %s ends: %s", client.channel.peer, exc, extra={"code": exc.code})
            self._drop(client)
        return None

    def _welcome(self, client: _Client, hello: Hello) -> None:
        client.channel.welcome(hello)
        if hello.room != client.channel.peer:
            raise PeerError(
                f"cannot talk to {hello.room}: the connection is that of room {client.channel.peer}", code="peer-denied"
            )
        client.greeted = True

    def _tell(self, client: _Client, body: Hello | Recorded | Refused | Floors) -> None:
        if client.channel.fileno() < 0:
            return
        try:
            client.channel.tell(body)
        except PeerError:
            self._drop(client)  # gone, or it does not read its answers

    def _drop(self, client: _Client) -> None:
        fd = client.channel.fileno()
        if self._clients.pop(fd, None) is not None:
            self._poll.unregister(fd)
        client.channel.close()


class _Stop:
    """SIGTERM and SIGINT as a readable descriptor."""

    def __enter__(self) -> socket.socket:
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._old_fd = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._old = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
        return self._read

    def __exit__(self, *_: object) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)
        signal.set_wakeup_fd(self._old_fd)
        self._read.close()
        self._write.close()


def _uid_of(channel: Channel) -> int:
    """The user at the other end (unix(7), SO_PEERCRED); of an inherited pair the one who made it."""
    with socket.socket(fileno=os.dup(channel.fileno())) as sock:
        uid = peer_of(sock)[1]
    return uid if uid >= 0 else 65_534
