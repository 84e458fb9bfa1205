# SPDX-License-Identifier: Apache-2.0
"""TLS against real servers: each failure has its code, and a control connects."""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from scaleoutd.agent.tls import Tls, TlsFiles, early_end_error, peer_facts
from scaleoutd.devcombiner.ca import CertificateAuthority, CertifiedKey
from scaleoutd.errors import ConfigError, CredentialError, ScaleoutError
from tests.unit.agent.server import TlsServer, refusing_port, server_context


class Pki:
    def __init__(self, folder: Path) -> None:
        self.ca = CertificateAuthority(folder / "ca")
        self.other = CertificateAuthority(folder / "other", "another CA")
        self.server = self.ca.issue_server("server")
        self.client = self.ca.issue_client("ward-7")

    def files(self, client: CertifiedKey | None = None, ca: Path | None = None) -> TlsFiles:
        client = client or self.client
        return TlsFiles(ca or self.ca.ca_file, client.certificate, client.key)


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path)


def dial(tls: Tls, port: int, host: str = "localhost") -> ssl.SSLSocket:
    return tls.dial(host, port, "http/1.1", 60.0)


def refusal(tls: Tls, port: int, host: str = "localhost") -> ScaleoutError:
    with pytest.raises(ScaleoutError) as caught:
        dial(tls, port, host).close()
    return caught.value


def hello(connection: socket.socket) -> None:
    connection.sendall(b"hello")


def test_control_a_good_server_with_mutual_authentication(pki: Pki) -> None:
    context = server_context(pki.server, pki.ca.ca_file, alpn="http/1.1")
    with TlsServer(context, hello) as server, dial(Tls(pki.files()), server.port) as connection:
        assert connection.recv(16) == b"hello"
        facts = peer_facts(connection, "localhost", server.port, True)
        assert (facts.tls_version, facts.subject) == ("TLSv1.3", "CN=server")
        assert connection.selected_alpn_protocol() == "http/1.1"


def test_a_server_of_another_ca(pki: Pki) -> None:
    with TlsServer(server_context(pki.other.issue_server("server"))) as server:
        assert refusal(Tls(pki.files()), server.port).code == "tls-server-untrusted"


def test_an_expired_server(pki: Pki) -> None:
    with TlsServer(server_context(pki.ca.issue_server("server", expired=True))) as server:
        assert refusal(Tls(pki.files()), server.port).code == "tls-server-expired"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_server_for_another_host(pki: Pki, host: str) -> None:
    with TlsServer(server_context(pki.ca.issue_server("server", ("example.invalid", "10.0.0.1")))) as server:
        assert refusal(Tls(pki.files()), server.port, host).code == "tls-server-name"


def test_a_server_that_speaks_tls_1_2_at_most(pki: Pki) -> None:
    with TlsServer(server_context(pki.server, maximum=ssl.TLSVersion.TLSv1_2)) as server:
        assert refusal(Tls(pki.files()), server.port).code == "tls-failed"


def test_a_plaintext_server(pki: Pki) -> None:
    with TlsServer(None, lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as server:
        error = refusal(Tls(pki.files()), server.port)
        assert error.code == "tls-required"
        assert "answered in plaintext, expected TLS 1.3" in error.message


def test_a_server_that_hangs_up_in_the_handshake(pki: Pki) -> None:
    with TlsServer(None, lambda connection: None) as server:
        assert refusal(Tls(pki.files()), server.port).code == "tls-failed"


def test_nobody_listens(pki: Pki) -> None:
    with refusing_port() as port:
        assert refusal(Tls(pki.files()), port).code == "transport-failed"


@pytest.mark.parametrize("kind", ["none", "other CA", "expired"])
def test_a_client_certificate_that_the_server_refuses(pki: Pki, kind: str) -> None:
    client = {"none": None, "other CA": pki.other.issue_client("x"), "expired": pki.ca.issue_client("x", expired=True)}[kind]
    files = pki.files(client) if client else TlsFiles(pki.ca.ca_file, None, None, certificate_required=False)
    with TlsServer(server_context(pki.server, pki.ca.ca_file), hello) as server:
        # TLS 1.3: the handshake succeeds for the client, the alert comes with the first read.
        with dial(Tls(files), server.port) as connection, pytest.raises((ssl.SSLError, ConnectionError)) as caught:
            connection.recv(16)
        error = early_end_error(caught.value, "server", bool(client))
        assert error.code == "client-certificate-refused"


def test_dates_of_the_client_certificate_are_looked_at(pki: Pki) -> None:
    assert Tls(pki.files()).check_dates() is not None
    with pytest.raises(CredentialError) as caught:
        Tls(pki.files(pki.ca.issue_client("old", expired=True))).check_dates()
    assert caught.value.code == "client-certificate-invalid"
    early = Tls(pki.files(), now=lambda: datetime.now(UTC) - timedelta(days=40))
    with pytest.raises(CredentialError):
        early.check_dates()


def test_a_key_of_another_certificate(pki: Pki) -> None:
    files = TlsFiles(pki.ca.ca_file, pki.client.certificate, pki.ca.issue_client("other").key)
    with pytest.raises(ConfigError) as caught:
        Tls(files)
    assert caught.value.code == "client-certificate-invalid"


def test_a_client_certificate_is_demanded_unless_that_is_written_down(pki: Pki) -> None:
    with pytest.raises(ConfigError) as caught:
        Tls(TlsFiles(pki.ca.ca_file, None, None))
    assert caught.value.code == "client-certificate-missing"
    Tls(TlsFiles(pki.ca.ca_file, None, None, certificate_required=False))


def test_the_system_store_does_not_count_unless_that_is_written_down(pki: Pki) -> None:
    with pytest.raises(ConfigError) as caught:
        Tls(TlsFiles(None, pki.client.certificate, pki.client.key))
    assert caught.value.code == "config-missing"
    context = Tls(pki.files()).context("h2")
    assert len(context.get_ca_certs()) == 1
    assert context.minimum_version == ssl.TLSVersion.TLSv1_3
    assert context.verify_mode == ssl.CERT_REQUIRED


@pytest.mark.parametrize("content", [b"", b"garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_files_that_are_no_certificates(pki: Pki, tmp_path: Path, content: bytes) -> None:
    broken = tmp_path / "broken.pem"
    broken.write_bytes(content)
    with pytest.raises(ConfigError):
        Tls(pki.files(ca=broken))
    with pytest.raises(ConfigError):
        Tls(TlsFiles(pki.ca.ca_file, broken, pki.client.key))


def test_a_file_that_is_not_there(pki: Pki, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Tls(pki.files(ca=tmp_path / "none.pem"))
    assert caught.value.code == "config-missing"


def test_reload_takes_a_good_pair_and_keeps_the_old_one_otherwise(pki: Pki, tmp_path: Path) -> None:
    certificate, key = tmp_path / "c.pem", tmp_path / "c.key"
    certificate.write_bytes(pki.client.certificate.read_bytes())
    key.write_bytes(pki.client.key.read_bytes())
    tls = Tls(TlsFiles(pki.ca.ca_file, certificate, key))
    first = tls.context("h2")
    renewed = pki.ca.issue_client("renewed")
    certificate.write_bytes(renewed.certificate.read_bytes())
    with pytest.raises(ConfigError):
        tls.reload()
    assert tls.context("h2") is first
    key.write_bytes(renewed.key.read_bytes())
    tls.reload()
    assert tls.context("h2") is not first
    seen: list[object] = []

    def serve(connection: socket.socket) -> None:
        assert isinstance(connection, ssl.SSLSocket)
        seen.append(connection.getpeercert())
        connection.sendall(b"x")

    with TlsServer(server_context(pki.server, pki.ca.ca_file), serve) as server, dial(tls, server.port) as connection:
        assert connection.recv(1) == b"x"
    assert "renewed" in str(seen)
