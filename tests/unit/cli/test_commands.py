# SPDX-License-Identifier: Apache-2.0
"""Every command of both programs, as a table: help with an example, refusal of what is unknown, manual pages, completion."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from scaleoutd.cli.scaleoutctl import COMMANDS, scaleoutctl
from scaleoutd.cli.scaleoutd import scaleoutd

ROOT = Path(__file__).resolve().parents[3]
MANUALS = {"scaleoutctl": ROOT / "docs" / "man" / "scaleoutctl.1", "scaleoutd": ROOT / "docs" / "man" / "scaleoutd.1"}


def walk(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path[-1])
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from walk(found, (*path, name))


TABLE = dict([*walk(scaleoutctl, ("scaleoutctl",)), *walk(scaleoutd, ("scaleoutd",))])
ALL = pytest.mark.parametrize("path", TABLE, ids=" ".join)


def call(path: tuple[str, ...], *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The program as a process, without a terminal."""
    start = f"import sys; sys.argv[0] = {path[0]!r}; from scaleoutd.cli.{path[0]} import main; main()"
    return subprocess.run(
        [sys.executable, "-c", start, *path[1:], *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


@ALL
def test_help_has_an_example_that_calls_the_command(path: tuple[str, ...]) -> None:
    run = call(path, "--help")
    assert run.returncode == 0 and run.stderr == ""
    assert re.search(r"^  Examples?:$", run.stdout, re.MULTILINE), f"{' '.join(path)} has no example"
    example = run.stdout.partition("Example")[2]
    # A group's example shows one of its commands.
    assert " ".join(path) in example, f"the example of {' '.join(path)} does not call it"


@ALL
def test_an_unknown_option_is_a_usage_error(path: tuple[str, ...]) -> None:
    run = call(path, "--no-such-option")
    assert run.returncode == 64, run.stderr
    assert "--no-such-option" in run.stderr and run.stdout == ""
    assert "Traceback" not in run.stderr


@ALL
def test_without_a_terminal_nothing_is_coloured(path: tuple[str, ...]) -> None:
    for arguments in (("--help",), ("--no-such-option",)):
        run = call(path, *arguments)
        assert "\x1b" not in run.stdout + run.stderr


@ALL
def test_examples_in_help_use_options_that_exist(path: tuple[str, ...]) -> None:
    known = {
        flag
        for command in TABLE.values()
        for parameter in command.params
        for flag in (*parameter.opts, *parameter.secondary_opts)
    }
    example = (TABLE[path].help or "").partition("Example")[2]
    for flag in re.findall(r"(?<!\S)--[a-z-]+", example):
        assert flag in known, f"{' '.join(path)}: {flag}"


def test_the_list_of_scaleoutctl_names_modules_that_have_the_command() -> None:
    context = click.Context(scaleoutctl)
    for name, (_, line) in COMMANDS.items():
        command = scaleoutctl.get_command(context, name)
        assert command is not None and command.name == name and line.endswith(".")


def test_an_unknown_command_is_a_usage_error() -> None:
    run = call(("scaleoutctl",), "no-such-command")
    assert run.returncode == 64 and "no-such-command" in run.stderr


# --- completion ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"), [("scaleoutctl st", "status"), ("scaleoutctl audit ta", "tail"), ("scaleoutctl diff --js", "--json")]
)
def test_bash_completion_answers(words: str, expected: str) -> None:
    count = str(len(words.split()) - 1)
    run = call(("scaleoutctl",), _SCALEOUTCTL_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=count)
    assert expected in run.stdout, run.stderr


@pytest.mark.parametrize("shell", ["bash", "fish", "zsh"])
def test_the_completion_script_names_both_programs(shell: str) -> None:
    run = call(("scaleoutctl", "completion"), shell)
    assert run.returncode == 0
    for name in ("_SCALEOUTCTL_COMPLETE", "_SCALEOUTD_COMPLETE"):
        assert f"{name}={shell}_complete" in run.stdout


def test_bash_reads_the_script() -> None:
    script = call(("scaleoutctl", "completion"), "bash").stdout
    run = subprocess.run(
        ["bash", "-c", f"{script}\ncomplete -p scaleoutctl scaleoutd"], capture_output=True, text=True, timeout=20
    )
    assert run.returncode == 0 and run.stderr == "", run.stderr


# --- manual pages -------------------------------------------------------------------------------------------------


def plain(path: Path) -> str:
    """A manual's source with its escapes resolved."""
    return re.sub(r"\\f[BIRP]", " ", path.read_text()).replace("\\-", "-").replace("\\(aq", "'")


@ALL
def test_the_manual_mentions_every_command_and_option(path: tuple[str, ...]) -> None:
    text = plain(MANUALS[path[0]])
    if len(path) > 1:
        assert re.search(rf"^\.SS {re.escape(' '.join(path[1:]))}\b", text, re.MULTILINE) or isinstance(TABLE[path], click.Group)
    section = text if len(path) == 1 else text.partition(f".SS {' '.join(path[1:])}")[2].partition("\n.S")[0]
    for parameter in TABLE[path].params:
        if isinstance(parameter, click.Option) and not parameter.hidden and not isinstance(TABLE[path], click.Group):
            for flag in parameter.opts:
                assert re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", section), (
                    f"{' '.join(path)} {flag} is not in the manual"
                )


@pytest.mark.parametrize("program", MANUALS)
def test_the_manual_has_no_command_that_is_gone(program: str) -> None:
    for name in re.findall(r"^\.SS (.+)$", plain(MANUALS[program]), re.MULTILINE):
        assert (program, *name.split()) in TABLE, f"{program}.1 describes {name}"


@pytest.mark.parametrize("program", MANUALS)
def test_the_manual_is_free_of_warnings(program: str) -> None:
    """groff is what man(1) uses; -ww warns of everything, and a warning is an error here."""
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("groff is not installed")
    run = subprocess.run(
        [groff, "-man", "-Tutf8", "-ww", "-z", str(MANUALS[program])], capture_output=True, text=True, timeout=30
    )
    assert run.returncode == 0 and run.stderr == "", run.stderr
