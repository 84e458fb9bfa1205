# SPDX-License-Identifier: Apache-2.0
"""Each way a connection must fail has its code, in the log and in the trail; nothing is sent; a control connects."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scaleoutd.devcombiner.server import DevCombiner
from tests.e2e.agent.node import CLIENT, Node, wait_until

REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "API of another CA": ({"rest_certificate": "other-ca"}, "tls-server-untrusted"),
    "combiner of another CA": ({"grpc_certificate": "other-ca"}, "tls-server-untrusted"),
    "API expired": ({"rest_certificate": "expired"}, "tls-server-expired"),
    "combiner expired": ({"grpc_certificate": "expired"}, "tls-server-expired"),
    "API for another host": ({"rest_certificate": "wrong-host"}, "tls-server-name"),
    "combiner for another host": ({"grpc_certificate": "wrong-host"}, "tls-server-name"),
    "combiner in plaintext": ({"grpc_plaintext": True}, "tls-required"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_server_that_is_not_the_right_one_is_refused(case: str, tmp_path: Path) -> None:
    options, code = REFUSALS[case]
    with DevCombiner(**options) as combiner, Node(combiner, tmp_path) as node:
        assert node.wait_event("connection-refused")["code"] == code
        assert code in node.codes()
        assert not combiner.board.clients
        assert not node.events("connected")
        if "API" in case:
            assert not combiner.board.rest_calls


def test_control_the_right_one_is_connected_to(combiner: DevCombiner, tmp_path: Path) -> None:
    with Node(combiner, tmp_path) as node:
        node.wait_connected()
        facts = node.wait_event("connected")
        assert facts["tls_version"] == "TLSv1.3"
        assert len(facts["peer_spki_sha256"]) == 64
        assert facts["peer_subject"] == "CN=demo combiner"
        assert node.wait_event("credential-loaded")["subject"] == f"CN={CLIENT}"
        assert not node.events("connection-refused")
    assert combiner.board.clients[CLIENT].certificate_subject


def test_no_client_certificate_where_one_is_demanded_by_the_api(combiner: DevCombiner, tmp_path: Path) -> None:
    with Node(combiner, tmp_path, cert="", key="", client_certificate="none") as node:
        event = node.wait_event("connection-refused")
        assert event["code"] == "client-certificate-refused"
        assert "no client certificate was sent" in event["message"]
        assert not combiner.board.rest_calls


def test_no_client_certificate_where_one_is_demanded_by_the_combiner(combiner: DevCombiner, tmp_path: Path) -> None:
    node = Node(combiner, tmp_path)
    with node:
        node.wait_connected()
    bare = replace(node.config, cert="", key="", client_certificate="none", combiner=f"localhost:{combiner.grpc_port}")
    node.config = bare  # its token is still good, so the API is not asked
    with node:
        assert node.wait_event("connection-refused")["code"] == "client-certificate-refused"


def test_a_client_certificate_of_another_ca(combiner: DevCombiner, tmp_path: Path) -> None:
    cert, key = combiner.issue_client_certificate(CLIENT, other_ca=True)
    with Node(combiner, tmp_path, cert=str(cert), key=str(key)) as node:
        assert node.wait_event("connection-refused")["code"] == "client-certificate-refused"


def test_an_expired_client_certificate_is_named_before_it_is_used(combiner: DevCombiner, tmp_path: Path) -> None:
    cert, key = combiner.issue_client_certificate(CLIENT, expired=True)
    good_cert, good_key = combiner.issue_client_certificate(CLIENT)
    where_cert, where_key = tmp_path / "client.pem", tmp_path / "client.key"
    where_cert.write_bytes(cert.read_bytes())
    where_key.write_bytes(key.read_bytes())
    with Node(combiner, tmp_path, cert=str(where_cert), key=str(where_key)) as node:
        assert node.wait_event("connection-refused")["code"] == "client-certificate-invalid"
        assert not combiner.board.rest_calls
        assert not combiner.board.tls_failures
        # Renewed in place, it is taken without a restart.
        where_key.write_bytes(good_key.read_bytes())
        where_cert.write_bytes(good_cert.read_bytes())
        node.wait_connected()


def test_a_client_certificate_must_be_configured_where_it_is_required(combiner: DevCombiner, tmp_path: Path) -> None:
    with Node(combiner, tmp_path, cert="", key="") as node:
        wait_until(lambda: node.status is not None)
    assert node.status == 78
    assert node.codes() == ["client-certificate-missing"]


def test_a_key_of_another_certificate_ends_the_start(combiner: DevCombiner, tmp_path: Path) -> None:
    _, other_key = combiner.issue_client_certificate("another")
    with Node(combiner, tmp_path, key=str(other_key)) as node:
        wait_until(lambda: node.status is not None)
    assert node.status == 78
    assert node.codes() == ["client-certificate-invalid"]


def test_a_plaintext_address_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    with DevCombiner(rest_plaintext=True) as combiner:
        assert combiner.api_url.startswith("http://")
        with Node(combiner, tmp_path) as node:
            wait_until(lambda: node.status is not None)
        assert node.status == 78
        assert node.codes() == ["tls-required"]
        assert not combiner.board.rest_calls
        assert node.wait_event("agent-stopped")["reason"] == "tls-required"
        assert node.wait_event("connection-refused")["code"] == "tls-required"


def test_grpc_secure_false_is_refused(combiner: DevCombiner, tmp_path: Path) -> None:
    combiner.faults.grpc_secure = False
    with Node(combiner, tmp_path) as node:
        assert node.wait_event("connection-refused")["code"] == "tls-required"
        assert not combiner.board.clients
        combiner.faults.grpc_secure = None
        node.wait_connected()


def test_a_combiner_that_does_not_want_this_version(combiner: DevCombiner, tmp_path: Path) -> None:
    combiner.faults.refuse_version = True
    with Node(combiner, tmp_path) as node:
        wait_until(lambda: node.status is not None)
        assert node.codes() == ["version-refused"]
    assert node.status == 77


def test_a_bad_pair_put_in_place_later_keeps_the_old_one(combiner: DevCombiner, tmp_path: Path) -> None:
    cert, key = combiner.issue_client_certificate(CLIENT)
    where_cert, where_key = tmp_path / "client.pem", tmp_path / "client.key"
    where_cert.write_bytes(cert.read_bytes())
    where_key.write_bytes(key.read_bytes())
    with Node(combiner, tmp_path, cert=str(where_cert), key=str(where_key)) as node:
        node.wait_connected()
        where_key.write_bytes(combiner.issue_client_certificate("other")[1].read_bytes())
        combiner.stop_grpc()
        wait_until(lambda: bool(node.events("disconnected")))
        combiner.start_grpc()
        assert node.wait_event("credential-refused")["code"] == "client-certificate-invalid"
        assert node.wait_done(node.offer()).status == "COMPLETED"
