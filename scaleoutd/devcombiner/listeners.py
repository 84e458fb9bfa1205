# SPDX-License-Identifier: Apache-2.0
"""The two listening sockets and their TLS: which certificate is shown, whether one is demanded.

Rules: loopback only; the gRPC listener can be stopped and started again on its port while everything on the board stays.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import grpc

from scaleoutd.devcombiner.ca import LOOPBACK_HOSTS, CertificateAuthority, CertifiedKey
from scaleoutd.errors import TransportError

LOOPBACK = "127.0.0.1"
ServerCertificate = Literal["good", "expired", "wrong-host", "other-ca"]
ClientCertificate = Literal["required", "none"]

# A stream holds its thread for as long as its client stays, so there is room for about a hundred of them.
GRPC_THREADS = 128
BIND_ATTEMPTS = 50
BIND_PAUSE_S = 0.1

GRPC_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.max_send_message_length", 64 * 1024 * 1024),
    # The official client pings every 5 s also when idle; gRPC's default is to call that abuse and to hang up.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 1000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
    ("grpc.http2.max_ping_strikes", 0),
)


def keep(port: int) -> socket.socket:
    """Holds `port` while its server is away: bound and not listening, so that connections are refused and no other process of the
    host is given it.  A server with SO_REUSEADDR can take it over (socket(7)): close this one when that has happened."""
    kept = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for _ in range(BIND_ATTEMPTS):
        try:
            kept.bind((LOOPBACK, port))
        except OSError:  # a server that just stopped listens a moment longer
            threading.Event().wait(BIND_PAUSE_S)
            continue
        return kept
    kept.close()
    raise TransportError(f"cannot keep {LOOPBACK}:{port}: the port stays in use", hint="Choose another port.")


Handlers = Callable[[threading.Event], list[Any]]


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """How one listener presents itself."""

    certificate: ServerCertificate = "good"
    plaintext: bool = False
    client_certificate: ClientCertificate = "required"


def server_key(
    options: TlsOptions, ca: CertificateAuthority, other_ca: CertificateAuthority, hostname: str = "localhost"
) -> CertifiedKey:
    """A fresh certificate of the kind that `options` names; a good one is for `hostname` and for loopback."""
    if options.certificate == "expired":
        return ca.issue_server("expired server", expired=True)
    if options.certificate == "wrong-host":
        return ca.issue_server("wrong host", ("combiner.invalid",))
    if options.certificate == "other-ca":
        return other_ca.issue_server("other server")
    return ca.issue_server("demo combiner", dict.fromkeys((hostname, *LOOPBACK_HOSTS)))


def rest_context(options: TlsOptions, key: CertifiedKey, ca: CertificateAuthority) -> ssl.SSLContext | None:
    """None for plain HTTP."""
    if options.plaintext:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(key.certificate, key.key)
    if options.client_certificate == "required":
        context.load_verify_locations(ca.ca_file)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class GrpcListener:
    """A gRPC server that may go and come back.  `port` is fixed by the first start."""

    def __init__(self, handlers: Handlers, options: TlsOptions, key: CertifiedKey, ca: CertificateAuthority) -> None:
        self._handlers = handlers
        self._options = options
        self._key = key
        self._ca = ca
        self._lock = threading.Lock()
        self._running: tuple[grpc.Server, ThreadPoolExecutor, threading.Event] | None = None
        self._closed = False
        self._kept: socket.socket | None = None
        self.port = 0

    def start(self, port: int = 0) -> None:
        """Listens on `port` (0 = a free one, or the one it had)."""
        with self._lock:
            if self._running is None and not self._closed:
                self._start(port or self.port)

    def stop(self) -> None:
        """Cuts every connection at once and waits until nothing of the server is left."""
        with self._lock:
            if self._running is None:
                return
            server, threads, closing = self._running
            self._running = None
            closing.set()
            server.stop(None).wait()
            threads.shutdown(wait=True)
            if not self._closed:
                self._kept = keep(self.port)

    def close(self) -> None:
        """As `stop`, for good: a restart under way does not bring it back."""
        self._closed = True
        self.stop()
        self._give_up_port()

    def restart(self, down_s: float = 0.0) -> None:
        """Gone for `down_s`, then back on the same port."""
        self.stop()
        threading.Event().wait(down_s)
        self.start()

    def _start(self, port: int) -> None:
        for _ in range(BIND_ATTEMPTS):
            threads, closing = ThreadPoolExecutor(GRPC_THREADS, "devcombiner-grpc"), threading.Event()
            server = grpc.server(threads, options=GRPC_OPTIONS)
            server.add_generic_rpc_handlers(self._handlers(closing))
            try:
                self.port = self._bind(server, port)
            except RuntimeError:  # the port of a server that just stopped is free a moment later
                threads.shutdown()
                closing.wait(BIND_PAUSE_S)
                continue
            server.start()
            self._give_up_port()
            self._running = (server, threads, closing)
            return
        raise TransportError(f"cannot listen on {LOOPBACK}:{port}: the port stays in use", hint="Choose another port.")

    def _give_up_port(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def _bind(self, server: grpc.Server, port: int) -> int:
        address = f"{LOOPBACK}:{port}"
        if self._options.plaintext:
            return server.add_insecure_port(address)
        required = self._options.client_certificate == "required"
        credentials = grpc.ssl_server_credentials(
            [(self._key.key.read_bytes(), self._key.certificate.read_bytes())],
            root_certificates=self._ca.ca_file.read_bytes() if required else None,
            require_client_auth=required,
        )
        return server.add_secure_port(address, credentials)
