# SPDX-License-Identifier: Apache-2.0
"""`scaleoutctl policy` below a temporary root with real files: idempotent, all or nothing, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from scaleoutd.cli.fileset import Change, apply_changes, changes_of
from scaleoutd.cli.policycommand import policy
from scaleoutd.errors import ConfigError, ScaleoutError, StorageError, VerificationError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may enter another root (chroot)")

YAML = """
version: 1
project: {name: heart, path: /var/lib/scaleoutd/project/current}
trust_root: /etc/scaleoutd/trust
limits: {memory_bytes: 1GiB}
environments: {default: {python: /opt/env/bin/python3}}
data_sets: {samples: {path: /srv/data}}
"""
FILES = ["scaleoutd-step@.service.d", "scaleoutd-step.slice.d", "scaleoutd-runner.service.d", "scaleoutd.service.d"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An image: an interpreter with its prefix, reached by an absolute link, data, and a policy."""
    for folder in ("etc/scaleoutd", "opt/env-3/bin", "opt/env-3/lib/python3.11", "srv/data", "usr/bin"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(os.path.realpath(sys.executable), tmp_path / "opt/env-3/bin/python3")
    (tmp_path / "opt/env").symlink_to("/opt/env-3")
    (tmp_path / "etc/scaleoutd/policy.yaml").write_text(YAML)
    return tmp_path


def run(root: Path, *words: str) -> Result:
    return CliRunner().invoke(policy, [*words, "--root", str(root)], standalone_mode=False)


def told(root: Path, *words: str) -> dict[str, object]:
    result = run(root, *words, "--json")
    if result.exception is not None:
        raise result.exception
    found: dict[str, object] = json.loads(result.stdout)
    return found


def units(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted((root / "etc").rglob("*")) if path.is_file()}


def test_apply_twice_changes_once(root: Path) -> None:
    first = told(root, "apply")
    assert first["changed"] is True and len(first["files"]) == 5  # type: ignore[arg-type]
    assert all((root / "etc/systemd/system" / name / "50-policy.conf").is_file() for name in FILES)
    before = {path: os.stat(path).st_mtime_ns for path in units(root)}
    again = told(root, "apply")
    assert (again["changed"], again["written"], again["files"]) == (False, False, [])
    assert {path: os.stat(path).st_mtime_ns for path in units(root)} == before
    assert again["policy_sha256"] == first["policy_sha256"]


def test_an_absolute_link_of_the_image_leads_into_the_image(root: Path) -> None:
    told(root, "apply")
    text = (root / "etc/systemd/system/scaleoutd-step@.service.d/50-policy.conf").read_text()
    assert "BindReadOnlyPaths=/opt/env-3\n" in text and str(root) not in text


def test_an_environment_with_a_digest_is_proven_inside_the_image(root: Path) -> None:
    yaml = root / "etc/scaleoutd/policy.yaml"
    yaml.write_text(YAML.replace("bin/python3}", f"bin/python3, digest: {'0' * 64}}}"))
    with pytest.raises(VerificationError, match=r"found [0-9a-f]{64}") as caught:
        told(root, "apply")
    found = caught.value.message.rpartition("found ")[2]
    yaml.write_text(yaml.read_text().replace("0" * 64, found))
    assert told(root, "apply")["changed"] is True


def test_check_says_by_its_status_whether_it_would_change(root: Path) -> None:
    assert run(root, "apply", "--check").return_value == 1
    assert not (root / "etc/systemd").exists()
    told(root, "apply")
    assert run(root, "apply", "--check").return_value == 0
    (root / "etc/scaleoutd/policy.yaml").write_text(YAML.replace("1GiB", "2GiB"))
    shown = run(root, "apply", "--check", "--diff")
    assert shown.return_value == 1 and "-MemoryMax=" in shown.stdout and "+MemoryMax=" in shown.stdout
    assert run(root, "show").return_value == 0  # nothing was written


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("1GiB", "1Gib", ConfigError),
        ("limits", "limit", ConfigError),
        ("/srv/data", "/srv/nothing", ConfigError),
        ("/opt/env/bin", "/opt/none/bin", VerificationError),
        ("1GiB", "128MiB", ConfigError),
        ("/srv/data", "/var/lib/scaleoutd/audit", ConfigError),
        ("version: 1", "version: 1\nversion: 1", ConfigError),
    ],
)
def test_a_policy_that_cannot_be_used_changes_nothing(root: Path, old: str, new: str, error: type[Exception]) -> None:
    told(root, "apply")
    (root / "etc/scaleoutd/policy.yaml").write_text(YAML.replace(old, new))
    before = units(root)
    with pytest.raises(error):
        told(root, "apply")
    assert units(root) == before
    (root / "etc/scaleoutd/policy.yaml").write_text(YAML.replace("heart", "lung"))
    assert told(root, "apply")["changed"] is True  # the control


def test_check_of_a_file_needs_no_node(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(YAML)
    result = CliRunner().invoke(policy, ["check", str(tmp_path / "policy.yaml"), "--json"], standalone_mode=False)
    assert json.loads(result.stdout)["project"] == "heart"
    with pytest.raises(ScaleoutError):
        told(tmp_path, "check", str(tmp_path / "policy.yaml"), "--paths")


def test_a_drop_in_that_somebody_edited_is_seen_and_put_back(root: Path) -> None:
    told(root, "apply")
    edited = root / "etc/systemd/system/scaleoutd-step@.service.d/50-policy.conf"
    edited.write_text(edited.read_text().replace("TasksMax=", "TasksMax=9"))
    shown = run(root, "show", "--json")
    assert shown.return_value == 1 and json.loads(shown.stdout)["files"][str(edited)] == "stale"
    assert told(root, "apply")["changed"] is True
    assert run(root, "show").return_value == 0


def test_a_failure_in_the_middle_takes_everything_back(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "blocked").mkdir()  # a folder where a file must go: its rename fails
    changes = [*changes_of(tmp_path, {"a": b"new", "b": b"new"}), Change(tmp_path / "blocked", None, b"new")]
    with pytest.raises(StorageError):
        apply_changes(changes)
    assert (tmp_path / "a").read_bytes() == b"old" and not (tmp_path / "b").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "blocked"]
    apply_changes(changes[:2])  # the control
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == b"new"


def test_files_are_readable_whatever_the_umask(root: Path) -> None:
    before = os.umask(0o077)
    try:
        told(root, "apply")
    finally:
        os.umask(before)
    for path in (root / "etc/systemd/system").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644)
