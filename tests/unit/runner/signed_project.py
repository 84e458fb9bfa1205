# SPDX-License-Identifier: Apache-2.0
"""A signed project in a folder, for tests that then break it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from scaleoutd.cli.signing import Terms, make_manifest, now, read_folder, read_unverified, write_manifest
from scaleoutd.core.clock import Floors
from scaleoutd.core.policy import EnvironmentRule, Policy, ProjectRule
from scaleoutd.core.trust import TrustRoot
from scaleoutd.runner.tree import RACY_NS, Tree
from scaleoutd.runner.verify import Proven, prove
from tests.unit.core.trust_samples import ALICE, make_root

SCALEOUT_YAML = b"entry_points:\n  train: {command: python train.py}\n"


@dataclass(frozen=True)
class SignedProject:
    path: Path
    root: TrustRoot
    policy: Policy

    def sign(self) -> None:
        with Tree(self.path) as tree:
            before = read_unverified(tree)
            manifest = make_manifest(read_folder(tree), Terms(), before[1] if before else None, now(), "heart")
        write_manifest(self.path, manifest, [ALICE])

    def prove(self) -> Proven:
        return prove(self.path, self.root, self.policy, Floors(), now())


def make_project(path: Path, files: dict[str, bytes] | None = None) -> SignedProject:
    """`files` beside scaleout.yaml; signed by ALICE under a root that trusts her."""
    content = {"scaleout.yaml": SCALEOUT_YAML, "train.py": b"print(1)\n", "lib/model.py": b"x = 1\n", **(files or {})}
    for name, data in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    root = make_root(expires_ms=now().wall_ms + 10**9)
    policy = Policy(1, ProjectRule("heart", str(path)), "/none", environments={"default": EnvironmentRule("/usr/bin/python3")})
    project = SignedProject(path, root, policy)
    project.sign()
    return project


def rest() -> None:
    """Lets files become older than the kernel's coarse clock can hide a change in."""
    time.sleep(1.2 * RACY_NS / 1e9)
