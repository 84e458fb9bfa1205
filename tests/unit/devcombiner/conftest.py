# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator

import pytest

from scaleoutd.devcombiner.server import DevCombiner


@pytest.fixture
def combiner() -> Iterator[DevCombiner]:
    """Everything on: TLS, client certificate demanded."""
    with DevCombiner() as running:
        yield running


@pytest.fixture
def open_combiner() -> Iterator[DevCombiner]:
    """TLS without a client certificate, for tests of what comes after."""
    with DevCombiner(client_certificate="none") as running:
        yield running
