# SPDX-License-Identifier: Apache-2.0
"""Sockets with names: who may be there, and who may come."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from scaleoutd.errors import ConfigError, PeerError
from scaleoutd.ipc.named import NamedClientDoor, NamedServerDoor, rooms_by_uid

ME = os.geteuid()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "run"
    made.mkdir(mode=0o755)
    return made


@pytest.fixture
def listening(folder: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.bind(str(folder / "runner.sock"))
        sock.listen()
        yield sock


def test_client_and_server_meet_and_the_uid_says_who_came(folder: Path, listening: socket.socket) -> None:
    told: list[str] = []
    server = NamedServerDoor(listening, {ME: "agent"}, told.append)
    server.ready("3 events")
    channel = NamedClientDoor(folder, ME).connect("runner")
    accepted = server.accept(60)
    greeting = threading.Thread(target=accepted.greet, args=["runner"])
    greeting.start()
    assert channel.greet("agent").room == "runner"
    greeting.join()
    assert accepted.peer == "agent" and told == ["3 events"]
    channel.close()
    accepted.close()


def test_uid_that_is_no_room_is_turned_away(folder: Path, listening: socket.socket) -> None:
    channel = NamedClientDoor(folder, ME).connect("runner")
    with pytest.raises(PeerError, match="is none of") as caught:
        NamedServerDoor(listening, {ME + 1: "agent"}, lambda status: None).accept(60)
    assert caught.value.code == "peer-denied"
    with pytest.raises(PeerError) as ended:
        channel.expect(str, timeout_s=60)
    assert ended.value.code == "peer-closed"
    channel.close()


@pytest.mark.parametrize("mode", [0o775, 0o757])
def test_folder_that_others_can_write_is_refused(folder: Path, listening: socket.socket, mode: int) -> None:
    folder.chmod(mode)
    with pytest.raises(PeerError, match="alone can write"):
        NamedClientDoor(folder, ME).connect("runner", 0)
    folder.chmod(0o755)
    NamedClientDoor(folder, ME).connect("runner", 0).close()


def test_socket_or_folder_of_another_user_is_refused(folder: Path, listening: socket.socket) -> None:
    with pytest.raises(PeerError, match="cannot connect") as caught:
        NamedClientDoor(folder, ME + 1).connect("runner", 0)
    assert caught.value.code == "peer-denied"


def test_link_in_place_of_the_socket_is_refused(folder: Path, listening: socket.socket) -> None:
    (folder / "ledger.sock").symlink_to(folder / "runner.sock")
    with pytest.raises(PeerError, match="is not a socket"):
        NamedClientDoor(folder, ME).connect("ledger", 0)


def test_socket_that_is_not_there_yet_is_waited_for(folder: Path) -> None:
    door = NamedClientDoor(folder, ME)
    with pytest.raises(PeerError, match=r"cannot connect to ledger") as caught:
        door.connect("ledger", 0)
    assert "scaleoutd-ledger.socket" in caught.value.hint
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:

        def come_late() -> None:
            sock.bind(str(folder / "ledger.sock"))
            sock.listen()

        late = threading.Timer(0.1, come_late)
        late.start()
        door.connect("ledger", 60).close()
        late.join()


def test_nobody_came_and_a_user_that_is_missing(listening: socket.socket) -> None:
    with pytest.raises(PeerError) as caught:
        NamedServerDoor(listening, {}, lambda status: None).accept(0)
    assert caught.value.code == "peer-timeout"
    assert rooms_by_uid({"root": "cli"}) == {0: "cli"}
    with pytest.raises(ConfigError, match="has no user"):
        rooms_by_uid({"no-such-user-here": "agent"})
