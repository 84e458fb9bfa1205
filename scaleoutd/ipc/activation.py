# SPDX-License-Identifier: Apache-2.0
"""What systemd hands to a service, and what it is told: listening sockets (sd_listen_fds(3)) and states (sd_notify(3)).

Own code on the standard library: a few datagrams and environment variables, in rooms that should load no more than they need.
The variables are taken out of the environment, so that no child can answer in this process's name.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping
from dataclasses import dataclass

from scaleoutd.errors import ConfigError, PeerError

FIRST_FD = 3  # SD_LISTEN_FDS_START
MAX_STATUS_CHARS = 200


def take_sockets(environment: MutableMapping[str, str] = os.environ) -> dict[str, socket.socket]:
    """The listening AF_UNIX SOCK_SEQPACKET sockets by their FileDescriptorName=; each is closed on exec.

    ConfigError for a start without socket units, for a name that comes twice and for a socket of another kind.
    """
    pid, count, names = (environment.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if pid != str(os.getpid()) or not count.isdigit():
        raise ConfigError(
            "cannot serve: this process was given no sockets (LISTEN_PID, LISTEN_FDS)",
            hint="The room is started by its socket unit: `systemctl start scaleoutd`.",
        )
    found: dict[str, socket.socket] = {}
    for number, name in zip(range(FIRST_FD, FIRST_FD + int(count)), names.split(":"), strict=True):
        os.set_inheritable(number, False)
        sock = socket.socket(fileno=number)
        kind = (sock.family, sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE))
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if kind != (socket.AF_UNIX, socket.SOCK_SEQPACKET) or not listens:
            raise ConfigError(f"cannot serve: socket {name!r} is not a listening AF_UNIX SOCK_SEQPACKET one")
        if found.setdefault(name, sock) is not sock:
            raise ConfigError(f"cannot serve: two sockets are named {name!r}")
    return found


@dataclass
class Notifier:
    """Tells the service manager; tells nobody where there is none (`address` "")."""

    address: str = ""
    watchdog_s: float = 0.0  # 0: nobody watches

    def __post_init__(self) -> None:
        self._fed_s = 0.0

    @classmethod
    def of_environment(cls, environment: MutableMapping[str, str] = os.environ) -> Notifier:
        """Takes NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID."""
        address = environment.pop("NOTIFY_SOCKET", "")
        usec, pid = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
        watched = usec.isdigit() and pid in ("", str(os.getpid()))
        return cls(address, int(usec) / 1_000_000 if watched else 0.0)

    def ready(self, status: str = "") -> None:
        self._tell("READY=1", _status(status))

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._tell(_status(text))

    def reloading(self) -> None:
        """To be followed by `ready`."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str = "") -> None:
        self._tell("STOPPING=1", _status(status))

    def extend(self, seconds: float) -> None:
        """A start or stop that goes on needs `seconds` more."""
        self._tell(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")

    def failed(self, code: str, message: str) -> None:
        """The last word of a start that was given up: it stays in `systemctl status`."""
        self._tell(_status(f"{message} [{code}]"))

    def progress(self) -> None:
        """Feeds the watchdog.  For the loop that does the work, once a turn: a thread of its own would feed for a dead loop."""
        now_s = time.monotonic()
        if self.watchdog_s and now_s - self._fed_s >= self.watchdog_s / 4:
            self._fed_s = now_s
            self._tell("WATCHDOG=1")

    def _tell(self, *lines: str) -> None:
        text = "\n".join(line for line in lines if line)
        if not self.address or not text:
            return
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.connect(address)
                sock.sendall(text.encode())
        except OSError as exc:
            raise PeerError(f"cannot tell the service manager: {exc.strerror or exc}", code="peer-closed") from exc


def _status(text: str) -> str:
    """STATUS= with the text on one line."""
    return f"STATUS={' '.join(text.split())[:MAX_STATUS_CHARS]}" if text else ""
