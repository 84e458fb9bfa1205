# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest

from scaleoutd.devcombiner.ca import CertificateAuthority, CertifiedKey


def openssl_verify(ca: CertificateAuthority, issued: CertifiedKey, *options: str) -> subprocess.CompletedProcess[str]:
    command = ["openssl", "verify", "-x509_strict", "-CAfile", str(ca.ca_file), *options, str(issued.certificate)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def ca(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority(tmp_path / "ca")


def test_openssl_accepts_both_kinds_strictly_and_only_for_their_purpose(ca: CertificateAuthority) -> None:
    client, server = ca.issue_client("ward 7"), ca.issue_server("combiner")
    assert openssl_verify(ca, client, "-purpose", "sslclient").returncode == 0
    assert openssl_verify(ca, server, "-purpose", "sslserver", "-verify_hostname", "localhost").returncode == 0
    assert openssl_verify(ca, server, "-purpose", "sslserver", "-verify_ip", "127.0.0.1").returncode == 0
    assert openssl_verify(ca, client, "-purpose", "sslserver").returncode != 0
    assert openssl_verify(ca, server, "-purpose", "sslclient").returncode != 0


def test_openssl_refuses_expired_other_ca_and_wrong_host(ca: CertificateAuthority, tmp_path: Path) -> None:
    other = CertificateAuthority(tmp_path / "other")
    assert "expired" in openssl_verify(ca, ca.issue_client("late", expired=True)).stderr
    assert openssl_verify(ca, other.issue_client("stranger")).returncode != 0
    wrong = ca.issue_server("wrong", ("combiner.invalid",))
    assert "ostname mismatch" in openssl_verify(ca, wrong, "-verify_hostname", "localhost").stderr


def test_keys_are_private_and_never_shared(ca: CertificateAuthority) -> None:
    issued = [ca.issue_client("same name"), ca.issue_client("same name")]
    for key in issued:
        assert stat.S_IMODE(key.key.stat().st_mode) == 0o600
    assert issued[0].key != issued[1].key
    assert issued[0].fingerprint != issued[1].fingerprint
    assert issued[0].key.read_bytes() != issued[1].key.read_bytes()


def test_a_name_cannot_leave_the_folder(ca: CertificateAuthority) -> None:
    issued = ca.issue_client("../../etc/x")
    assert issued.certificate.parent == ca.ca_file.parent
