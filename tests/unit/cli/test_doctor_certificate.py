# SPDX-License-Identifier: Apache-2.0
"""`doctor --cert --key`: dates, the pair, and who may read the key.  No network, no node."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from scaleoutd.cli.checks import files, program
from scaleoutd.cli.checks.finding import Finding, Subject
from scaleoutd.core.policy import development_policy

NOW = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)


def pair(folder: Path, first_day: int, last_day: int) -> tuple[Path, Path]:
    """A self-signed certificate that is valid from `first_day` to `last_day`, counted from today, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "node-1")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(NOW + datetime.timedelta(days=first_day))
        .not_valid_after(NOW + datetime.timedelta(days=last_day))
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(exist_ok=True)
    (folder / "node.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "node.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (folder / "node.key").chmod(0o600)
    return folder / "node.pem", folder / "node.key"


def look(certificate: Path | None, key: Path | None) -> Finding:
    policy = development_policy("/", "/usr/bin/python3", {}, "doctor")
    return files.certificate(Subject(Path("/"), policy, None, None, certificate, key, True, {}))


def test_a_good_pair(tmp_path: Path) -> None:
    found = look(*pair(tmp_path, -1, 365))
    assert found.status == "ok" and "node-1" in found.found


@pytest.mark.parametrize(
    ("first_day", "last_day", "status", "word"),
    [(-10, -1, "fail", "expired"), (1, 10, "fail", "valid from"), (-10, 12, "warn", "expires in 1")],
)
def test_dates(tmp_path: Path, first_day: int, last_day: int, status: str, word: str) -> None:
    found = look(*pair(tmp_path, first_day, last_day))
    assert (found.status, word in found.found, bool(found.fix)) == (status, True, True)


def test_the_key_of_another_certificate(tmp_path: Path) -> None:
    certificate, _ = pair(tmp_path / "one", -1, 365)
    _, key = pair(tmp_path / "two", -1, 365)
    found = look(certificate, key)
    assert found.status == "fail" and "is not the key of" in found.found


def test_a_key_that_others_may_read(tmp_path: Path) -> None:
    certificate, key = pair(tmp_path, -1, 365)
    key.chmod(0o644)
    found = look(certificate, key)
    assert found.status == "fail" and f"chmod 600 {key}" == found.fix


@pytest.mark.parametrize("content", [b"", b"no PEM", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_file_that_is_no_certificate(tmp_path: Path, content: bytes) -> None:
    certificate, key = pair(tmp_path, -1, 365)
    certificate.write_bytes(content)
    assert look(certificate, key).status == "fail"


def test_one_file_without_the_other(tmp_path: Path) -> None:
    certificate, _ = pair(tmp_path, -1, 365)
    assert look(certificate, None).status == "fail"


@pytest.mark.parametrize(("version", "status"), [((3, 10), "fail"), ((3, 11), "ok"), ((3, 13), "ok"), ((3, 14), "fail")])
def test_versions_of_python(version: tuple[int, int], status: str) -> None:
    assert program.python(version).status == status
