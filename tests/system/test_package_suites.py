# SPDX-License-Identifier: Apache-2.0
"""The package of Debian 13 on Debian 13: apt installs it, rounds run, and each Debian's package is refused by the other's apt."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packaging import deb as package
from tests.system.container import Container
from tests.system.hospital import Hospital
from tests.system.image import BOOKWORM, TRIXIE
from tests.system.install import install_deb
from tests.system.process import Ran
from tests.system.promises import check_node

SUITES = (TRIXIE,)
OTHER = {BOOKWORM: TRIXIE, TRIXIE: BOOKWORM}


@pytest.fixture(scope="module")
def refused(container: Container, suite: str, deb: Path) -> Ran:
    """What apt said to the package of the other Debian; nothing is installed yet."""
    return install_deb(container, package.of_this_tree(OTHER[suite]), check=False)


@pytest.fixture(scope="module")
def said(container: Container, refused: Ran, deb: Path) -> Ran:
    """What apt said while it installed this one's."""
    return install_deb(container, deb)


@pytest.fixture(scope="module")
def hospital(container: Container, said: Ran, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    with Hospital(container, tmp_path_factory.mktemp("hospital")) as site:
        yield site


def test_the_other_debians_package_is_refused_for_its_python(refused: Ran) -> None:
    assert refused.status != 0
    assert re.search(r"scaleoutd : Depends: python3 \(", refused.told), refused.told


def test_its_own_is_installed_without_a_warning(container: Container, said: Ran) -> None:
    assert "not started" in said.stdout and "config init" in said.stdout
    assert not re.search(r"error|warning|failed", said.told, re.IGNORECASE), said.told
    assert container.run("systemctl is-enabled scaleoutd.service", check=False).text == "disabled"
    verify = "systemd-analyze verify --man=no /usr/lib/systemd/system/scaleoutd*.{service,socket,slice} 2>&1"
    assert container.run(verify).text == ""


def test_five_commands_and_two_rounds_over_mtls(hospital: Hospital) -> None:
    hospital.bring()
    hospital.start()
    hospital.rounds(2)
    assert any(event["service"] == "combiner" and event["tls_version"] == "TLSv1.3" for event in hospital.trail("connected"))
    check_node(hospital)


def test_its_files_are_as_packed_after_use(hospital: Hospital) -> None:
    assert hospital.guest.run("debsums --all scaleoutd | grep -v ' OK$' || true").text == ""
