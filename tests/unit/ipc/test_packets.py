# SPDX-License-Identifier: Apache-2.0
"""What a hostile peer can do with a packet, and that the receiver refuses it without leaking a descriptor."""

from __future__ import annotations

import array
import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from scaleoutd.errors import PeerError
from scaleoutd.ipc.packets import MAX_DESCRIPTORS, MAX_PACKET_BYTES, Connection


@pytest.fixture
def hostile() -> Iterator[tuple[socket.socket, Connection]]:
    """A raw socket in the hands of an attacker, and our end."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    ours = Connection(right)
    yield left, ours
    left.close()
    ours.close()


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    # The fixtures that end after this one hold the socket pair; anything above that is a leak.
    leaked = set(os.listdir("/proc/self/fd")) - before
    assert len(leaked) <= 2, f"descriptors left open: {sorted(leaked)}"


def send_raw(sock: socket.socket, data: bytes, descriptors: list[int] | None = None) -> None:
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    sock.sendmsg([data], control)


def test_control_a_good_packet_arrives_with_its_descriptors() -> None:
    left, right = Connection.pair()
    read_end, write_end = os.pipe()
    left.send({"t": "x", "n": 1}, [read_end, write_end])
    packet = right.receive(1)
    assert packet.body == {"t": "x", "n": 1}
    assert len(packet.descriptors) == 2
    os.write(packet.descriptors[1], b"through")
    assert os.read(packet.descriptors[0], 10) == b"through"
    assert not os.get_inheritable(packet.descriptors[0])
    packet.close()
    os.close(read_end)
    os.close(write_end)
    left.close()
    right.close()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"x" * (MAX_PACKET_BYTES + 1), "larger than"),
        (b'{"a":"' + b"x" * 200_000 + b'"}', "larger than"),
        (b"not json", "cannot read"),
        (b"[1]", "not a JSON object"),
        (b'{"a":1,"a":2}', "twice"),
        (b'{"a":1.5}', "not an integer"),
        (b'{"a":NaN}', "not JSON"),
        (b'{"a":9007199254740993}', "outside"),
        (b'{"a":"\\ud800"}', "surrogate"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", "deeper"),
    ],
)
def test_a_packet_that_is_not_one_small_strict_object_is_refused(
    hostile: tuple[socket.socket, Connection], data: bytes, why: str
) -> None:
    attacker, ours = hostile
    send_raw(attacker, data)
    with pytest.raises(PeerError, match=why) as caught:
        ours.receive(1)
    assert caught.value.code == "peer-protocol"


@pytest.mark.parametrize("count", [MAX_DESCRIPTORS + 1, MAX_DESCRIPTORS + 8, 200])
def test_too_many_descriptors_are_refused_and_closed(hostile: tuple[socket.socket, Connection], count: int) -> None:
    attacker, ours = hostile
    with open("/dev/null", "rb") as null:
        send_raw(attacker, b"{}", [null.fileno()] * count)
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(PeerError, match="more than 8 descriptors"):
            ours.receive(1)
        assert len(os.listdir("/proc/self/fd")) == before


def test_descriptors_of_a_refused_packet_are_closed(hostile: tuple[socket.socket, Connection]) -> None:
    attacker, ours = hostile
    read_end, write_end = os.pipe()
    send_raw(attacker, b"garbage", [write_end])
    os.close(write_end)
    with pytest.raises(PeerError):
        ours.receive(1)
    assert os.read(read_end, 1) == b"", "the write end is still open somewhere"
    os.close(read_end)


def test_an_empty_packet_counts_as_the_end(hostile: tuple[socket.socket, Connection]) -> None:
    attacker, ours = hostile
    send_raw(attacker, b"")
    with pytest.raises(PeerError) as caught:
        ours.receive(1)
    assert caught.value.code == "peer-closed"


def test_a_silent_peer_costs_the_time_limit_and_no_more(hostile: tuple[socket.socket, Connection]) -> None:
    _, ours = hostile
    start = time.monotonic()
    with pytest.raises(PeerError) as caught:
        ours.receive(0.1)
    assert caught.value.code == "peer-timeout"
    assert 0.09 <= time.monotonic() - start < 60


def test_a_closing_peer_is_noticed_while_waiting(hostile: tuple[socket.socket, Connection]) -> None:
    attacker, ours = hostile
    thread = threading.Timer(0.05, attacker.close)
    thread.start()
    with pytest.raises(PeerError) as caught:
        ours.receive(60)
    assert caught.value.code == "peer-closed"
    thread.join()
    with pytest.raises(PeerError) as caught:
        ours.send({})
    assert caught.value.code == "peer-closed"


def test_we_refuse_to_send_what_the_other_side_would_refuse(hostile: tuple[socket.socket, Connection]) -> None:
    _, ours = hostile
    with pytest.raises(PeerError, match="at most 65536"):
        ours.send({"a": "x" * MAX_PACKET_BYTES})
    with pytest.raises(PeerError, match="at most 8"):
        ours.send({}, [0] * 9)


def test_a_stream_socket_is_no_packet_socket() -> None:
    left, right = socket.socketpair()
    with pytest.raises(PeerError, match="SEQPACKET"):
        Connection(left)
    left.close()
    right.close()
