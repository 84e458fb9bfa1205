# SPDX-License-Identifier: Apache-2.0
"""Booted guests as fixtures; README.md says how they are used."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.packaging import deb as package
from tests.system.container import Container
from tests.system.hospital import Hospital
from tests.system.image import BOOKWORM, missing_for_container, missing_for_machine
from tests.system.install import distribution, install_deb, install_tree
from tests.system.machine import Machine

BOOTED = "booted"
FOLDER = Path(__file__).parent
LIMIT_S = 1200
SUITE = os.environ.get("SCALEOUTD_TEST_SUITE", BOOKWORM)  # of tests that do not name one


@pytest.fixture(scope="module")
def suite(request: pytest.FixtureRequest) -> str:
    """The Debian that is booted: each of the module's SUITES in turn, where it has such a list."""
    return str(getattr(request, "param", SUITE))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    suites = getattr(metafunc.module, "SUITES", ())
    if suites and "suite" in metafunc.fixturenames and "SCALEOUTD_TEST_SUITE" not in os.environ:
        metafunc.parametrize("suite", suites, indirect=True, scope="module")


@pytest.fixture(scope="module")
def container(suite: str) -> Iterator[Container]:
    """A booted container of the module: Debian, systemd as PID 1, no network, nothing of the project installed."""
    if reason := missing_for_container(suite):
        pytest.skip(reason)
    with Container(suite=suite) as guest:
        yield guest


@pytest.fixture(scope="session")
def booted_machine() -> Iterator[Callable[[], Machine]]:
    """The session's machine in the state in which it came up; a new one where a test has ended it."""
    if reason := missing_for_machine(SUITE):
        pytest.skip(reason)
    machines: list[Machine] = []

    def booted() -> Machine:
        if not machines or machines[-1].ended:
            machines.append(Machine(suite=SUITE))
            machines[-1].keep(BOOTED)
        else:
            machines[-1].back_to(BOOTED)
        return machines[-1]

    yield booted
    for guest in machines:
        guest.close()


@pytest.fixture(scope="module")
def machine(booted_machine: Callable[[], Machine]) -> Iterator[Machine]:
    """A booted machine with Debian's kernel, as new for each module: no network, nothing of the project installed."""
    guest = booted_machine()
    yield guest
    if not guest.ended:
        guest.pause()


@pytest.fixture(scope="module")
def node(container: Container) -> Container:
    """The module's container with this tree installed as the deb would; nothing configured, nothing started."""
    install_tree(container)
    return container


@pytest.fixture(scope="module")
def node_machine(machine: Machine) -> Machine:
    """The same in the machine."""
    install_tree(machine)
    return machine


@pytest.fixture(scope="module")
def hospital(node: Container, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    """The node of a hospital as it is enrolled and started; a module whose node is another has a fixture of its own."""
    with Hospital(node, tmp_path_factory.mktemp("site")) as site:
        site.bring()
        site.start()
        yield site


@pytest.fixture(scope="module")
def deb(suite: str) -> Path:
    """The package for the suite, built from this tree once a session."""
    if reason := package.missing():
        pytest.skip(reason)
    return package.of_this_tree(distribution(suite))


@pytest.fixture(scope="module")
def installed(container: Container, deb: Path) -> Container:
    """The module's container with the package installed by apt; nothing configured, nothing started."""
    install_deb(container, deb)
    return container


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """An emulated machine is some twenty times slower than this one, and shares its processors with it."""
    for item in items:
        if item.path.parent == FOLDER and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(LIMIT_S))
