# SPDX-License-Identifier: Apache-2.0
"""REST answers of every kind, over real TLS."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scaleoutd.agent.api import CLIENT_TOKEN, USER_TOKEN, Api, Origin, Tokens, parse_origin
from scaleoutd.agent.tls import Tls, TlsFiles
from scaleoutd.devcombiner.ca import CertificateAuthority
from scaleoutd.errors import ConfigError, CredentialError, ScaleoutError, TransportError
from tests.unit.agent.server import TlsServer, server_context


class Answering:
    """An HTTPS server that says one thing and remembers what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.ca = CertificateAuthority(folder / "ca")
        self.answer = b""
        self.requests: list[bytes] = []
        client = self.ca.issue_client("c")
        self.tls = Tls(TlsFiles(self.ca.ca_file, client.certificate, client.key))
        self.server = TlsServer(server_context(self.ca.issue_server("server"), self.ca.ca_file), self._serve)

    def _serve(self, connection: socket.socket) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            data += connection.recv(65536)
        head, _, body = data.partition(b"\r\n\r\n")
        length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
        while len(body) < length:
            body += connection.recv(65536)
        self.requests.append(head + b"\r\n\r\n" + body)
        connection.sendall(self.answer)

    def says(self, status: int, body: object, *, raw: bytes | None = None, headers: str = "") -> Api:
        data = raw if raw is not None else json.dumps(body).encode()
        head = f"HTTP/1.1 {status} Text\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n{headers}\r\n"
        self.answer = head.encode() + data
        return Api(Origin("localhost", self.server.port, ""), self.tls, 60.0)


@pytest.fixture
def answering(tmp_path: Path) -> Iterator[Answering]:
    made = Answering(tmp_path)
    with made.server:
        yield made


def test_enrollment(answering: Answering) -> None:
    api = answering.says(200, {"client_id": "c1", "access_token": "a", "refresh_token": "r", "more": [1.5]})
    assert api.enroll("secret", "", "ward") == Tokens("a", "r", "c1")
    request = answering.requests[0]
    assert request.startswith(b"POST /api/v1/clients/enroll HTTP/1.1\r\n")
    assert b"Authorization: Bearer secret\r\n" in request
    assert json.loads(request.rpartition(b"\r\n")[2]) == {"name": "ward"}


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        (CLIENT_TOKEN, {"access_token": "a", "refresh_token": "r", "expires_in": 60}),
        (USER_TOKEN, {"access": "a", "refresh": "r", "expires_in": 60.0}),
    ],
)
def test_refresh_has_two_addresses_and_two_spellings(answering: Answering, path: str, answer: dict[str, object]) -> None:
    assert answering.says(200, answer).refresh(path, "old") == Tokens("a", "r", "", 60)
    request = answering.requests[0]
    assert b"Authorization" not in request
    assert json.loads(request.rpartition(b"\r\n")[2]) == {"refresh_token": "old", "role": "client"}


def assign(api: Api) -> object:
    return api.assign("access", client_id="c1", name="ward", combiner="", client_version="1.1.0")


def test_assignment_prefers_the_public_host_name_and_the_api_chooses_the_id(answering: Answering) -> None:
    answer = {"client_id": "c2", "public_hostname": "pub", "internal_hostname": "int", "port": 12080, "grpc_secure": True}
    assert assign(answering.says(200, answer)).__dict__ == {"client_id": "c2", "host": "pub", "port": 12080}
    del answer["public_hostname"], answer["client_id"]
    assert assign(answering.says(200, answer)).__dict__ == {"client_id": "c1", "host": "int", "port": 12080}


@pytest.mark.parametrize(
    ("status", "cls", "code"),
    [
        (203, TransportError, "transport-refused"),
        (400, CredentialError, "assignment-refused"),
        (401, CredentialError, "token-refused"),
        (404, CredentialError, "assignment-refused"),
        (406, CredentialError, "assignment-refused"),
        (429, TransportError, "transport-failed"),
        (500, TransportError, "transport-failed"),
        (503, TransportError, "transport-failed"),
        (302, TransportError, "transport-refused"),
    ],
)
def test_what_the_statuses_of_an_assignment_mean(answering: Answering, status: int, cls: type, code: str) -> None:
    with pytest.raises(ScaleoutError) as caught:
        assign(answering.says(status, {"message": "no"}))
    assert (type(caught.value), caught.value.code) == (cls, code)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(answering: Answering, tmp_path: Path, status: int) -> None:
    target = Answering(tmp_path / "elsewhere")
    with target.server:
        location = f"Location: https://localhost:{target.server.port}/api/v1/clients/token\r\n"
        with pytest.raises(TransportError) as caught:
            answering.says(status, {}, headers=location).refresh(CLIENT_TOKEN, "secret")
        assert caught.value.code == "transport-refused"
        assert target.server.accepted == 0


@pytest.mark.parametrize(
    "raw",
    [b"", b"null", b"[]", b'{"access_token": 1}', b'{"access_token": "a", "access_token": "b"}', b"<html>",
     b'{"x": "' + b"y" * 70_000 + b'"}'],
)  # fmt: skip
def test_answers_that_are_none(answering: Answering, raw: bytes) -> None:
    with pytest.raises(TransportError) as caught:
        answering.says(200, None, raw=raw).refresh(CLIENT_TOKEN, "r")
    assert caught.value.code == "transport-refused"


@pytest.mark.parametrize(
    "answer",
    [{"public_hostname": "h"}, {"public_hostname": "h", "port": True}, {"public_hostname": "h", "port": 0}, {"port": 1}],
)
def test_assignments_that_lead_nowhere(answering: Answering, answer: dict[str, object]) -> None:
    with pytest.raises(TransportError):
        assign(answering.says(200, answer))


def test_plaintext_to_the_combiner_is_refused(answering: Answering) -> None:
    with pytest.raises(TransportError) as caught:
        assign(answering.says(200, {"public_hostname": "h", "port": 1, "grpc_secure": False}))
    assert caught.value.code == "tls-required"


def test_no_client_certificate(answering: Answering) -> None:
    tls = Tls(TlsFiles(answering.ca.ca_file, None, None, certificate_required=False))
    with pytest.raises(CredentialError) as caught:
        Api(Origin("localhost", answering.server.port, ""), tls, 60.0).refresh(CLIENT_TOKEN, "r")
    assert caught.value.code == "client-certificate-refused"
    assert not answering.requests


def test_a_server_that_never_answers_has_a_limit(answering: Answering) -> None:
    api = answering.says(200, {})
    answering.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"
    with pytest.raises(TransportError):
        api.refresh(CLIENT_TOKEN, "r")


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://a.example", Origin("a.example", 443, "")),
        ("a.example:8443/pre/", Origin("a.example", 8443, "/pre")),
        ("https://[::1]:1/", Origin("::1", 1, "")),
    ],
)
def test_addresses(url: str, origin: Origin) -> None:
    assert parse_origin(url) == origin


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://a.example", "tls-required"),
        ("ftp://a", "config-invalid"),
        ("https://", "config-invalid"),
        ("https://u:p@a", "config-invalid"),
        ("https://a:99999", "config-invalid"),
        ("https://a/?x=1", "config-invalid"),
    ],
)
def test_addresses_that_cannot_be_used(url: str, code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_origin(url)
    assert caught.value.code == code


def test_tokens_do_not_show_in_a_repr() -> None:
    shows: Callable[[object], str] = repr
    assert "secret" not in shows(Tokens("secret", "secret", "c1"))
