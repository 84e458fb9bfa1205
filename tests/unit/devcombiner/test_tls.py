# SPDX-License-Identifier: Apache-2.0
"""Who gets through the two doors.  Each refusal stands beside the same call that succeeds."""

from __future__ import annotations

import socket
import ssl
from typing import Any

import grpc
import pytest

from scaleoutd.devcombiner.server import DevCombiner
from scaleoutd.proto import edge_pb2 as edge
from scaleoutd.proto.methods import SEND_HEARTBEAT
from tests.unit.devcombiner.wire import Pair, Wire, access_token, post, secure_channel, status_of, wire

ADD = "/api/v1/clients/add"


def beat(combiner: DevCombiner, pair: Pair | None) -> None:
    with secure_channel(combiner, pair) as channel:
        Wire(channel, "c1", access_token(combiner, "c1")).call(SEND_HEARTBEAT, edge.Heartbeat(client_id="c1"), timeout_s=60)


def add(combiner: DevCombiner, pair: Pair | None) -> int:
    return post(combiner, ADD, {"name": "c1"}, bearer=access_token(combiner, "c1"), pair=pair)[0]


def bad_pair(combiner: DevCombiner, attack: str) -> Pair | None:
    if attack == "no certificate":
        return None
    if attack == "expired":
        return combiner.issue_client_certificate("c1", expired=True)
    if attack == "a server's certificate":
        issued = combiner.ca.issue_server("c1")
        return issued.certificate, issued.key
    return combiner.issue_client_certificate("c1", other_ca=True)


ATTACKS = ["no certificate", "wrong CA", "expired", "a server's certificate"]


@pytest.mark.parametrize("attack", ATTACKS)
def test_grpc_refuses_a_client_with(attack: str, combiner: DevCombiner) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        beat(combiner, bad_pair(combiner, attack))
    assert status_of(caught.value) in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert combiner.board.clients == {}

    beat(combiner, combiner.issue_client_certificate("c1"))
    assert combiner.board.clients["c1"].heartbeats == 1


@pytest.mark.parametrize("attack", ATTACKS)
def test_rest_refuses_a_client_with(attack: str, combiner: DevCombiner) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        add(combiner, bad_pair(combiner, attack))
    assert combiner.board.wait_until(lambda: len(combiner.board.tls_failures) == 1, 60)
    assert combiner.board.rest_calls == []

    assert add(combiner, combiner.issue_client_certificate("c1")) == 200


def test_the_certificate_is_kept_with_the_client_on_both_doors(combiner: DevCombiner) -> None:
    issued = combiner.ca.issue_client("ward-7")
    beat(combiner, (issued.certificate, issued.key))
    add(combiner, (issued.certificate, issued.key))
    client = combiner.board.clients["c1"]
    assert (client.certificate_subject, client.certificate_fingerprint) == ("ward-7", issued.fingerprint)
    assert combiner.board.rest_calls[0].certificate_fingerprint == issued.fingerprint


def test_a_revoked_certificate_is_refused_by_the_service_and_named(combiner: DevCombiner) -> None:
    issued = combiner.ca.issue_client("c1")
    combiner.faults.refused_fingerprints.add(issued.fingerprint)
    with pytest.raises(grpc.RpcError) as caught:
        beat(combiner, (issued.certificate, issued.key))
    assert status_of(caught.value) is grpc.StatusCode.PERMISSION_DENIED
    beat(combiner, combiner.issue_client_certificate("c1"))


@pytest.mark.parametrize(
    ("certificate", "message"),
    [("expired", "expired"), ("wrong-host", "ostname mismatch"), ("other-ca", "unable to get local issuer|self.signed")],
)
def test_a_client_that_verifies_refuses_this_server(certificate: Any, message: str) -> None:
    with DevCombiner(client_certificate="none", rest_certificate=certificate, grpc_certificate=certificate) as combiner:
        with pytest.raises(ssl.SSLCertVerificationError, match=message):
            add(combiner, None)
        with pytest.raises(grpc.RpcError):
            beat(combiner, None)
        assert combiner.board.clients == {}
    with DevCombiner(client_certificate="none") as combiner:
        assert add(combiner, None) == 200
        beat(combiner, None)


def test_plaintext_gets_nothing_from_the_doors(combiner: DevCombiner) -> None:
    port = int(combiner.api_url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        connection.sendall(b"POST /api/v1/clients/add HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
        try:
            assert b"HTTP" not in connection.recv(100)
        except ConnectionResetError:
            pass  # as good: the door was shut before the answer was read
    with grpc.insecure_channel(f"localhost:{combiner.grpc_port}") as channel, pytest.raises(grpc.RpcError):
        Wire(channel, "c1", access_token(combiner, "c1")).call(SEND_HEARTBEAT, edge.Heartbeat(), timeout_s=3)
    assert combiner.board.rest_calls == [] and combiner.board.clients == {}


def test_rest_refuses_tls_1_1_and_takes_1_2(open_combiner: DevCombiner) -> None:
    port = int(open_combiner.api_url.rpartition(":")[2])
    context = ssl.create_default_context(cafile=str(open_combiner.ca_file))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", port), 60) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as tls,
    ):
        assert tls.version() == "TLSv1.2"
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_verify_locations(open_combiner.ca_file)
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        old.minimum_version = ssl.TLSVersion.TLSv1_1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", port), 60) as raw,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        old.wrap_socket(raw, server_hostname="localhost")


def test_a_silent_peer_holds_up_nobody(open_combiner: DevCombiner) -> None:
    port = int(open_combiner.api_url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), 60), socket.create_connection(("127.0.0.1", port), 60):
        assert add(open_combiner, None) == 200


def test_plaintext_mode_exists_for_clients_that_must_refuse_it() -> None:
    with DevCombiner(client_certificate="none", rest_plaintext=True, grpc_plaintext=True) as combiner:
        assert combiner.api_url.startswith("http://")
        with grpc.insecure_channel(f"localhost:{combiner.grpc_port}") as channel:
            Wire(channel, "c1", access_token(combiner, "c1")).call(SEND_HEARTBEAT, edge.Heartbeat())


def test_the_helper_wire_uses_a_certificate(combiner: DevCombiner) -> None:
    with wire(combiner) as client:
        client.call(SEND_HEARTBEAT, edge.Heartbeat(client_id="c1"))
    assert combiner.board.clients["c1"].certificate_subject == "c1"
