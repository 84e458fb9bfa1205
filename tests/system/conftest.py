# SPDX-License-Identifier: Apache-2.0
"""Booted guests as fixtures; README.md says how they are used."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.container import Container
from tests.system.image import missing_for_container


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    """A booted container of the module: Debian 12, systemd as PID 1, no network, nothing of the project installed."""
    if reason := missing_for_container():
        pytest.skip(reason)
    with Container() as guest:
        yield guest
