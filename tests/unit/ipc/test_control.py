# SPDX-License-Identifier: Apache-2.0
"""The control socket: what a caller may and may not do to a room; the kernel says who calls."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from scaleoutd.errors import PeerError, PolicyDeniedError, ScaleoutError
from scaleoutd.hold import Hold, HoldFile
from scaleoutd.ipc import control
from scaleoutd.ipc.channel import Channel
from scaleoutd.ipc.control import Command, Control, Done, Drain, Operator, Pause, Reload, Status, StatusReport, call
from scaleoutd.ipc.messages import AskFloors
from scaleoutd.ipc.packets import Connection
from scaleoutd.ledger.control import LedgerDesk


class ADesk:
    def __init__(self) -> None:
        self.done: list[tuple[Command, Operator, dict[str, bytes]]] = []

    def report(self) -> StatusReport:
        return StatusReport("agent", "1", os.getpid(), 1, "serving")

    def do(self, command: Command, operator: Operator, files: Mapping[str, int]) -> Done:
        self.done.append((command, operator, {name: os.pread(fd, 100, 0) for name, fd in files.items()}))
        return Done(True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.control"


@pytest.fixture
def desk(path: Path) -> Iterator[ADesk]:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    listener.listen()
    desk = ADesk()
    server = Control("agent", listener, desk).start()
    yield desk
    server.close()
    listener.close()


def test_the_operator_is_who_the_kernel_says(path: Path, desk: ADesk) -> None:
    assert call(str(path), "agent", Pause("x")) == Done(True)
    ((command, operator, files),) = desk.done
    assert (command, operator.uid, operator.pid, files) == (Pause("x"), os.geteuid(), os.getpid(), {})


def test_another_room_at_the_socket_is_refused(path: Path, desk: ADesk) -> None:
    with pytest.raises(PeerError) as caught:
        call(str(path), "ledger", Status())
    assert caught.value.code == "peer-denied"
    assert isinstance(call(str(path), "agent", Status()), StatusReport)


def test_nobody_there_names_the_next_command(path: Path) -> None:
    with pytest.raises(PeerError) as caught:
        call(str(path), "agent", Status())
    assert "systemctl status" in caught.value.hint


def test_credentials_come_by_descriptor_from_root_only(
    path: Path, desk: ADesk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "client.pem").write_bytes(b"pem")
    fd = os.open(tmp_path / "client.pem", os.O_RDONLY)
    try:
        monkeypatch.setattr(control.Operator, "of", classmethod(lambda cls, connection: Operator(1000, 1, "kim")))
        with pytest.raises(PolicyDeniedError) as caught:
            call(str(path), "agent", Reload(("client.pem",)), descriptors=[fd])
        assert caught.value.code == "command-refused" and not desk.done
        monkeypatch.setattr(control.Operator, "of", classmethod(lambda cls, connection: Operator(0, 1, "root")))
        call(str(path), "agent", Reload(("client.pem",)), descriptors=[fd])
        assert desk.done[0][2] == {"client.pem": b"pem"}
    finally:
        os.close(fd)


@pytest.mark.parametrize("request_", [Drain(), Status(), Reload(("client.pem", "client.key"))])
def test_descriptors_that_nobody_asked_for_are_closed(path: Path, desk: ADesk, request_: Command | Status) -> None:
    read, write = os.pipe()
    with pytest.raises(ScaleoutError):
        call(str(path), "agent", request_, descriptors=[write])
    os.close(write)
    assert os.read(read, 1) == b""  # the end: the server holds no copy
    os.close(read)
    assert not desk.done


def test_another_message_is_refused(path: Path, desk: ADesk) -> None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(str(path))
    channel = Channel(Connection(sock), "agent")
    channel.greet("cli")
    channel.tell(AskFloors())
    with pytest.raises(PeerError):
        channel.expect(Done, timeout_s=60)
    channel.close()


def test_silent_callers_do_not_keep_others_out_for_long(path: Path, desk: ADesk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "CALL_S", 0.2)
    silent = []
    for _ in range(control.MAX_CALLERS):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.connect(str(path))
        silent.append(sock)
    deadline_s = time.monotonic() + 60
    while True:
        try:
            call(str(path), "agent", Status())
            break
        except PeerError:
            assert time.monotonic() < deadline_s
    for sock in silent:
        sock.close()


def test_without_a_free_thread_the_connection_ends_and_the_room_goes_on(
    path: Path, desk: ADesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoThread:
        def __init__(self, **more: object) -> None: ...

        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading, "Thread", NoThread)
        for _ in range(control.MAX_CALLERS + 1):
            with pytest.raises(PeerError):
                call(str(path), "agent", Status())
    assert isinstance(call(str(path), "agent", Status()), StatusReport)  # the control


def test_the_ledger_takes_no_command() -> None:
    class Counters:
        size, signed, failed, trouble = 3, 2, False, ""

    desk = LedgerDesk(Counters())
    assert desk.report().text == "3 events, 2 of them signed"
    with pytest.raises(PolicyDeniedError):
        desk.do(Drain(), Operator(0, 1, "root"), {})


def test_a_pause_is_kept_and_a_drain_is_not(tmp_path: Path) -> None:
    hold = HoldFile(tmp_path)
    assert hold.now is None and hold.set(Hold("drain", 1, "kim"))
    assert HoldFile(tmp_path).now is None
    assert hold.set(Hold("pause", 2, "kim", "why")) and not hold.set(Hold("pause", 3, "kim", "why"))
    assert not hold.set(Hold("drain", 4, "kim"))  # it does not take the pause away
    again = HoldFile(tmp_path)
    assert again.now == Hold("pause", 2, "kim", "why")
    assert again.lift() and not again.lift()
    assert HoldFile(tmp_path).now is None


def test_a_damaged_hold_holds(tmp_path: Path) -> None:
    (tmp_path / "hold.json").write_text("{")
    with pytest.raises(ScaleoutError) as caught:
        HoldFile(tmp_path)
    assert caught.value.code == "state-corrupt"
