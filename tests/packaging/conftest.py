# SPDX-License-Identifier: Apache-2.0
"""The package of this tree, built once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.packaging import deb as package


@pytest.fixture(scope="session")
def deb() -> Path:
    if reason := package.missing():
        pytest.skip(reason)
    return package.of_this_tree()


@pytest.fixture(scope="session")
def unpacked(deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its files, and DEBIAN/."""
    return package.unpack(deb, tmp_path_factory.mktemp("unpacked") / "root")
