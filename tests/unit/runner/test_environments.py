# SPDX-License-Identifier: Apache-2.0
"""Environments and data sets: what is shown of them, and that a change of any part of them is seen."""

# mypy: disable-error-code="func-returns-value"

from __future__ import annotations

import os
import shutil
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from scaleoutd.core.policy import DataSetRule, EnvironmentRule
from scaleoutd.errors import VerificationError
from scaleoutd.runner import environments, tree
from scaleoutd.runner.environments import check_data_set, environment_digest, resolve_environment
from tests.unit.runner.signed_project import rest

REAL = os.path.realpath(sys.executable)


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """What `python -m venv` makes, without pip."""
    folder = tmp_path / "venv"
    (folder / "bin").mkdir(parents=True)
    (folder / "lib/python3.11/site-packages").mkdir(parents=True)
    (folder / "lib/python3.11/site-packages/mod.py").write_text("x = 1\n")
    (folder / "pyvenv.cfg").write_text(f"home = {os.path.dirname(REAL)}\n")
    (folder / "bin/python").symlink_to(REAL)
    return folder


def sources(rule: EnvironmentRule) -> set[str]:
    return {bind.source for bind in resolve_environment(rule).binds}


def test_the_systems_python_needs_the_systems_folders() -> None:
    found = resolve_environment(EnvironmentRule("/usr/bin/python3"))
    assert "/usr" in {bind.target for bind in found.binds}
    assert (found.python, found.is_venv, found.search_path) == ("/usr/bin/python3", False, ("/usr/bin",))


def test_a_virtual_environment_is_shown_at_its_own_path(venv: Path) -> None:
    found = resolve_environment(EnvironmentRule(str(venv / "bin/python")))
    assert str(venv) in {bind.target for bind in found.binds}
    assert found.is_venv
    assert found.search_path == (str(venv / "bin"),)


def test_a_python_in_a_home_folders_bin_does_not_show_the_home_folder(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    shutil.copy(REAL, tmp_path / "bin/python")
    (tmp_path / "secret").write_text("x")
    shown = sources(EnvironmentRule(str(tmp_path / "bin/python")))
    assert str(tmp_path / "bin/python") in shown
    assert str(tmp_path) not in shown


def test_what_is_no_interpreter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shim").write_text("#!/bin/sh\n")
    (tmp_path / "shim").chmod(0o755)
    (tmp_path / "plain").write_bytes(b"\x7fELF")
    (tmp_path / "plain").chmod(0o644)
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "folder").mkdir()
    for name in ("missing", "shim", "plain", "dangling", "loop", "folder"):
        with pytest.raises(VerificationError) as caught:
            resolve_environment(EnvironmentRule(str(tmp_path / name)))
        assert caught.value.code == "environment-mismatch"
    with pytest.raises(VerificationError):
        resolve_environment(EnvironmentRule("/usr/bin/python3", binds=(str(tmp_path / "missing"),)))


def test_every_part_of_an_environment_counts(venv: Path) -> None:
    rule = EnvironmentRule(str(venv / "bin/python"))
    digest = environment_digest(rule)
    proven = EnvironmentRule(rule.python, digest=digest)
    assert resolve_environment(proven).sha256 == digest
    package = venv / "lib/python3.11/site-packages"
    changes: list[Callable[[], object]] = [
        lambda: (package / "mod.py").write_text("x = 2\n"),
        lambda: (package / "evil.pth").write_text("import os\n"),
        lambda: (package / "mod.py").chmod(0o755),
        lambda: (package / "link.py").symlink_to("mod.py"),
        lambda: (package / "empty").mkdir(),
        lambda: (venv / "pyvenv.cfg").write_text("home = /elsewhere\n"),
    ]
    seen = {digest}
    for change in changes:
        change()
        with pytest.raises(VerificationError) as caught:
            resolve_environment(proven)
        assert caught.value.code == "environment-mismatch"
        seen.add(environment_digest(rule))
    assert len(seen) == len(changes) + 1


def test_an_environment_that_others_may_write_is_refused_when_it_must_be_proven(venv: Path) -> None:
    rule = EnvironmentRule(str(venv / "bin/python"))
    proven = EnvironmentRule(rule.python, digest=environment_digest(rule))
    for path in (venv / "lib/python3.11/site-packages", venv / "lib/python3.11/site-packages/mod.py", venv, venv.parent):
        mode = path.stat().st_mode & 0o777
        path.chmod(mode | 0o002)
        with pytest.raises(VerificationError, match="only root can write"):
            resolve_environment(proven)
        path.chmod(mode)
        resolve_environment(proven)


def test_a_data_set_is_proven_as_far_as_its_mode_says(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.csv").write_text("1,2\n")
    digests = {mode: check_data_set("d", DataSetRule(str(data), mode)) for mode in ("none", "listing", "full")}
    assert digests["none"] is None
    listing = DataSetRule(str(data), "listing", digests["listing"])
    full = DataSetRule(str(data), "full", digests["full"])
    (data / "a.csv").write_text("1,3\n")
    check_data_set("d", listing)
    with pytest.raises(VerificationError) as caught:
        check_data_set("d", full)
    assert caught.value.code == "data-set-mismatch"
    (data / "b.csv").write_text("")
    with pytest.raises(VerificationError):
        check_data_set("d", listing)
    with pytest.raises(VerificationError):
        check_data_set("d", DataSetRule(str(tmp_path / "missing")))


def test_a_digest_of_what_just_changed_is_not_remembered(venv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second change within the same tick of the kernel's clock could leave every fact that stat tells as it was."""
    monkeypatch.setattr(environments, "_DIGESTS", OrderedDict())
    (tmp_path / "a.csv").write_text("1\n")
    data, rule = DataSetRule(str(tmp_path / "a.csv"), "full"), EnvironmentRule(str(venv / "bin/python"))
    monkeypatch.setattr(tree, "time", SimpleNamespace(time_ns=lambda: (tmp_path / "a.csv").stat().st_ctime_ns))
    check_data_set("d", data), environment_digest(rule)
    assert not environments._DIGESTS
    monkeypatch.undo()
    monkeypatch.setattr(environments, "_DIGESTS", OrderedDict())
    rest()
    assert check_data_set("d", data) and environment_digest(rule)
    assert len(environments._DIGESTS) == 2  # the control: what rests is read once


def test_a_data_set_may_be_one_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1\n")
    digest = check_data_set("d", DataSetRule(str(tmp_path / "a.csv"), "full"))
    (tmp_path / "beside.csv").write_text("2\n")
    assert check_data_set("d", DataSetRule(str(tmp_path / "a.csv"), "full", digest)) == digest
