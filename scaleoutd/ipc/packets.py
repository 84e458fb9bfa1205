# SPDX-License-Identifier: Apache-2.0
"""Packets between rooms: one JSON object and up to eight descriptors over an AF_UNIX SOCK_SEQPACKET socket.

Rules (unix(7), recv(2), cmsg(3)); what breaks one is refused, and every descriptor that came with it is closed:
  1. A packet is one strict JSON object of at most 64 KiB.  What is larger travels as a descriptor.
  2. At most 8 descriptors.  The control buffer has room for more than that, so a ninth is seen and refused, not lost.
  3. MSG_TRUNC and MSG_CTRUNC mean that the peer sent more than it may.
  4. An empty packet reads as end of file, and nobody may send one.
  5. Descriptors arrive with O_CLOEXEC.

Standard library only: the step's launcher uses this module too.
"""

from __future__ import annotations

import array
import os
import select
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scaleoutd.core import strictjson
from scaleoutd.core.strictjson import Json
from scaleoutd.errors import FormatError, PeerError

MAX_PACKET_BYTES = 64 * 1024
MAX_DESCRIPTORS = 8
_CONTROL_BYTES = socket.CMSG_SPACE(4 * (MAX_DESCRIPTORS + 8))


@dataclass
class Packet:
    """What arrived.  Whoever takes a packet owns its descriptors and closes them."""

    body: dict[str, Json]
    descriptors: list[int]

    def close(self) -> None:
        while self.descriptors:
            os.close(self.descriptors.pop())


class Connection:
    """One end of a packet socket.  Not for use by two threads in the same direction at once."""

    def __init__(self, sock: socket.socket) -> None:
        if sock.family != socket.AF_UNIX or sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) != socket.SOCK_SEQPACKET:
            raise PeerError("cannot use the socket: it is not AF_UNIX SOCK_SEQPACKET")
        self._socket = sock
        sock.setblocking(True)

    @classmethod
    def from_descriptor(cls, fd: int) -> Connection:
        """Takes over `fd`."""
        return cls(socket.socket(fileno=fd))

    @classmethod
    def pair(cls) -> tuple[Connection, Connection]:
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(left), cls(right)

    def fileno(self) -> int:
        return self._socket.fileno()

    def detach(self) -> int:
        """The bare descriptor; this object is closed then."""
        return self._socket.detach()

    def send(self, body: Mapping[str, Json], descriptors: Sequence[int] = ()) -> None:
        """Sends one packet; PeerError `peer-closed` when the other end is gone."""
        data = strictjson.canonical(body)
        if len(data) > MAX_PACKET_BYTES:
            raise PeerError(f"cannot send a packet: {len(data)} bytes, at most {MAX_PACKET_BYTES} are allowed")
        if len(descriptors) > MAX_DESCRIPTORS:
            raise PeerError(f"cannot send a packet: {len(descriptors)} descriptors, at most {MAX_DESCRIPTORS} are allowed")
        control = []
        if descriptors:
            control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        try:
            self._socket.sendmsg([data], control, socket.MSG_NOSIGNAL)
        except OSError as exc:
            raise PeerError(f"cannot send a packet: {exc.strerror or exc}", code="peer-closed") from exc

    def wait(self, timeout_s: float | None) -> bool:
        """True when a packet or the end of file can be read within `timeout_s` seconds."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = None if deadline is None else deadline - time.monotonic()
            left_ms = None if left_s is None else int(left_s * 1000) + 1 if left_s > 0 else 0
            if poll.poll(left_ms):
                return True
            if deadline is not None and time.monotonic() >= deadline:
                return False

    def receive(self, timeout_s: float | None = None) -> Packet:
        """The next packet.

        PeerError: `peer-closed` at the end of file, `peer-timeout` after `timeout_s` seconds, `peer-protocol` for a
        packet that breaks a rule.
        """
        if not self.wait(timeout_s):
            raise PeerError(f"cannot receive a packet: silence for {timeout_s} s", code="peer-timeout")
        try:
            data, control, flags, _ = self._socket.recvmsg(MAX_PACKET_BYTES + 1, _CONTROL_BYTES, socket.MSG_CMSG_CLOEXEC)
        except OSError as exc:
            raise PeerError(f"cannot receive a packet: {exc.strerror or exc}", code="peer-closed") from exc
        packet = Packet({}, _descriptors_of(control))
        try:
            packet.body = _body_of(data, flags, packet.descriptors)
        except BaseException:
            packet.close()
            raise
        return packet

    def shut(self) -> None:
        """Says no more; the other end reads the end of file, and we can still read what it says."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the other end is gone already

    def drain(self, timeout_s: float) -> bool:
        """Reads and drops everything until the other end closes; False when it has not after `timeout_s` seconds."""
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            try:
                self.receive(left).close()
            except PeerError as exc:
                if exc.code == "peer-closed":
                    return True
        return False

    def close(self) -> None:
        self._socket.close()


def _descriptors_of(control: list[tuple[int, int, bytes]]) -> list[int]:
    descriptors: list[int] = []
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
            descriptors.extend(numbers)
    return descriptors


def _body_of(data: bytes, flags: int, descriptors: list[int]) -> dict[str, Json]:
    if flags & socket.MSG_TRUNC or len(data) > MAX_PACKET_BYTES:
        raise PeerError(f"cannot take a packet: it is larger than {MAX_PACKET_BYTES} bytes")
    if flags & socket.MSG_CTRUNC or len(descriptors) > MAX_DESCRIPTORS:
        raise PeerError(f"cannot take a packet: it carries more than {MAX_DESCRIPTORS} descriptors")
    if not data:
        raise PeerError("cannot receive a packet: the other end closed", code="peer-closed")
    try:
        body = strictjson.parse(data, max_bytes=MAX_PACKET_BYTES, what="a packet")
    except FormatError as exc:
        raise PeerError(f"cannot take a packet: {exc.message}") from exc
    if not isinstance(body, dict):
        raise PeerError("cannot take a packet: it is not a JSON object")
    return body
