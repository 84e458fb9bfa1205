# SPDX-License-Identifier: Apache-2.0
"""`scaleout.yaml`: the entry points of a project, as the official client knows them (PROTOCOL.md section 2).

A command is split here, when the project is signed, by the rules of a POSIX shell's words but without a shell: what is
signed is the argument vector.  Words that only a shell would understand are refused, not passed on in silence.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from scaleoutd.core.manifest import Command, check_path
from scaleoutd.core.records import Text
from scaleoutd.core.strictjson import Json
from scaleoutd.core.strictyaml import YamlDocument, decode_yaml, load_yaml
from scaleoutd.errors import PolicyDeniedError, VerificationError

PROJECT_FILE = "scaleout.yaml"
IGNORE_FILE = ".scaleoutignore"
MAX_COMMAND_CHARS = 64 * 1024  # shlex takes the square of a word's length
STEP_NAMES = ("train", "validate", "predict")

# Never part of a project, whatever .scaleoutignore says: caches that running the code makes, and version control.
DEFAULT_IGNORED = (".git/", "__pycache__/", "*.pyc", ".venv/", ".mypy_cache/", ".ruff_cache/", ".pytest_cache/")

_SHELLS = ("sh", "bash", "dash", "zsh", "ksh")
_OPERATORS = ("&&", "||", "|", ";", "&", "(", ")", "<", ">", ">>", "2>", "2>&1", "&>")


@dataclass(frozen=True)
class Project:
    """Steps as argument vectors; `build` makes the seed model and is no task that a combiner can ask for; `startup` runs
    before the first task.  `startup_file` and `build_file` are the file names that importer projects have in their places."""

    steps: Mapping[str, tuple[str, ...]]
    build: tuple[str, ...] | None = None
    startup_file: str | None = None
    startup: tuple[str, ...] | None = None
    build_file: str | None = None


@dataclass(frozen=True)
class _EntryPoint:
    command: Command


@dataclass(frozen=True)
class _EntryPoints:
    train: _EntryPoint | None = None
    validate: _EntryPoint | None = None
    predict: _EntryPoint | None = None
    build: _EntryPoint | None = None
    startup: _EntryPoint | None = None


@dataclass(frozen=True)
class _ProjectFile:
    entry_points: _EntryPoints
    python_env: Annotated[str, Text(1024)] | None = None
    name: Annotated[str, Text(256)] | None = field(default=None)


def parse_project(data: bytes, *, name: str = PROJECT_FILE) -> Project:
    """ConfigError `yaml-invalid`, with line and column, for a file that is not a project's."""
    document = load_yaml(data, name=name, root="project")
    value = dict(document.value)
    startup_file = build_file = None
    points = value.get("entry_points")
    if isinstance(points, dict):
        points = dict(points)
        startup_file = _take_file(document, points, "startup")
        build_file = _take_file(document, points, "build")
        value["entry_points"] = {key: _split_command(document, key, item) for key, item in points.items()}
    record = decode_yaml(_ProjectFile, document, value)
    found = record.entry_points
    steps = {step: point.command for step in STEP_NAMES if (point := getattr(found, step)) is not None}
    if not steps and startup_file is None:
        raise document.refuse(
            "entry_points names no step", "project.entry_points", "Name train and validate, or startup for an importer project."
        )
    return Project(steps, _command(found.build), startup_file, _command(found.startup), build_file)


def importer_refusal(startup_file: str) -> PolicyDeniedError:
    """Importer projects need the client inside the process that trains; here the two are kept apart."""
    return PolicyDeniedError(
        f"cannot run the project: it registers callbacks from {startup_file} (importer mode), expected commands for train and"
        " validate (dispatcher mode)",
        code="importer-project",
        hint="Give entry_points `train: {command: python train.py}` and `validate: {command: python validate.py}`: each is called"
        " with the model's file and the file to write.  `scaleoutctl init DIR` makes an example.",
    )


def _command(point: _EntryPoint | None) -> tuple[str, ...] | None:
    return point.command if point is not None else None


def _take_file(document: YamlDocument, points: dict[str, Json], key: str) -> str | None:
    """The file name of an importer entry point (`startup: startup.py`), taken out of `points`."""
    item = points.get(key)
    if not isinstance(item, str):
        return None
    try:
        check_path(item)
    except VerificationError as exc:
        raise document.refuse(exc.message, f"project.entry_points.{key}", exc.hint) from exc
    del points[key]
    return item


def _split_command(document: YamlDocument, key: str, item: Json) -> Json:
    if not isinstance(item, dict) or not isinstance(item.get("command"), str):
        return item
    path = f"project.entry_points.{key}.command"
    if len(item["command"]) > MAX_COMMAND_CHARS:
        raise document.refuse(f"the command has {len(item['command'])} characters, at most {MAX_COMMAND_CHARS} are read", path)
    try:
        words = shlex.split(item["command"])
    except ValueError as exc:
        raise document.refuse(f"the command cannot be split: {exc}", path, "Close the quotes.") from exc
    if not words:
        raise document.refuse("the command is empty", path)
    runs_shell = words[0].rpartition("/")[2] in _SHELLS and "-c" in words[1:3]
    for word in words:
        if not runs_shell and (word in _OPERATORS or "$(" in word or "`" in word or word.startswith("$")):
            raise document.refuse(f"{word[:80]!r} needs a shell, and none is run", path, "Write it as: bash -c '…'")
    return {**item, "command": words}
