# SPDX-License-Identifier: Apache-2.0
"""scaleout.yaml and .scaleoutignore: how a project is run, and what is no part of it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from scaleoutd.core.ignore import IgnoreRules, parse_ignore_file
from scaleoutd.core.project import parse_project
from scaleoutd.errors import ConfigError, FormatError

HEAD = "entry_points:\n"


def test_a_dispatcher_project() -> None:
    project = parse_project(
        b"python_env: python_env.yaml\nentry_points:\n  build: {command: python build.py}\n"
        b"  train: {command: 'python \"my train.py\" --x 1'}\n  validate:\n    command: [python, validate.py]\n"
    )
    assert project.steps == {"train": ("python", "my train.py", "--x", "1"), "validate": ("python", "validate.py")}
    assert project.build == ("python", "build.py")
    assert project.startup_file is None


def test_an_importer_project() -> None:
    project = parse_project(b"entry_points:\n  build: build\n  startup: startup.py\n")
    assert (project.startup_file, project.build, project.steps) == ("startup.py", None, {})


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (HEAD + "  trian: {command: x}\n", "Did you mean train?"),
        (HEAD + "  train: {comand: x}\n", "Did you mean command?"),
        ("entrypoints: {}\n", "Did you mean entry_points?"),
        (HEAD + "  train: python train.py\n", "line 2, column 3"),
        (HEAD + "  train: {command: ''}\n", "the command is empty"),
        (HEAD + '  train: {command: "python \'x"}\n', "No closing quotation"),
        (HEAD + "  train: {command: python a.py && rm b}\n", "'&&' needs a shell"),
        (HEAD + "  train: {command: python a.py > log}\n", "'>' needs a shell"),
        (HEAD + "  train: {command: $PYTHON a.py}\n", "needs a shell"),
        (HEAD + "  train: {command: 'python `a`'}\n", "needs a shell"),
        (HEAD + "  train: {command: 3}\n", "must be an array"),
        (HEAD + "  startup: ../startup.py\n", "'..' component"),
        (HEAD + "  build: {command: x}\n", "names no step"),
        ("{}\n", "entry_points is missing"),
    ],
)
def test_refused_with_its_place_and_the_next_step(text: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_project(text.encode())
    assert caught.value.code == "yaml-invalid"
    assert part in caught.value.message + caught.value.hint


def test_a_shell_may_be_named() -> None:
    project = parse_project(b"entry_points:\n  train: {command: bash -c 'python a.py > log && true'}\n")
    assert project.steps["train"] == ("bash", "-c", "python a.py > log && true")


PATTERNS = (
    "*.pyc", "build/", "/top.txt", "docs/*.md", "**/cache/", "a/**/z", "logs/**", "!keep.pyc", "[ab].txt", "x?z", "\\!bang",
    "*.log", "!important.log",
)  # fmt: skip
PATHS = (
    "m.pyc", "d/m.pyc", "keep.pyc", "build/x", "d/build/x", "build.py", "top.txt", "d/top.txt", "docs/a.md", "docs/d/a.md",
    "cache/x", "d/cache/x", "a/z", "a/b/z", "a/b/c/z", "logs/x", "logs/d/x", "a.txt", "c.txt", "xyz", "x/z", "!bang", "q.log",
    "d/important.log", "plain",
)  # fmt: skip


def is_ignored(rules: IgnoreRules, path: str) -> bool:
    parts = path.split("/")
    return any(rules.ignores("/".join(parts[:count]), is_folder=count < len(parts)) for count in range(1, len(parts) + 1))


@pytest.mark.skipif(shutil.which("git") is None, reason="git, the oracle, is not installed")
def test_patterns_ignore_what_git_ignores(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text("\n".join(PATTERNS) + "\n")
    asked = subprocess.run(
        ["git", "-C", str(tmp_path), "check-ignore", "--no-index", "-v", "-n", "--stdin"],
        input="\n".join(PATHS), capture_output=True, text=True, check=False,
    )  # fmt: skip
    by_git = {}
    for line in asked.stdout.splitlines():
        rule, path = line.split("\t")
        by_git[path] = not rule.startswith("::") and not rule.rpartition(":")[2].startswith("!")
    rules = IgnoreRules(PATTERNS)
    assert {path: is_ignored(rules, path) for path in PATHS} == by_git


def test_comments_and_blanks_are_no_patterns() -> None:
    assert parse_ignore_file("# a\n\n*.csv  \n!x\n") == ("*.csv", "!x")


@pytest.mark.parametrize("patterns", [["a" * 300], ["a\x01"], ["x"] * 600, ["[z-a]"]])
def test_bad_patterns_are_refused(patterns: list[str]) -> None:
    with pytest.raises(FormatError):
        IgnoreRules(patterns)


def test_a_pattern_of_many_stars_is_decided_quickly() -> None:
    rules = IgnoreRules(["*a" * 12 + "*b"])
    assert not rules.ignores("a" * 60, is_folder=False)
