# SPDX-License-Identifier: Apache-2.0
"""`scaleoutctl completion SHELL`: the script that makes a shell complete both programs' commands and options (click's)."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

PROGRAMS = ("scaleoutctl", "scaleoutd")
SHELLS: dict[str, type[ShellComplete]] = {"bash": BashComplete, "fish": FishComplete, "zsh": ZshComplete}


class _Bash(BashComplete):
    """Without the check of the bash that is here: the script may be meant for another computer."""

    @staticmethod
    def _check_version() -> None:
        return


@click.command("completion")
@click.argument("shell", type=click.Choice(sorted(SHELLS)))
def completion(shell: str) -> None:
    """Print the completion script of SHELL for scaleoutctl and scaleoutd.

    \b
    Examples:
      scaleoutctl completion bash > ~/.local/share/bash-completion/completions/scaleoutctl
      source <(scaleoutctl completion zsh)
    """
    for program in PROGRAMS:
        click.echo(script(shell, program))


def script(shell: str, program: str) -> str:
    """The script for one program; packages put it into the shell's own folder."""
    kind = _Bash if shell == "bash" else SHELLS[shell]
    return kind(click.Group(program), {}, program, f"_{program.upper()}_COMPLETE").source()
