# SPDX-License-Identifier: Apache-2.0
"""Doors of the service: sockets with names below /run/scaleoutd, made by systemd's socket units.

Rules (unix(7)):
  1. A client connects only where nobody but root can have put the socket: folder and socket are root's, the folder is
     writable by nobody else, and neither is a symbolic link.  SO_PEERCRED would name PID 1 there, who made the socket.
  2. A server knows its client by SO_PEERCRED: the uid says which room it is, and a uid that is no room's is turned away.
  3. Which room may reach which socket is the mode and group of the socket; rule 2 is the second lock.
"""

from __future__ import annotations

import os
import pwd
import socket
import stat
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from scaleoutd.errors import ConfigError, PeerError
from scaleoutd.ipc.channel import Channel
from scaleoutd.ipc.packets import Connection

RUN_FOLDER = Path("/run/scaleoutd")
USERS = {"scaleoutd": "agent", "scaleoutd-runner": "runner", "root": "cli"}
RETRY_S = 0.02


class NamedClientDoor:
    """A ClientDoor over the sockets of `folder`; threads need not take turns.

    `owner` is who must own them: root, but for a test.
    """

    def __init__(self, folder: Path = RUN_FOLDER, owner: int = 0) -> None:
        self._folder, self._owner = folder, owner

    def connect(self, room: str, timeout_s: float = 10.0) -> Channel:
        """Waits up to `timeout_s` seconds while the socket unit is not there yet or its backlog is full."""
        path = self._folder / f"{room}.sock"
        deadline_s = time.monotonic() + timeout_s
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
            try:
                self._check(path)
                sock.connect(str(path))
                return Channel(Connection(sock), room)
            except (FileNotFoundError, ConnectionRefusedError, BlockingIOError) as exc:
                sock.close()
                if time.monotonic() >= deadline_s:
                    raise PeerError(
                        f"cannot connect to {room}: {path}: {exc.strerror}",
                        code="peer-closed",
                        hint=f"See `systemctl status scaleoutd-{room}.socket`.",
                    ) from exc
                time.sleep(RETRY_S)  # connect(2) to a socket file has nothing to wait on
            except OSError as exc:
                sock.close()
                raise PeerError(f"cannot connect to {room}: {path}: {exc.strerror}", code="peer-denied") from exc
            except BaseException:
                sock.close()
                raise

    def _check(self, path: Path) -> None:
        folder, found = os.lstat(path.parent), os.lstat(path)
        if not stat.S_ISDIR(folder.st_mode) or folder.st_uid != self._owner or folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PeerError(
                f"cannot connect: {path.parent} is not a folder that uid {self._owner} alone can write", code="peer-denied"
            )
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid != self._owner:
            raise PeerError(
                f"cannot connect: {path} is not a socket of uid {self._owner}, found uid {found.st_uid}", code="peer-denied"
            )


class NamedServerDoor:
    """A ServerDoor over a listening socket; `rooms` says which uid is which room.

    `progress` is called at least every quarter of `watched_s` seconds while `accept` waits without a limit: who waits there is
    at work, and who hangs elsewhere is not (sd_notify(3), WATCHDOG).
    """

    def __init__(
        self,
        listening: socket.socket,
        rooms: Mapping[int, str],
        on_ready: Callable[[str], None],
        progress: Callable[[], None] = lambda: None,
        watched_s: float = 0.0,
    ) -> None:
        self._listening, self._rooms, self._on_ready = listening, rooms, on_ready
        self.progress, self._turn_s = progress, watched_s / 4 or None

    def fileno(self) -> int:
        return self._listening.fileno()

    def ready(self, status: str = "") -> None:
        self._on_ready(status)

    def accept(self, timeout_s: float | None = None) -> Channel:
        try:
            sock = self._next(timeout_s)
        except (TimeoutError, BlockingIOError) as exc:
            raise PeerError("cannot accept a connection: nobody came", code="peer-timeout") from exc
        except OSError as exc:
            raise PeerError(f"cannot accept a connection: {exc.strerror}", code="peer-closed") from exc
        uid = peer_of(sock)[1]
        room = self._rooms.get(uid)
        if room is None:
            sock.close()
            raise PeerError(f"cannot accept a connection: uid {uid} is none of {sorted(self._rooms)}", code="peer-denied")
        return Channel(Connection(sock), room)

    def _next(self, timeout_s: float | None) -> socket.socket:
        while True:
            self.progress()
            self._listening.settimeout(self._turn_s if timeout_s is None else timeout_s)
            try:
                return self._listening.accept()[0]
            except TimeoutError:
                if timeout_s is not None:
                    raise


def peer_of(sock: socket.socket) -> tuple[int, int, int]:
    """pid, uid and gid of who connected (SO_PEERCRED); those at the time of connect(2)."""
    pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return pid, uid, gid


def rooms_by_uid(users: Mapping[str, str] = USERS) -> dict[int, str]:
    """uid → room on this machine; ConfigError when a user is missing."""
    found = {}
    for user, room in users.items():
        try:
            found[pwd.getpwnam(user).pw_uid] = room
        except KeyError as exc:
            raise ConfigError(
                f"cannot serve: this machine has no user {user}", hint="Run `systemd-sysusers`, or install the package again."
            ) from exc
    return found
