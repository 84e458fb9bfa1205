# SPDX-License-Identifier: Apache-2.0
"""A walk over a tree that changes meanwhile."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.living import below, files_below


def make(folder: Path) -> None:
    for name in ("a/one/file", "b/two/file", "c/file"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).touch()


def test_control_everything_is_told_once_and_links_are_not_followed(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "c" / "link").symlink_to(tmp_path / "a")
    names = sorted(str(path.relative_to(tmp_path)) for path in below(tmp_path))
    assert names == ["a", "a/one", "a/one/file", "b", "b/two", "b/two/file", "c", "c/file", "c/link"]
    assert {path.name for path in files_below(tmp_path)} == {"file"}


@pytest.mark.parametrize("becomes", ["nothing", "a file"])
def test_a_folder_that_goes_after_it_was_told_ends_nothing(tmp_path: Path, becomes: str) -> None:
    make(tmp_path)
    told = []
    for path in below(tmp_path):
        told.append(path.name)
        if path.name in ("a", "two"):
            shutil.rmtree(path)
            if becomes == "a file":
                path.touch()
    assert sorted(told) == ["a", "b", "c", "file", "two"]


def test_a_subtree_that_is_left_out_is_not_entered(tmp_path: Path) -> None:
    make(tmp_path)
    assert sorted(path.name for path in below(tmp_path, leave_out=("a", "two"))) == ["b", "c", "file"]


def test_the_folder_itself_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(below(tmp_path / "missing"))
