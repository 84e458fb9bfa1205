# SPDX-License-Identifier: Apache-2.0
"""The doctor on an installed node: each broken thing is named with the command that mends it, and mended it is no more."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from scaleoutd.cli.checks import installed
from scaleoutd.cli.checks.finding import Finding
from scaleoutd.cli.checks.reach import unreachable
from scaleoutd.cli.place import Place
from scaleoutd.devcombiner.ca import CertificateAuthority

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can try as another user")

NOBODY = (65_534, 65_534)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    for name, (forbidden, _) in installed.FOLDERS.items():
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name).chmod(0o755 & ~forbidden)
    (tmp_path / "etc/scaleoutd/scaleoutd.yaml").write_text("version: 1\napi_url: https://a.example.org\n")
    return Place(tmp_path)


@pytest.fixture
def owners(monkeypatch: pytest.MonkeyPatch) -> None:
    """This host has no such users; what is here is root's."""
    monkeypatch.setattr(installed, "_uid", lambda name: 0)
    monkeypatch.setattr(installed, "_gid", lambda name: 0)


def only(findings: Iterator[Finding]) -> Finding:
    (found,) = findings
    return found


def test_folders_that_a_hardening_tool_opened(place: Place, owners: None) -> None:
    assert only(installed.folders(place)).status == "ok"
    (place.identity).chmod(0o755)
    found = only(installed.folders(place))
    assert found.status == "fail" and "mode 0755" in found.found
    assert f"chmod 0700 {place.identity}" in found.fix
    place.identity.chmod(0o700)
    assert only(installed.folders(place)).status == "ok"
    os.chown(place.state / "audit", 65_534, 0)
    assert "nobody" in only(installed.folders(place)).found


def test_a_folder_that_is_not_there(place: Place, owners: None) -> None:
    (place.state / "scratch/3").rmdir()
    assert only(installed.folders(place)).fix == "systemd-tmpfiles --create"


def test_a_socket_that_a_room_opened_to_all(place: Place, owners: None) -> None:
    assert only(installed.sockets(place)).status == "warn"
    path = place.root / "run/scaleoutd/runner.sock"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    path.chmod(0o660)
    assert only(installed.sockets(place)).status == "ok"
    path.chmod(0o666)
    found = only(installed.sockets(place))
    assert found.status == "fail" and "mode 0666" in found.found and found.fix.startswith("systemctl restart")
    path.chmod(0o660)
    os.chown(path, 65_534, 0)
    assert only(installed.sockets(place)).status == "fail"
    listener.close()


def test_a_configuration_with_a_wrong_key(place: Place) -> None:
    assert only(installed.configuration(place)).status == "ok"
    (place.etc / "scaleoutd.yaml").write_text("version: 1\napi_urll: https://a\n")
    found = only(installed.configuration(place))
    assert found.status == "fail" and "line 2" in found.found and "api_url" in found.fix


def test_a_certificate_that_cannot_be_used(place: Place, tmp_path: Path) -> None:
    ca = CertificateAuthority(tmp_path / "ca")
    assert installed._certificate(place).fix.startswith("scaleoutctl identity install")
    for label, expired, other, word in (
        ("ok", False, False, ""),
        ("expired", True, False, "valid from"),
        ("other", False, True, "not the key"),
    ):
        pair = ca.issue_client(label, expired=expired)
        key = ca.issue_client("another").key if other else pair.key
        (place.identity / "client.pem").write_bytes(pair.certificate.read_bytes())
        (place.identity / "client.key").write_bytes(key.read_bytes())
        (place.identity / "client.key").chmod(0o600)
        found = installed._certificate(place)
        assert (found.status == "fail") == bool(word) and word in found.found, found
    (place.identity / "client.key").chmod(0o640)
    assert "others may read" in installed._certificate(place).found


def test_a_policy_that_is_not_in_force(place: Place) -> None:
    found = next(installed.policy(place))
    assert found.status == "fail" and "policy apply" in found.fix


def test_what_a_step_cannot_read_is_named(tmp_path: Path) -> None:
    """Made under umask 077, as pip and venv do; tried as another user, from the bound folder on."""
    tmp_path.chmod(0o700)  # above the bind: does not matter
    bind = tmp_path / "env"
    packages = bind / "lib/python3.11/site-packages"
    packages.mkdir(parents=True)
    (packages / "module.py").write_text("")
    for path in (bind, bind / "lib", bind / "lib/python3.11", packages):
        path.chmod(0o755)
    assert unreachable(bind, [packages / "module.py"], NOBODY) is None
    (bind / "lib").chmod(0o700)
    where, why = unreachable(bind, [packages / "module.py"], NOBODY) or (None, "")
    assert where == bind / "lib" and "ermission" in why
    (bind / "lib").chmod(0o755)
    (packages / "module.py").chmod(0o600)
    assert unreachable(bind, [packages, packages / "module.py"], NOBODY) == (packages / "module.py", why)
    bind.chmod(0o750)
    assert (unreachable(bind, [packages], NOBODY) or (None, ""))[0] == bind


def test_a_single_file_that_is_bound(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    file = tmp_path / "rows.csv"
    file.write_text("x")
    file.chmod(0o644)
    assert unreachable(file, [file], NOBODY) is None
    file.chmod(0o640)
    assert (unreachable(file, [file], NOBODY) or (None, ""))[0] == file
