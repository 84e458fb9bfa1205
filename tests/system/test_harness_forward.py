# SPDX-License-Identifier: Apache-2.0
"""The forward itself: a guest reaches a server of the test, and nothing else."""

from __future__ import annotations

import hashlib
import socket
import threading

import pytest

from tests.system.container import Container
from tests.system.forward import Forward

SIZE = 64 << 20
ECHO = """
import hashlib, socket, sys, threading
size = int(sys.argv[2])
line = socket.create_connection(("localhost", int(sys.argv[1])))
def fill():
    line.sendall(b"a" * size)
    line.shutdown(socket.SHUT_WR)  # the answer comes after this end
threading.Thread(target=fill).start()
got = hashlib.sha256()
while data := line.recv(1 << 20):
    got.update(data)
print(got.hexdigest())
"""


@pytest.fixture
def echo() -> int:
    """The port of a server that sends back, in capitals, what it got until its end."""
    server = socket.create_server(("127.0.0.1", 0))

    def answer(line: socket.socket) -> None:
        with line:
            got = list(iter(lambda: line.recv(1 << 16), b""))
            for data in got:
                line.sendall(data.upper())

    def serve() -> None:
        while True:
            try:
                line, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(line,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    port: int = server.getsockname()[1]
    return port


def test_bytes_go_both_ways_on_many_connections(container: Container, echo: int) -> None:
    with Forward(container, {7000: echo}):
        running = [container.start(["/usr/bin/python3", "-c", ECHO, "7000", str(size)]) for size in (SIZE, 1, 1000)]
        for process, size in zip(running, (SIZE, 1, 1000), strict=True):
            assert process.wait().text == hashlib.sha256(b"A" * size).hexdigest()


def test_without_it_the_port_refuses(container: Container, echo: int) -> None:
    refused = container.run(["/usr/bin/python3", "-c", ECHO, "7000", "1"], check=False)
    assert "ConnectionRefusedError" in refused.stderr
