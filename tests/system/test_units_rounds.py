# SPDX-License-Identifier: Apache-2.0
"""A node of real units at work: rounds over mTLS, the step's view, sockets and their modes, what is enforced and on record."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.guest import Guest
from tests.system.hospital import Hospital


@pytest.fixture(scope="module")
def hospital(node: Guest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    with Hospital(node, tmp_path_factory.mktemp("site")) as site:
        site.bring()
        site.start()
        yield site


def test_two_rounds_over_mtls(hospital: Hospital) -> None:
    hospital.rounds(2)
    assert "connected to" in hospital.guest.show("scaleoutd.service", "StatusText")["StatusText"]
