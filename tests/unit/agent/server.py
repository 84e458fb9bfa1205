# SPDX-License-Identifier: Apache-2.0
"""A TLS server of a few lines, for tests: each connection is given to a function, in a thread."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from scaleoutd.devcombiner.ca import CertifiedKey

Serve = Callable[[socket.socket], None]


def read_all(connection: socket.socket) -> None:
    """Reads until the end."""
    while connection.recv(65536):
        pass


@contextmanager
def refusing_port() -> Iterator[int]:
    """A port where nobody listens, and nobody else can meanwhile: it is bound, and a connection to it is refused."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


class TlsServer:
    """`context` None serves plaintext.  `errors` holds what went wrong in its threads."""

    def __init__(self, context: ssl.SSLContext | None, serve: Serve = read_all) -> None:
        self._context, self._serve = context, serve
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.errors: list[str] = []
        self.accepted = 0
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join(60)
        for thread in self._threads:
            thread.join(60)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            thread = threading.Thread(target=self._handle, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _handle(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(60)
            try:
                if self._context is None:
                    self._serve(connection)
                else:
                    with self._context.wrap_socket(connection, server_side=True) as secured:
                        self._serve(secured)
            except (OSError, ValueError) as exc:
                self.errors.append(str(exc))


def server_context(
    key: CertifiedKey,
    client_ca: Path | None = None,
    *,
    alpn: str | None = None,
    maximum: ssl.TLSVersion | None = None,
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(key.certificate, key.key)
    if maximum is not None:
        context.maximum_version = maximum
    if alpn:
        context.set_alpn_protocols([alpn])
    if client_ca is not None:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context
