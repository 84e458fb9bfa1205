# SPDX-License-Identifier: Apache-2.0
"""docs/administration.md followed on a node that docs/install.md made: certificate, project, policy, witness, backup, restore."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.site import Project
from tests.e2e.walkthrough import blocks
from tests.system.combiner_inside import CombinerInside
from tests.system.container import Container
from tests.system.image import TREE
from tests.system.test_package_guide import GUIDE, NODE, ROUNDS, bring
from tests.system.walk import FOLDER, GuestWalkthrough

ADMINISTRATION = TREE / "docs/administration.md"
SIGNS = "<!-- the CA signs ward-7.csr -->"


@dataclass
class Node:
    guest: Container
    combiner: CombinerInside
    project: Project
    walk: GuestWalkthrough


@pytest.fixture(scope="module")
def node(container: Container, deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """Installed by the guide, after its rounds."""
    folder = tmp_path_factory.mktemp("brought")
    with CombinerInside(container, NODE) as combiner, GuestWalkthrough(container) as walk:
        project = bring(container, deb, combiner, folder)
        walk.run(GUIDE.read_text().partition(ROUNDS)[0])
        combiner.rounds(2)
        yield Node(container, combiner, project, walk)


@pytest.mark.timeout(600)
def test_the_document_is_followed_from_the_first_day_to_a_restored_node(node: Node) -> None:
    before, mark, after = ADMINISTRATION.read_text().partition(SIGNS)
    assert mark
    guest = node.guest
    node.walk.run(before)
    assert "PRIVATE" not in guest.read(f"{FOLDER}/ward-7.csr")
    was = guest.run("scaleoutctl identity show --json", check=False).stdout
    node.combiner.certify(f"{FOLDER}/ward-7.csr", f"{FOLDER}/ward-7.pem")
    node.project.version = 2
    node.project.sign()
    guest.push(node.project.folder, f"{FOLDER}/heart-2")
    node.walk.run(after)
    assert guest.run("scaleoutctl identity show --json", check=False).stdout != was
    assert guest.run("scaleoutctl project show --json").stdout.count('"current"') == 1
    # The restored node is the one that was backed up, and trains.
    assert [len(record["updates"]) for record in node.combiner.rounds(2)] == [1, 1]
    assert "500" not in guest.run("scaleoutctl policy show --json").stdout.partition("runs_per_day")[2][:8]
    assert guest.run("debsums -as scaleoutd", check=False).told == ""


def test_every_block_that_is_not_run_says_where_it_is() -> None:
    left_out = [block.marks["not run"] for block in blocks(ADMINISTRATION.read_text()) if "not run" in block.marks]
    files = [reason.partition(" ")[0] for reason in left_out]
    assert files == [
        "tests/system/test_admin_budget.py",
        "tests/system/test_admin_trust.py",
        "tests/system/test_admin_trust.py",
        "tests/system/test_package_upgrade.py",
    ]
    assert all((TREE / file).exists() for file in files)
