# SPDX-License-Identifier: Apache-2.0
"""env lock and check on a real interpreter's folder: changed, writable by others, and data sets."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from scaleoutd.cli.env import env


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """An interpreter with a package in a prefix of its own, a data set, a policy."""
    prefix = tmp_path / "prefix"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "lib/python3.11").mkdir(parents=True)
    shutil.copy(os.path.realpath("/usr/bin/python3"), prefix / "bin/python3")
    (prefix / "lib/python3.11/model.py").write_text("x = 1")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/rows.csv").write_text("1,2")
    for path in (prefix, *prefix.rglob("*")):
        path.chmod(path.stat().st_mode & 0o755)
    return tmp_path


def call(site: Path, word: str, digests: dict[str, str] | None = None) -> tuple[int, dict[str, Any]]:
    known = digests or {}
    (site / "policy.yaml").write_text(
        f"version: 1\nproject: {{name: p, path: {site}}}\ntrust_root: {site}\n"
        f"environments: {{own: {{python: {site}/prefix/bin/python3{_digest(known, 'own')}}}}}\n"
        f"data_sets: {{samples: {{path: {site}/data, mode: full{_digest(known, 'samples')}}}}}\n"
    )
    words = [word, "--policy", str(site / "policy.yaml"), "--json"]
    result = CliRunner().invoke(env, words, standalone_mode=False)
    assert result.exception is None, result.exception
    return result.return_value, json.loads(result.stdout)


def _digest(known: dict[str, str], name: str) -> str:
    return f", digest: {known[name]}" if name in known else ""


def test_what_was_locked_is_checked_and_a_change_is_seen(site: Path) -> None:
    status, told = call(site, "lock")
    assert status == 0 and told["ok"]
    digests = {item["name"]: item["sha256"] for item in told["items"]}
    assert {item["state"] for item in told["items"]} == {"not locked"}
    status, told = call(site, "check", digests)
    assert status == 0 and {item["state"] for item in told["items"]} == {"as locked"}
    (site / "prefix/lib/python3.11/sitecustomize.py").write_text("evil")
    (site / "data/rows.csv").write_text("1,3")
    status, told = call(site, "check", digests)
    assert status == 65 and [item["state"] for item in told["items"]] == ["refused", "refused"]
    for item in told["items"]:
        assert "expected" in item["problem"] and "found" in item["problem"]
    assert call(site, "lock", digests)[1]["items"][0]["sha256"] != digests["own"]


def test_an_environment_that_others_can_write_is_not_locked(site: Path) -> None:
    (site / "prefix/lib/python3.11/model.py").chmod(0o666)
    status, told = call(site, "lock")
    assert status == 65 and "only root can write" in told["items"][0]["problem"]
    (site / "prefix/lib/python3.11/model.py").chmod(0o644)
    assert call(site, "lock")[0] == 0
