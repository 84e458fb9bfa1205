# SPDX-License-Identifier: Apache-2.0
"""The combiner's REST side: enrollment, token refresh, assignment.

    POST /api/v1/clients/enroll   Bearer enrollment token       -> client_id, access_token, refresh_token
    POST /api/v1/clients/token    refresh token of a client     -> access_token, refresh_token, expires_in
    POST /api/auth/refresh        refresh token of a user       -> access, refresh, expires_in
    POST /api/v1/clients/add      Bearer access token           -> client_id, public_hostname, port, grpc_secure, ...

Rules: 401 for a token that is not good (never saying why to the client), 400 for a body that is not JSON, 203 for a
remote package, 404 for the rest.  TLS 1.2 or newer; the handshake happens in the request's own thread with a time limit,
so that a peer that never speaks holds up nobody.
Source: PROTOCOL.md section 1, points 1 and 2.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import threading
import time
import uuid
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography import x509

from scaleoutd import __version__
from scaleoutd.core import strictjson
from scaleoutd.devcombiner.board import Board
from scaleoutd.devcombiner.ca import fingerprint_of
from scaleoutd.devcombiner.faults import Faults
from scaleoutd.devcombiner.records import RestCall
from scaleoutd.devcombiner.tokens import ACCESS, CLIENT_REFRESH, ENROLLMENT, USER_REFRESH, TokenOffice
from scaleoutd.errors import CredentialError, FormatError

MAX_BODY_BYTES = 64 * 1024
MAX_DRAIN_BYTES = 1024 * 1024
SOCKET_TIMEOUT_S = 10.0
CLIENT_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Assignment:
    """Where /clients/add sends a client."""

    hostname: str
    grpc_port: int


class RestApi:
    """The answers, without HTTP: path, bearer token and body in; status and JSON out."""

    def __init__(self, board: Board, office: TokenOffice, faults: Faults, assignment: Assignment) -> None:
        self.board = board
        self.faults = faults
        self._office = office
        self._assignment = assignment

    def answer(self, path: str, bearer: str, body: bytes) -> tuple[int, Json, str, str]:
        """(status, JSON, role of the token, client id) for one POST."""
        routes = {
            "/api/v1/clients/enroll": self._enroll,
            "/api/v1/clients/token": self._client_token,
            "/api/auth/refresh": self._user_token,
            "/api/v1/clients/add": self._add,
        }
        if path not in routes:
            return 404, {"message": "Not found"}, "", ""
        try:
            return routes[path](bearer, _object(body))
        except CredentialError:
            return 401, {"message": "Unauthorized"}, "", ""
        except FormatError as exc:
            return 400, {"message": exc.message}, "", ""

    def _enroll(self, bearer: str, body: Json) -> tuple[int, Json, str, str]:
        self._office.verify(bearer, (ENROLLMENT,), time.time())
        client_id = _client_id(body) or str(uuid.uuid4())
        access = self._office.mint(ACCESS, client_id, time.time())
        refresh = self._office.mint(CLIENT_REFRESH, client_id, time.time())
        answer = {"client_id": client_id, "access_token": access, "refresh_token": refresh}
        return 200, answer, ENROLLMENT, client_id

    def _client_token(self, bearer: str, body: Json) -> tuple[int, Json, str, str]:
        access, refresh, client_id = self._refreshed(body, CLIENT_REFRESH)
        answer: Json = {"access_token": access, "expires_in": self._office.access_lifetime_s}
        return 200, answer | ({"refresh_token": refresh} if refresh else {}), CLIENT_REFRESH, client_id

    def _user_token(self, bearer: str, body: Json) -> tuple[int, Json, str, str]:
        access, refresh, client_id = self._refreshed(body, USER_REFRESH)
        answer: Json = {"access": access, "expires_in": self._office.access_lifetime_s}
        return 200, answer | ({"refresh": refresh} if refresh else {}), USER_REFRESH, client_id

    def _refreshed(self, body: Json, role: str) -> tuple[str, str | None, str]:
        token = body.get("refresh_token")
        if not isinstance(token, str):
            raise FormatError("cannot refresh: refresh_token is missing", code="record-invalid")
        access, refresh = self._office.redeem(token, (role,), time.time())
        return access, refresh, self._office.verify(access, (ACCESS,), time.time()).client_id

    def _add(self, bearer: str, body: Json) -> tuple[int, Json, str, str]:
        claims = self._office.verify(bearer, (ACCESS,), time.time())
        client_id = claims.client_id or _client_id(body) or str(uuid.uuid4())
        if not isinstance(body.get("name"), str) or not body["name"]:
            raise FormatError("cannot add the client: name is missing", code="record-invalid")
        if body.get("package", "local") != "local":
            return 203, {"message": "Compute package missing"}, claims.role, client_id
        answer: Json = {
            "client_id": client_id,
            "public_hostname": self._assignment.hostname,
            "port": self._assignment.grpc_port,
            "helper_type": "numpyhelper",
            "package": "local",
            "server_version": __version__,
        }
        if self.faults.grpc_secure is not None:
            answer["grpc_secure"] = self.faults.grpc_secure
        return 200, answer, claims.role, client_id


class RestServer(ThreadingHTTPServer):
    """RestApi behind HTTP/1.1 on a loopback address; `context` None means plain HTTP, for tests that must be refused."""

    daemon_threads = True
    block_on_close = True

    def __init__(self, address: tuple[str, int], api: RestApi, context: ssl.SSLContext | None) -> None:
        super().__init__(address, _Handler)
        self.api = api
        self._context = context
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), name="devcombiner-rest", daemon=True)

    def start(self) -> None:
        """Serves until `stop`."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the listener and waits for it."""
        self.shutdown()
        self._thread.join()
        self.server_close()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Runs in the request's thread: the handshake, then HTTP."""
        raw: socket.socket = request
        raw.settimeout(SOCKET_TIMEOUT_S)
        if self._context is None:
            super().finish_request(raw, client_address)
            return
        try:
            secured = self._context.wrap_socket(raw, server_side=True)
        except OSError as exc:  # ssl.SSLError is one
            self.api.board.append(self.api.board.tls_failures, str(exc))
            return
        with secured:
            try:
                super().finish_request(secured, client_address)
            except OSError as exc:
                # TLS 1.3: a client certificate that was refused shows here, after the client's side has finished.
                self.api.board.append(self.api.board.tls_failures, str(exc))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: RestServer

    def do_POST(self) -> None:
        """One request: the fault that is due, else the answer."""
        api, path = self.server.api, self.path.partition("?")[0]
        body = self._body()
        if body is None:
            self._send(413, {"message": "Body missing or too large"}, "")
            return
        due = api.faults.next_rest(path)
        if due is not None:
            status, answer, role, client_id = due.status, {"message": "fault"}, "", ""
        else:
            status, answer, role, client_id = api.answer(path, self._bearer(), body)
        api.board.append(api.board.rest_calls, RestCall(path, status, self._fingerprint(), role, client_id))
        self._send(status, answer, due.location if due else "")

    def do_GET(self) -> None:
        """Nothing to get here."""
        self._send(404, {"message": "Not found"}, "")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        """Silent: what was called is on the board."""

    def _body(self) -> bytes | None:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            self.close_connection = True
            # A socket closed over unread bytes sends a reset, which may overtake the answer: so some of them are read.
            self.rfile.read(min(int(length), MAX_DRAIN_BYTES) if length.isdigit() else 0)
            return None
        return self.rfile.read(int(length))

    def _bearer(self) -> str:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        return token if scheme == "Bearer" else ""

    def _fingerprint(self) -> str:
        if not isinstance(self.connection, ssl.SSLSocket):
            return ""
        der = self.connection.getpeercert(binary_form=True)
        return fingerprint_of(x509.load_der_x509_certificate(der)) if der else ""

    def _send(self, status: int, answer: Json, location: str) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if location:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(data)


def _object(body: bytes) -> Json:
    value = strictjson.parse(body, max_bytes=MAX_BODY_BYTES, allow_floats=True, what="the request")
    if not isinstance(value, dict):
        raise FormatError("cannot read the request: a JSON object is expected", code="json-invalid")
    return value


def _client_id(body: Json) -> str:
    client_id = body.get("client_id") or ""
    if client_id and (not isinstance(client_id, str) or CLIENT_ID.fullmatch(client_id) is None):
        raise FormatError("cannot use this client_id", code="record-invalid")
    return str(client_id)
