# SPDX-License-Identifier: Apache-2.0
"""What the seed model may be built with: the signed command, the policy's limits, and nothing that came from a combiner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from scaleoutd.core.grant import authorize_build
from scaleoutd.core.manifest import Expected
from scaleoutd.core.plan import OUTCOMES
from scaleoutd.core.policy import DataSetRule
from scaleoutd.core.project import parse_project
from scaleoutd.errors import ScaleoutError
from tests.unit.core.test_policy import policy, proven
from tests.unit.core.trust_samples import AT_MS, NOW

STEPS = {"train": ("python", "train.py"), "build": ("python", "train.py", "--seed")}


def test_it_has_the_signed_command_and_the_policys_limits() -> None:
    grant = authorize_build(policy(tasks=()), proven(steps=STEPS), NOW)
    assert grant.command == STEPS["build"]
    assert grant.files == {"train.py"}, "the words that name a file of the project"
    assert (grant.outcomes, grant.limits) == (OUTCOMES, policy().limits.of_run())
    assert grant.model.formats == ("npz", "safetensors")


def test_it_sees_no_data_set_though_the_project_expects_one() -> None:
    held = policy(data_sets={"samples": DataSetRule("/d")})
    grant = authorize_build(held, proven(steps=STEPS, data_sets={"samples": Expected()}), NOW)
    assert not hasattr(grant, "data_sets")


@pytest.mark.parametrize(
    ("code", "manifest"),
    [
        ("task-type-denied", {"steps": {"train": ("python", "train.py")}}),
        ("project-mismatch", {"steps": STEPS, "project": "lung"}),
        ("trust-root-invalid", {"steps": STEPS, "development": True}),
        ("manifest-expired", {"steps": STEPS, "expires_ms": AT_MS}),
        ("policy-mismatch", {"steps": STEPS, "policy_sha256": "0" * 64}),
        ("environment-mismatch", {"steps": STEPS, "environments": {"torch": Expected()}}),
    ],
)
def test_denied_with_its_own_code(code: str, manifest: Mapping[str, Any]) -> None:
    with pytest.raises(ScaleoutError) as caught:
        authorize_build(policy(), proven(**manifest), NOW)
    assert caught.value.code == code and caught.value.hint
    authorize_build(policy(), proven(steps=STEPS), NOW)


def test_the_project_file_names_both_commands_and_an_importers_file_is_kept_apart() -> None:
    found = parse_project(
        b"entry_points:\n  build: {command: python build.py}\n  startup: {command: python data.py}\n"
        b"  train: {command: python t.py}\n"
    )
    assert (found.build, found.startup, found.build_file) == (("python", "build.py"), ("python", "data.py"), None)
    importer = parse_project(b"entry_points:\n  build: build.py\n  train: {command: python t.py}\n")
    assert (importer.build, importer.build_file) == (None, "build.py")
