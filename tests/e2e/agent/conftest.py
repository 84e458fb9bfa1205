# SPDX-License-Identifier: Apache-2.0
"""One combiner for each test: it is cheap, and faults of one test must not reach another."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scaleoutd.devcombiner.server import DevCombiner


@pytest.fixture
def combiner() -> Iterator[DevCombiner]:
    with DevCombiner() as started:
        yield started
