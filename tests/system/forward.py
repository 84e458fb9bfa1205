# SPDX-License-Identifier: Apache-2.0
"""TCP from a guest that has no network to servers of the test: ports of the guest's loopback, carried over the line to the tests.

The server (a DevCombiner in the test's own process) so outlives a reboot of the guest, and a guest without its forward is a node
without a network.  Both ends run the same Relay: it numbers connections, and a frame is a connection's begin, bytes, or end.

As a program in the guest: `forward PORT…`, frames on standard input and output, until the input ends.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Self

from tests.system.inside import CHUNK_BYTES, Frames, frame

if TYPE_CHECKING:
    from tests.system.guest import Guest

OPEN, DATA, END, CUT = b"c", b"t", b"z", b"y"
LOOPBACK = "127.0.0.1"


class Relay:
    """Connections over one stream; `out` takes whole frames and may be called from any thread."""

    def __init__(self, out: Callable[[bytes], None], connect: Callable[[int], socket.socket] | None = None) -> None:
        self.out = out
        self.ends: dict[int, End] = {}
        self._connect = connect
        self._frames = Frames()

    def feed(self, data: bytes) -> None:
        """Bytes that came from the other side."""
        for kind, number, body in self._frames.feed(data):
            if kind == OPEN and self._connect:
                try:
                    self.add(number, self._connect(int(body)))
                except OSError:
                    self.out(frame(CUT, number))
            elif end := self.ends.get(number):
                end.waiting.put(None if kind == CUT else body)

    def add(self, number: int, line: socket.socket, begin: bytes = b"") -> None:
        end = self.ends[number] = End(self, number, line)
        if begin:
            self.out(frame(OPEN, number, begin))
        for work in (end.read, end.write):
            threading.Thread(target=work, daemon=True).start()

    def close(self) -> None:
        """The stream is over: every connection is cut."""
        for end in list(self.ends.values()):
            end.waiting.put(None)


class End:
    """This side's end of a connection; each direction ends by itself, as in TCP."""

    def __init__(self, relay: Relay, number: int, line: socket.socket) -> None:
        self.waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()  # b"" is the end, None a cut
        self._relay, self._number, self._line = relay, number, line
        self._open = {"read", "write"}
        self._lock = threading.Lock()

    def read(self) -> None:
        try:
            while data := self._line.recv(CHUNK_BYTES):
                self._relay.out(frame(DATA, self._number, data))
            self._relay.out(frame(END, self._number))
        except (OSError, AssertionError):
            self._cut()
        self._over("read")

    def write(self) -> None:
        try:
            while data := self.waiting.get():
                self._line.sendall(data)
            self._line.shutdown(socket.SHUT_RDWR if data is None else socket.SHUT_WR)
        except OSError:
            self._cut()
        self._over("write")

    def _cut(self) -> None:
        """Both sides: nothing more goes or comes."""
        self.waiting.put(None)
        try:
            self._line.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        try:
            self._relay.out(frame(CUT, self._number))
        except (OSError, AssertionError):
            pass

    def _over(self, direction: str) -> None:
        with self._lock:
            self._open.discard(direction)
            if not self._open:
                self._line.close()
                self._relay.ends.pop(self._number, None)


class Forward:
    """While it is open, ports of the guest's loopback are servers' ports of this machine's.  After a reboot open a new one."""

    def __init__(self, guest: Guest, ports: Mapping[int, int]) -> None:
        def connect(port: int) -> socket.socket:
            return socket.create_connection((LOOPBACK, ports[port]), timeout=None)

        self._relay = Relay(lambda data: self._process.send(data), connect)
        self._process = guest.start_own("forward", *map(str, ports), stdin=None, sink=self._relay.feed)
        self._process.wait_for("^listening$", errors=True)

    def close(self) -> None:
        self._relay.close()
        self._process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def main() -> None:
    lock = threading.Lock()
    numbers = iter(range(1, 1 << 32))

    def out(data: bytes) -> None:
        with lock:
            left = memoryview(data)
            while left:
                left = left[os.write(1, left) :]

    relay = Relay(out)
    listeners = [socket.create_server((LOOPBACK, int(port))) for port in sys.argv[1:]]

    def accept(listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            number = next(numbers)
            relay.add(number, connection, begin=str(listener.getsockname()[1]).encode())

    for listener in listeners:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
    print("listening", file=sys.stderr, flush=True)
    while data := os.read(0, CHUNK_BYTES):
        relay.feed(data)
