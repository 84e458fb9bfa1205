# SPDX-License-Identifier: Apache-2.0
"""gRPC without TLS of its own: HTTP/2 over a Unix socket of this process, and a pump that puts it into our TLS.

Rules (design-review F14):
  1. One thread for each connection, an SSLObject over memory BIOs and poll(2).  OpenSSL forbids one SSL object in two
     threads, and CPython has deadlocked there (#137583).
  2. The socket lies in a fresh folder of mode 0700, and the peer's SO_PEERCRED pid is our own: another process of this
     user must not borrow the authenticated session.  One dial to the server for each connection accepted.
  3. Buffers are bounded (256 KiB each way), which bounds gRPC as well.
  4. A dial that fails leaves its error in `last_error` before gRPC sees its socket close, so whoever asks why a call is
     UNAVAILABLE finds it.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import ssl
import struct
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from scaleoutd.agent import tls as tls_
from scaleoutd.agent.tls import PeerFacts, Tls
from scaleoutd.errors import ScaleoutError, TransportError

BUFFER_BYTES = 256 * 1024
CLOSE_S = 1.0
_READABLE = select.POLLIN | select.POLLHUP | select.POLLERR


class Pump:
    """Listens at `target` (for grpc.insecure_channel) and carries each connection to `host`:`port` in TLS.

    `on_connected(facts)` is called after a handshake and the server's first bytes, from the pump's thread.
    """

    def __init__(self, tls: Tls, host: str, port: int, on_connected: Callable[[PeerFacts], None] | None = None) -> None:
        self.host, self.port = host, port
        self.last_error: ScaleoutError | None = None
        self.connections = 0
        self._tls = tls
        self._on_connected = on_connected
        self._folder = Path(tempfile.mkdtemp(prefix="scaleoutd-"))  # mode 0700 by definition
        self._path = self._folder / "h2"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self._path))
        self._listener.listen(4)
        self._wake_read, self._wake_write = os.pipe()
        self._closing = threading.Event()
        self._threads: set[threading.Thread] = set()
        self._acceptor = threading.Thread(target=self._accept, name="pump-accept", daemon=True)
        self._acceptor.start()

    @property
    def target(self) -> str:
        return f"unix:{self._path}"

    def close(self) -> None:
        """Ends every connection and removes the socket."""
        self._closing.set()
        os.write(self._wake_write, b"x")  # stays readable: every thread polls the read end
        self._acceptor.join()
        for thread in list(self._threads):
            thread.join(CLOSE_S)
        self._listener.close()
        if not self._threads:  # one that is still dialling needs its descriptor, and ends by its own time-out
            os.close(self._wake_read)
            os.close(self._wake_write)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _accept(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while True:
            poll.poll()
            if self._closing.is_set():
                return
            local, _ = self._listener.accept()
            if not _is_own(local):
                local.close()
                continue
            thread = threading.Thread(target=self._carry, args=(local,), name="pump", daemon=True)
            self._threads.add(thread)
            thread.start()

    def _carry(self, local: socket.socket) -> None:
        """One connection, from dial to end."""
        try:
            with tls_.connect_tcp(self.host, self.port, tls_.HANDSHAKE_TIMEOUT_S) as remote:
                flow = _Flow(self._tls, local, remote, self.host, self.port)
                flow.shake_hands()
                flow.run(self._wake_read, self._connected)
        except ScaleoutError as exc:
            self.last_error = exc
        except OSError as exc:
            self.last_error = TransportError(f"cannot talk to {self.host}:{self.port}: {exc.strerror or exc}")
        finally:
            local.close()  # last: see rule 4
            self._threads.discard(threading.current_thread())

    def _connected(self, facts: PeerFacts) -> None:
        self.connections += 1
        self.last_error = None
        if self._on_connected:
            self._on_connected(facts)


class _Flow:
    """The two sockets of one connection and what waits between them."""

    def __init__(self, tls: Tls, local: socket.socket, remote: socket.socket, host: str, port: int) -> None:
        self._local, self._remote = local, remote
        self._where = f"{host}:{port}"
        self._host, self._port = host, port
        self._has_certificate = tls.has_certificate
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = tls.context("h2").wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._to_remote = memoryview(b"")
        self._to_local = memoryview(b"")
        self._heard = False
        self._ended = False
        self._end_cause: ssl.SSLError | None = None

    def shake_hands(self) -> None:
        """Blocking, with the time-out of the socket; ALPN must settle on h2."""
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._shake_once()
            except ssl.SSLError as exc:
                self._flush_alert()
                raise tls_.handshake_error(exc, self._host, self._port) from exc
        try:
            self._remote.sendall(self._outgoing.read())
        except OSError as exc:
            raise tls_.handshake_error(exc, self._host, self._port) from exc
        if self._tls.selected_alpn_protocol() != "h2":
            raise TransportError(f"cannot use {self._where}: it does not speak HTTP/2", code="tls-failed")

    def _shake_once(self) -> None:
        try:
            self._remote.sendall(self._outgoing.read())
            data = self._remote.recv(BUFFER_BYTES)
        except OSError as exc:
            raise tls_.handshake_error(exc, self._host, self._port) from exc
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def _flush_alert(self) -> None:
        try:
            self._remote.sendall(self._outgoing.read())
        except OSError:
            pass  # the alert is a courtesy to a peer that may be gone

    def run(self, wake: int, on_connected: Callable[[PeerFacts], None]) -> None:
        """Carries bytes until an end closes or `wake` becomes readable."""
        facts: PeerFacts | None = tls_.peer_facts(self._tls, self._host, self._port, self._has_certificate)
        self._local.setblocking(False)
        self._remote.setblocking(False)
        self._take_plain()
        while True:
            if self._heard and facts is not None:
                on_connected(facts)
                facts = None
            if self._ended and not self._to_local:
                break
            ready = self._poll(wake)
            if ready is None or not self._step(*ready):
                break
        if not self._heard and self._ended:
            raise tls_.early_end_error(self._end_cause, self._where, self._has_certificate)

    def _poll(self, wake: int) -> tuple[int, int] | None:
        """Events of (local, remote); None when the pump closes.  A full buffer is not read into: that is the back-pressure."""
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        local = (0 if self._to_remote or self._ended else select.POLLIN) | (select.POLLOUT if self._to_local else 0)
        remote = (0 if self._to_local or self._ended else select.POLLIN) | (select.POLLOUT if self._to_remote else 0)
        # A socket with nothing to wait for would still report a hang-up, again and again.
        if local:
            poll.register(self._local, local)
        if remote:
            poll.register(self._remote, remote)
        events = dict(poll.poll())
        if wake in events:
            return None
        return events.get(self._local.fileno(), 0), events.get(self._remote.fileno(), 0)

    def _step(self, local: int, remote: int) -> bool:
        """Moves what can move; False when the local end is closed or the server takes nothing more."""
        if remote & _READABLE and not self._to_local and not self._ended:
            self._take_cipher()
        if local & _READABLE and not self._to_remote and not self._ended and not self._take_local():
            return False
        if self._to_local:
            try:
                self._to_local = self._to_local[self._local.send(self._to_local) :]
            except BlockingIOError:
                pass
            except OSError:
                return False
            if not self._to_local and not self._ended:
                self._take_plain()
        if self._to_remote:
            self._send_cipher()
        return True

    def _take_cipher(self) -> None:
        try:
            count = self._remote.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if count:
            self._incoming.write(self._buffer[:count])
        else:
            self._incoming.write_eof()
        self._take_plain()

    def _take_plain(self) -> None:
        """Decrypts up to one buffer; what TLS itself wants to say (key update, alert) goes out."""
        filled = 0
        try:
            while filled < BUFFER_BYTES:
                count = self._tls.read(BUFFER_BYTES - filled, self._buffer[filled:])
                if not count:
                    self._ended = True
                    break
                filled += int(count)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as exc:
            self._ended = True
            self._end_cause = exc
        if filled:
            self._heard = True
            self._to_local = memoryview(bytes(self._buffer[:filled]))
        if not self._to_remote:
            self._to_remote = memoryview(self._outgoing.read())

    def _take_local(self) -> bool:
        try:
            count = self._local.recv_into(self._buffer)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not count:
            return False
        data = self._buffer[:count]
        try:
            while data:
                data = data[self._tls.write(data) :]
        except ssl.SSLError as exc:
            self._ended, self._end_cause = True, exc
        self._to_remote = memoryview(self._outgoing.read())
        return True

    def _send_cipher(self) -> None:
        try:
            self._to_remote = self._to_remote[self._remote.send(self._to_remote) :]
        except BlockingIOError:
            return
        except OSError:
            # The server closed while we wrote.  What it said before that (an alert) is still to be read.
            self._to_remote = memoryview(b"")
            if not self._heard:
                self._hear_last_words()

    def _hear_last_words(self) -> None:
        self._remote.setblocking(True)
        self._remote.settimeout(1.0)
        while not self._ended:
            self._take_cipher()


def _is_own(local: socket.socket) -> bool:
    pid, uid, _ = struct.unpack("3i", local.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return bool(pid == os.getpid() and uid == os.geteuid())
