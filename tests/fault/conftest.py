# SPDX-License-Identifier: Apache-2.0
"""Fixtures: a site that several cases share while all goes well, and this process as the reaper of orphans (prctl(2))."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fault.invariants import check_no_survivor, check_stopped
from tests.fault.node import FaultSite, HeldCombiner

PR_SET_CHILD_SUBREAPER = 36


@pytest.fixture(scope="package", autouse=True)
def reaper() -> Iterator[None]:
    """What a killed parent leaves becomes our child instead of init's: a survivor cannot hide."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    yield
    check_no_survivor()
    libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


class Sites:
    """Gives the same site again unless the case before left it broken."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, itertools.count()
        self._site: FaultSite | None = None
        self._combiner: HeldCombiner | None = None

    def get(self) -> FaultSite:
        if self._site is None:
            self._combiner = HeldCombiner().start()
            self._site = FaultSite(self._folder / str(next(self._count)), self._combiner)
        return self._site

    def drop(self, *, broken: bool) -> None:
        site, combiner, self._site = self._site, self._combiner, None
        if site is None or combiner is None:
            return
        try:
            site.go()
            combiner.go()
            if broken:
                print(site.node.text)
                site.node.end()
            else:
                site.stop_node()
                check_stopped(site)
                check_no_survivor()
        finally:
            combiner.stop()


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sites]:
    made = Sites(tmp_path_factory.mktemp("fault"))
    yield made
    made.drop(broken=False)


@pytest.fixture
def site(sites: Sites, request: pytest.FixtureRequest) -> Iterator[FaultSite]:
    """A connected node; at the end of a case that went well it is left running for the next."""
    failed_before = request.session.testsfailed
    found = sites.get()
    yield found
    found.go()
    found.combiner.go()
    if request.session.testsfailed > failed_before or found.node.process.poll() is not None:
        sites.drop(broken=True)
    else:
        found.clear()


@pytest.fixture
def combiner() -> Iterator[HeldCombiner]:
    with HeldCombiner() as made:
        assert isinstance(made, HeldCombiner)
        yield made
