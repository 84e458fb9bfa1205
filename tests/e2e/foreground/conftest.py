# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from scaleoutd.devcombiner.server import DevCombiner
from tests.e2e.foreground.person import Person


@pytest.fixture
def combiner() -> Iterator[DevCombiner]:
    with DevCombiner(client_certificate="none") as started:
        yield started


@pytest.fixture
def person(tmp_path: Path, combiner: DevCombiner) -> Iterator[Person]:
    with Person(tmp_path, combiner, train_body='print("first version", flush=True)') as somebody:
        yield somebody
