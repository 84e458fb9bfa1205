# SPDX-License-Identifier: Apache-2.0
"""The parent of the rooms: starts them as children, opens connections between them, brings them back when they die.

It does in the foreground what systemd does for the service, and no more: it parses nothing that comes from the network,
holds no connection itself, and decides nothing but who may talk to whom (scaleoutd.ipc.doors.ALLOWED_WAYS).

    room ──Open──▶ parent ──Opened + end──▶ room            one socket pair a room, for what it asks
    parent ──Opened + end──▶ room                           one socket pair a server room, for who comes in
    parent ──Launch + end──▶ template ──fork──▶ launcher    for each connection to "step" (launchers.py)

A room that dies is started again after a pause that grows; whoever was connected to it sees the end of the connection and
asks for a new one.  When the parent dies, by whatever, every room reads the end of its door and ends.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scaleoutd.cli.launchers import Launchers
from scaleoutd.errors import PeerError, ScaleoutError
from scaleoutd.ipc.channel import Channel, Refused
from scaleoutd.ipc.doors import ALLOWED_WAYS, AskToSign, Open, Opened, Ready, SignedNow, TaskEnded
from scaleoutd.ipc.packets import Connection

PACKAGE_ROOT = Path(__file__).resolve().parent.parent.parent
PRIVATE = PACKAGE_ROOT / "site"  # libraries of an installed node, which no folder of Python's knows
MAX_PAUSE_S = 10.0
STOP_S = 8.0
START_S = 30.0

# Only what a room needs: no PYTHON*, no LD_*, no proxy, no token.
KEPT_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TERM", "TMPDIR", "XDG_STATE_HOME", "NO_COLOR")

# glibc gives each thread a heap of its own, and none gives back: with one for all, an agent that passes 1 GiB on needs 56 MiB
# at its peak and not 60 to 70, in the same time (benchmarks/model.py).
ROOM_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}


def room_command(room: str, arguments: Sequence[str]) -> list[str]:
    """Argument vector that runs a room of this very package, whatever the current folder and environment hold."""
    return module_command(f"scaleoutd.{room}.__main__", f"scaleoutd-{room}", arguments)


def module_command(module: str, program: str, arguments: Sequence[str]) -> list[str]:
    """Argument vector that runs `main` of a module of this very package under the name of `program`."""
    first = [str(path) for path in (PACKAGE_ROOT, PRIVATE) if path.is_dir()]
    start = f"import sys; sys.path[:0] = {first!r}; sys.argv[0] = {program!r}; from {module} import main; sys.exit(main())"
    return [sys.executable, "-I", "-B", "-c", start, *arguments]


@dataclass(frozen=True)
class RoomSpec:
    """How to start a room.

    `descriptors()` is called at each start and gives more arguments and the descriptors they name; they are closed in the
    parent after the start.  A `server` room says Ready when it serves; one that is not is ready when it runs.
    """

    name: str
    arguments: Sequence[str]
    server: bool
    client: bool = True  # asks for connections
    descriptors: Callable[[], tuple[list[str], list[int]]] = lambda: ([], [])
    restart: bool = True


@dataclass
class _Room:
    spec: RoomSpec
    process: subprocess.Popen[bytes] | None = None
    asks: Channel | None = None  # the room asks us for connections
    gives: Channel | None = None  # we hand connections to the room
    ready: bool = False
    started_s: float = 0.0
    pause_s: float = 0.2
    again_s: float | None = None  # monotonic time of the next start
    ended_with: int | None = None


@dataclass
class Rooms:
    """Runs the rooms of `specs`, in this order, until `stop` or until a room that must not restart ends.

    `on_event(room, what)` hears "started", "ready", "ended STATUS" and "restarting".
    """

    specs: Sequence[RoomSpec]
    on_event: Callable[[str, str], None] = lambda room, what: None
    extra: Mapping[int, Callable[[], None]] = field(default_factory=dict)  # more descriptors to watch, with what to do
    on_status: Callable[[str, str], None] = lambda room, text: None  # what a room has to say when it is ready, in lines
    on_sign: Callable[[], SignedNow] | None = None  # None: nothing is ever signed here
    on_task_ended: Callable[[TaskEnded], None] = lambda ended: None

    def __post_init__(self) -> None:
        self._rooms = {spec.name: _Room(spec) for spec in self.specs}
        self._selector = selectors.DefaultSelector()
        self._launchers = Launchers()
        self._stopping = False
        self._starting = False
        self.hurry = False  # set it, for example in a signal handler: what is being ended is killed at once
        self.interrupted = False  # set it to give up a start that is under way
        for fd, act in self.extra.items():
            self._selector.register(fd, selectors.EVENT_READ, act)

    # --- life -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts every room and waits until each server is ready; ScaleoutError when one ends instead."""
        self._starting = True
        for room in self._rooms.values():
            self._start(room)
            deadline = time.monotonic() + START_S
            while room.spec.server and not room.ready:
                if self.interrupted:
                    return
                self.turn(max(0.0, deadline - time.monotonic()))
                if room.ended_with is not None:
                    raise ScaleoutError(
                        f"cannot start room {room.spec.name}: it ended with status {room.ended_with}",
                        hint="Its reason stands above.",
                    )
                if time.monotonic() > deadline:
                    raise PeerError(f"cannot start room {room.spec.name}: not ready after {START_S:.0f} s", code="peer-timeout")
        self._starting = False

    def turn(self, timeout_s: float | None = None) -> None:
        """One round of the loop: serves doors, watches children, restarts what died."""
        now = time.monotonic()
        waits = [room.again_s - now for room in self._rooms.values() if room.again_s is not None]
        limit = min([*(w for w in waits), 0.5, *([timeout_s] if timeout_s is not None else [])])
        for key, _ in self._selector.select(max(0.0, limit)):
            act = key.data
            act()
        self._reap()
        for room in self._rooms.values():
            if room.again_s is not None and room.again_s <= time.monotonic() and not self._stopping:
                self._start(room)

    def wait_readable(self, fd: int) -> None:
        """Serves the rooms until `fd` can be read."""
        came: list[bool] = []
        self._selector.register(fd, selectors.EVENT_READ, lambda: came.append(True))
        try:
            while not came:
                self.turn()
        finally:
            self._selector.unregister(fd)

    def connect(self, room: str, as_room: str = "cli", timeout_s: float = START_S) -> Channel:
        """A connection of the parent itself, in the role `as_room`, to a server room."""
        deadline = time.monotonic() + timeout_s
        while not self._rooms[room].ready:
            if time.monotonic() > deadline:
                raise PeerError(f"cannot connect to {room}: it is not ready", code="peer-timeout")
            self.turn(0.1)
        return self._connect(as_room, room)

    def pid(self, room: str) -> int | None:
        process = self._rooms[room].process
        return process.pid if process else None

    def ended_with(self, room: str) -> int | None:
        """Exit status of a room that ended and is not started again."""
        return self._rooms[room].ended_with

    def stop(self) -> None:
        """Ends the rooms in reverse order, orderly with SIGTERM, after `STOP_S` seconds with SIGKILL."""
        self._stopping = True
        for room in reversed(list(self._rooms.values())):
            room.again_s = None
            if room.process is None:
                continue
            room.process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + STOP_S
            while room.process is not None and time.monotonic() < deadline and not self.hurry:
                self.turn(0.05)
            if room.process is not None:
                room.process.kill()
                room.process.wait()
                self._forget(room)
        self._launchers.stop()
        self._selector.close()

    # --- doors ------------------------------------------------------------------------------------------------

    def _start(self, room: _Room) -> None:
        if room.spec.name == "runner":
            self._launchers.warm()  # beside the runner's own start
        passed: list[int] = []
        arguments = list(room.spec.arguments)
        asks, room_asks = Connection.pair() if room.spec.client else (None, None)
        gives, room_gives = Connection.pair() if room.spec.server else (None, None)
        for option, end in (("--door", room_asks), ("--accept", room_gives)):
            if end is not None:
                passed.append(end.fileno())
                arguments += [option, str(end.fileno())]
        more, descriptors = room.spec.descriptors()
        try:
            room.process = subprocess.Popen(
                room_command(room.spec.name, [*arguments, *more]),
                stdin=subprocess.DEVNULL,
                pass_fds=[*passed, *descriptors],
                cwd="/",
                env=ROOM_ENVIRONMENT | {key: os.environ[key] for key in KEPT_ENVIRONMENT if key in os.environ},
                process_group=0,  # Ctrl-C is for the parent, who ends the rooms in order
            )
        finally:
            for fd in descriptors:
                os.close(fd)
            for end in (room_asks, room_gives):
                if end is not None:
                    end.close()
        if asks is not None:
            room.asks = Channel(asks, room.spec.name)
            self._selector.register(asks.fileno(), selectors.EVENT_READ, lambda: self._serve(room))
        if gives is not None:
            room.gives = Channel(gives, room.spec.name)
            self._selector.register(gives.fileno(), selectors.EVENT_READ, lambda: self._hear(room))
        room.ready = not room.spec.server
        room.ended_with = None
        room.again_s = None
        room.started_s = time.monotonic()
        self.on_event(room.spec.name, "started")

    def _hear(self, room: _Room) -> None:
        """A server room says that it is ready, or its end of the door is closed."""
        if room.gives is None:
            return
        try:
            status = room.gives.expect(Ready, timeout_s=0).status
        except PeerError:
            self._selector.unregister(room.gives)
            room.gives.close()
            room.gives = None
            room.ready = False
            return
        room.ready = True
        if status:
            self.on_status(room.spec.name, status)
        self.on_event(room.spec.name, "ready")

    def _serve(self, room: _Room) -> None:
        """A room asks for a connection; the runner may also ask for a signature, or tell how a task ended."""
        asks = room.asks
        if asks is None:
            return
        try:
            received = asks.receive(Open, AskToSign, TaskEnded, timeout_s=0)
            received.close()
        except PeerError:
            self._selector.unregister(asks)
            asks.close()
            room.asks = None
            return
        if isinstance(received.message, TaskEnded):
            if room.spec.name == "runner":
                self.on_task_ended(received.message)
            return
        if isinstance(received.message, AskToSign):
            self._answer(asks, self._sign(room.spec.name), [])
            return
        wanted = received.message.room
        try:
            channel = self._connect(room.spec.name, wanted)
        except PeerError as exc:
            self._answer(asks, Refused.of(exc), [])
            return
        self._answer(asks, Opened(wanted), [channel.fileno()])
        channel.close()

    def _sign(self, asker: str) -> SignedNow | Refused:
        if asker != "runner" or self.on_sign is None:
            error: ScaleoutError = PeerError(
                f"cannot sign for {asker}: this node takes only what somebody signed before", code="peer-denied"
            )
            return Refused.of(error)
        try:
            return self.on_sign()
        except ScaleoutError as exc:
            return Refused.of(exc)

    @staticmethod
    def _answer(asks: Channel, body: Opened | Refused | SignedNow, descriptors: list[int]) -> None:
        try:
            asks.tell(body, descriptors)
        except PeerError:
            pass  # the asker is gone; its exit is seen by _reap

    def _connect(self, asker: str, wanted: str) -> Channel:
        if (asker, wanted) not in ALLOWED_WAYS:
            raise PeerError(f"cannot open a connection from {asker} to {wanted}: there is no such way", code="peer-denied")
        left, right = Connection.pair()
        try:
            if wanted == "step":
                self._launchers.launch(right)
            else:
                target = self._rooms[wanted]
                if target.gives is None or not target.ready:
                    raise PeerError(f"cannot open a connection to {wanted}: it is not running", code="peer-closed")
                target.gives.tell(Opened(asker), [right.fileno()])
        except BaseException:
            left.close()
            right.close()
            raise
        right.close()
        return Channel(left, wanted)

    # --- children ---------------------------------------------------------------------------------------------

    def _reap(self) -> None:
        self._launchers.reap()
        for room in self._rooms.values():
            if room.process is None or room.process.poll() is None:
                continue
            status = room.process.returncode
            self._forget(room)
            self.on_event(room.spec.name, f"ended {status}")
            # Status 78 is EX_CONFIG and the like: starting again would only repeat the message.
            if self._stopping or self._starting or not room.spec.restart or status in (0, 65, 71, 77, 78):
                room.ended_with = status
                continue
            if time.monotonic() - room.started_s > 30:
                room.pause_s = 0.2
            room.again_s = time.monotonic() + room.pause_s
            room.pause_s = min(MAX_PAUSE_S, room.pause_s * 2)
            self.on_event(room.spec.name, "restarting")

    def _forget(self, room: _Room) -> None:
        for channel in (room.asks, room.gives):
            if channel is not None:
                self._selector.unregister(channel)
                channel.close()
        room.asks = room.gives = room.process = None
        room.ready = False
