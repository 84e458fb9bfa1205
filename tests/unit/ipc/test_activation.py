# SPDX-License-Identifier: Apache-2.0
"""What systemd hands over and is told, against a service manager of the test's own, in a process of its own."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from scaleoutd.errors import PeerError
from scaleoutd.ipc.activation import Notifier

TAKE = """
import os, sys
from scaleoutd.errors import ScaleoutError
from scaleoutd.ipc.activation import take_sockets
os.environ["LISTEN_PID"] = str(os.getpid()) if sys.argv[1] == "us" else "1"
try:
    found = take_sockets()
    print(*(f"{name}={sock.getsockname()}:{sock.get_inheritable()}" for name, sock in found.items()), "LISTEN_FDS" in os.environ)
except ScaleoutError as exc:
    print(exc.code, exc.message)
"""


def take(sockets: list[socket.socket], names: str, pid: str = "us") -> str:
    """Starts a process with `sockets` from descriptor 3 on, as systemd does."""
    moves = "".join(f"os.dup2({sock.fileno()}, {number}); " for number, sock in enumerate(sockets, 103))
    moves += "".join(f"os.dup2({number + 100}, {number}); " for number in range(3, 3 + len(sockets)))
    start = f"import os; {moves}os.execv({sys.executable!r}, ['python', '-c', {TAKE!r}, {pid!r}])"
    done = subprocess.run(
        [sys.executable, "-c", start],
        env={**os.environ, "LISTEN_FDS": str(len(sockets)), "LISTEN_FDNAMES": names},
        pass_fds=[sock.fileno() for sock in sockets],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def listening(path: Path, kind: int = socket.SOCK_SEQPACKET, backlog: bool = True) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.bind(str(path))
    if backlog:
        sock.listen()
    return sock


def test_sockets_are_taken_by_name_and_not_given_to_children(tmp_path: Path) -> None:
    with listening(tmp_path / "a") as room, listening(tmp_path / "b") as control:
        assert take([room, control], "room:control") == f"room={tmp_path}/a:False control={tmp_path}/b:False False"


@pytest.mark.parametrize(
    ("names", "pid", "kind", "backlog", "cause"),
    [
        ("room", "other", socket.SOCK_SEQPACKET, True, "was given no sockets"),
        ("room", "us", socket.SOCK_STREAM, True, "not a listening"),
        ("room", "us", socket.SOCK_SEQPACKET, False, "not a listening"),
    ],
)
def test_what_is_not_ours_or_not_a_packet_socket_is_refused(
    tmp_path: Path, names: str, pid: str, kind: int, backlog: bool, cause: str
) -> None:
    with listening(tmp_path / "a", kind, backlog) as sock:
        told = take([sock], names, pid)
    assert told.startswith("config-") and cause in told


def test_two_sockets_of_one_name_are_refused(tmp_path: Path) -> None:
    with listening(tmp_path / "a") as one, listening(tmp_path / "b") as other:
        assert "two sockets are named" in take([one, other], "room:room")


@pytest.fixture
def manager(tmp_path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(tmp_path / "notify"))
    sock.settimeout(60)
    return sock


def test_states_are_told_in_the_words_of_sd_notify(tmp_path: Path, manager: socket.socket) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid())}
    with manager:
        notifier = Notifier.of_environment(environment)
        assert environment == {}, "a child could answer in this process's name"
        assert notifier.watchdog_s == 2.0
        notifier.ready("connected\nREADY=0 idle")
        assert manager.recv(4096) == b"READY=1\nSTATUS=connected READY=0 idle"
        notifier.reloading()
        lines = manager.recv(4096).decode().splitlines()
        assert lines[0] == "RELOADING=1" and int(lines[1].removeprefix("MONOTONIC_USEC=")) > 0
        notifier.progress()
        assert manager.recv(4096) == b"WATCHDOG=1"
        notifier.progress()  # too soon
        notifier.stopping()
        assert manager.recv(4096) == b"STOPPING=1"


def test_abstract_address_and_the_watchdog_of_another_process() -> None:
    name = f"scaleoutd-test-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{name}")
        notifier = Notifier.of_environment(
            {"NOTIFY_SOCKET": f"@{name}", "WATCHDOG_USEC": "1000", "WATCHDOG_PID": str(os.getppid())}
        )
        assert notifier.watchdog_s == 0
        notifier.status("idle")
        assert sock.recv(4096) == b"STATUS=idle"


def test_no_manager_is_no_error_and_one_that_is_gone_is(tmp_path: Path) -> None:
    Notifier.of_environment({}).ready("idle")
    with pytest.raises(PeerError, match="service manager"):
        Notifier(str(tmp_path / "gone")).ready()
