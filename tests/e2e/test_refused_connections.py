# SPDX-License-Identifier: Apache-2.0
"""Connections that the whole node refuses, or that are refused to it: named in log and trail, and nothing runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from scaleoutd.devcombiner.server import DevCombiner
from tests.e2e.site import NodeProcess, Site, wait_until


@dataclass(frozen=True)
class Case:
    """`combiner` and `grpc_secure` are how the server is, `certificate` which one the node shows, `code` how it must end."""

    code: str
    combiner: dict[str, Any] = field(default_factory=dict)
    certificate: Literal["good", "none", "expired", "other-ca"] = "good"
    grpc_secure: bool | None = True
    ends: bool = False


CASES = {
    "no client certificate, which the server demands": Case("client-certificate-refused", certificate="none"),
    "client certificate of another CA": Case("client-certificate-refused", certificate="other-ca"),
    "client certificate expired": Case("client-certificate-invalid", certificate="expired"),
    "API of another CA": Case("tls-server-untrusted", {"rest_certificate": "other-ca"}),
    "combiner of another CA": Case("tls-server-untrusted", {"grpc_certificate": "other-ca"}),
    "API expired": Case("tls-server-expired", {"rest_certificate": "expired"}),
    "combiner expired": Case("tls-server-expired", {"grpc_certificate": "expired"}),
    "API for another host": Case("tls-server-name", {"rest_certificate": "wrong-host"}),
    "combiner for another host": Case("tls-server-name", {"grpc_certificate": "wrong-host"}),
    "API in plaintext": Case("tls-required", {"rest_plaintext": True}, ends=True),
    "combiner in plaintext": Case("tls-required", {"grpc_plaintext": True}),
    "combiner that asks for plaintext": Case("tls-required", grpc_secure=False),
}


def _options(case: Case, combiner: DevCombiner) -> dict[str, str | None]:
    if case.certificate == "good":
        return {}
    if case.certificate == "none":
        return {"cert": None, "key": None}
    cert, key = combiner.issue_client_certificate(
        "ward-7", expired=case.certificate == "expired", other_ca=case.certificate == "other-ca"
    )
    return {"cert": str(cert), "key": str(key)}


def _launch(site: Site, case: Case) -> NodeProcess:
    assert site.combiner is not None
    site.combiner.faults.grpc_secure = case.grpc_secure
    return site.launch(**_options(case, site.combiner))  # type: ignore[arg-type]  # flags by name


@pytest.mark.parametrize("name", CASES)
def test_a_connection_that_may_not_be_is_named_in_log_and_trail_and_nothing_runs(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    policy = {"client_certificate": "none"} if case.certificate == "none" else {}
    with DevCombiner(**case.combiner) as combiner, Site(tmp_path, combiner, **policy) as site:
        # Offered before it comes, so that a node that got in would be given something to run.
        combiner.offer_task("ward-7", "Scaleout_ModelUpdate", "any")
        node = _launch(site, case)
        node.wait_for(f'"{case.code}"')
        (refused, *_) = wait_until(lambda: site.events("connection-refused"), 60, lambda: node.text)
        assert refused["code"] == case.code
        assert not combiner.board.connected()
        assert not site.events("connected", "task-received", "run-about-to-start")
        if case.ends:
            assert node.process.wait(60) == 78
        else:
            assert node.stop() == 0
        assert combiner.board.offers.popitem()[1].handed_out_at_s is None


def test_control_the_same_node_with_everything_right_connects(tmp_path: Path) -> None:
    with DevCombiner() as combiner, Site(tmp_path, combiner) as site:
        node = site.start()
        (connected,) = wait_until(lambda: site.events("connected"), 60, lambda: node.text)
        assert connected["tls_version"] == "TLSv1.3"
        assert combiner.board.clients["ward-7"].certificate_subject == "ward-7"
        assert not site.events("connection-refused")


def test_control_a_policy_may_say_that_there_is_no_client_certificate(tmp_path: Path) -> None:
    with DevCombiner(client_certificate="none") as combiner, Site(tmp_path, combiner, client_certificate="none") as site:
        node = site.start(cert=None, key=None)
        node.wait_for("no client certificate")
        (started,) = wait_until(lambda: site.events("agent-started"), 60, lambda: node.text)
        assert started["client_certificate"] == "none"


@pytest.mark.parametrize("missing", ["both", "cert", "key"])
def test_without_a_client_certificate_a_node_with_a_policy_does_not_start(missing: str, tmp_path: Path) -> None:
    with DevCombiner() as combiner, Site(tmp_path, combiner) as site:
        options: dict[str, None] = {"cert": None, "key": None} if missing == "both" else {missing: None}
        node = site.launch(**options)  # type: ignore[arg-type]  # flags by name
        assert node.process.wait(60) == 77
        node.wait_for("client-certificate-missing", 60)
        assert not combiner.board.rest_calls
        (refused,) = site.events("connection-refused")
        assert (refused["code"], refused["combiner"]) == ("client-certificate-missing", combiner.api_url)
        assert not site.events("agent-started", "runner-started"), "no other room was started"
