# SPDX-License-Identifier: Apache-2.0
"""The pump between gRPC and TLS: bytes arrive whole, nobody else may use it, failures have their cause."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from scaleoutd.agent.pump import Pump
from scaleoutd.agent.tls import PeerFacts, Tls, TlsFiles
from scaleoutd.devcombiner.ca import CertificateAuthority
from tests.unit.agent.server import TlsServer, refusing_port, server_context


class Pki:
    def __init__(self, folder: Path) -> None:
        self.ca = CertificateAuthority(folder / "ca")
        self.server = self.ca.issue_server("server")
        self.client = self.ca.issue_client("ward-7")
        self.tls = Tls(TlsFiles(self.ca.ca_file, self.client.certificate, self.client.key))


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path)


@pytest.fixture
def echo(pki: Pki) -> Iterator[TlsServer]:
    with TlsServer(server_context(pki.server, pki.ca.ca_file, alpn="h2"), send_back) as server:
        yield server


def send_back(connection: socket.socket) -> None:
    while data := connection.recv(65536):
        connection.sendall(data)


def connect(pump: Pump) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(60)
    sock.connect(pump.target.removeprefix("unix:"))
    return sock


def read_exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = sock.recv(1 << 20)
        assert part, f"ended after {len(data)} of {size} bytes"
        data += part
    return bytes(data)


def test_sixteen_mebibytes_go_there_and_back(pki: Pki, echo: TlsServer) -> None:
    connected: list[PeerFacts] = []
    pump = Pump(pki.tls, "localhost", echo.port, connected.append)
    try:
        data = os.urandom(16 * 1024 * 1024)
        with connect(pump) as sock:
            sender = threading.Thread(target=sock.sendall, args=(data,))
            sender.start()
            back = read_exactly(sock, len(data))
            sender.join()
        assert hashlib.sha256(back).digest() == hashlib.sha256(data).digest()
        assert [facts.tls_version for facts in connected] == ["TLSv1.3"]
        assert pump.connections == 1
        assert pump.last_error is None
    finally:
        pump.close()
    assert not Path(pump.target.removeprefix("unix:")).parent.exists()


def test_several_connections_each_have_a_dial_of_their_own(pki: Pki, echo: TlsServer) -> None:
    pump = Pump(pki.tls, "localhost", echo.port)
    try:
        socks = [connect(pump) for _ in range(5)]
        for number, sock in enumerate(socks):
            sock.sendall(bytes([number]) * 10_000)
        for number, sock in enumerate(socks):
            assert read_exactly(sock, 10_000) == bytes([number]) * 10_000
            sock.close()
        assert echo.accepted == 5
    finally:
        pump.close()


def test_a_slow_reader_stops_the_server_and_not_the_memory(pki: Pki) -> None:
    sent: list[int] = []

    def flood(connection: socket.socket) -> None:
        connection.settimeout(1)
        try:
            while sum(sent) < 256 * 1024 * 1024:
                sent.append(connection.send(bytes(65536)))
        except TimeoutError:
            pass

    with TlsServer(server_context(pki.server, alpn="h2"), flood) as server:
        pump = Pump(pki.tls, "localhost", server.port)
        try:
            with connect(pump) as sock:
                sock.recv(1)
                for thread in server._threads:
                    thread.join(60)
                    assert not thread.is_alive()
                assert sum(sent) < 32 * 1024 * 1024
        finally:
            pump.close()


def test_another_process_of_the_same_user_is_turned_away(pki: Pki, echo: TlsServer) -> None:
    pump = Pump(pki.tls, "localhost", echo.port)
    try:
        path = pump.target.removeprefix("unix:")
        script = (
            "import socket, sys; s = socket.socket(socket.AF_UNIX); s.settimeout(60); s.connect(sys.argv[1])\n"
            "try:\n    s.sendall(b'x'); print(repr(s.recv(1)))\nexcept OSError as exc:\n    print(type(exc).__name__)"
        )
        result = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, timeout=120)
        assert result.stdout.strip() in ("b''", "BrokenPipeError", "ConnectionResetError")
        assert echo.accepted == 0
        with connect(pump) as control:
            control.sendall(b"x")
            assert control.recv(1) == b"x"
        assert Path(path).parent.stat().st_mode & 0o777 == 0o700
    finally:
        pump.close()


def ended(pump: Pump) -> str:
    """The code that is there when gRPC sees its end closed."""
    with connect(pump) as sock:
        try:
            sock.sendall(b"PRI * HTTP/2.0")
            assert sock.recv(1) == b""
        except (BrokenPipeError, ConnectionResetError):
            pass
        return pump.last_error.code if pump.last_error else ""


@pytest.mark.parametrize("case", ["refused port", "other CA", "no certificate", "wrong ALPN", "silent end"])
def test_the_cause_is_there_before_the_end(pki: Pki, tmp_path: Path, case: str) -> None:
    other = CertificateAuthority(tmp_path / "other", "another CA")
    bare = Tls(TlsFiles(pki.ca.ca_file, None, None, certificate_required=False))
    context, tls, code = {
        "refused port": (None, pki.tls, "transport-failed"),
        "other CA": (server_context(other.issue_server("x"), alpn="h2"), pki.tls, "tls-server-untrusted"),
        "no certificate": (server_context(pki.server, pki.ca.ca_file, alpn="h2"), bare, "client-certificate-refused"),
        "wrong ALPN": (server_context(pki.server, alpn="http/1.1"), pki.tls, "tls-failed"),
        "silent end": (server_context(pki.server, alpn="h2"), pki.tls, "client-certificate-refused"),
    }[case]
    with TlsServer(context, lambda connection: None) as server, refusing_port() as closed:
        pump = Pump(tls, "localhost", closed if case == "refused port" else server.port)
        try:
            assert ended(pump) == code
        finally:
            pump.close()


def test_close_ends_open_connections(pki: Pki, echo: TlsServer) -> None:
    pump = Pump(pki.tls, "localhost", echo.port)
    sock = connect(pump)
    sock.sendall(b"x")
    assert sock.recv(1) == b"x"
    pump.close()
    assert sock.recv(1) == b""
    sock.close()
