# SPDX-License-Identifier: Apache-2.0
"""`scaleoutctl`: keys, signatures, single steps, the trail, and what a person wants to know of a node.

A command's module is imported when the command is used: `doctor` must work where a package is missing, and none should wait
for the imports of another.
"""

from __future__ import annotations

import importlib
from typing import NoReturn

import click

from scaleoutd import __version__
from scaleoutd.cli.main import run_command
from scaleoutd.errors import ConfigError

# Command → module, and one line for the list.
COMMANDS: dict[str, tuple[str, str]] = {
    "approve-session": ("approve", "Let a session run, as the second person that the policy asks for."),
    "audit": ("audit", "Verify and read an audit trail, or a copy of one."),
    "build": ("build", "Make the seed model with the project's build command."),
    "combiner": ("combiner", "A combiner on this machine to try a node with, and rounds of it."),
    "completion": ("completion", "Print the completion script of bash or zsh."),
    "config": ("config", "Write and check the configuration of an installed node."),
    "demo": ("demo", "A combiner, two nodes and three rounds on this machine."),
    "diff": ("diff", "Say what another manifest changes, with a fingerprint to read out."),
    "doctor": ("doctor", "Say whether this host can run a node, and what to do where it cannot."),
    "drain": ("control", "Take no new task; end and deliver what was begun."),
    "enroll": ("nodeenroll", "Register an installed node with an enrollment token."),
    "env": ("env", "Digests of the environments and data sets of a policy: lock and check."),
    "explain": ("explain", "Say what a step will see, may do and may send."),
    "identity": ("identity", "Request, install and show the client certificate of an installed node."),
    "init": ("init", "Make a small project."),
    "keygen": ("keygen", "Make a signing key."),
    "pause": ("control", "Let no run begin, over reboots too, until resume."),
    "policy": ("policycommand", "Put the policy into force: policy.lock and the units' limits."),
    "project": ("project", "Install the project of an installed node, and go back."),
    "reload": ("control", "Have the rooms read certificates and policy again."),
    "resume": ("control", "Take back pause and drain."),
    "run": ("run", "Run one step of the local project without a server."),
    "sign": ("sign", "Sign a project: every file, how it is run, and for how long."),
    "status": ("status", "Say how a node is: running, project, last task, errors, trail, disk."),
    "tasks": ("status", "List a node's tasks with their states."),
    "trust": ("trust", "Make the trust root of a node."),
    "verify": ("sign", "Prove that a project is exactly what was signed."),
    "why": ("why", "Explain an error code: causes, what to do, the event that carries it."),
}


class Commands(click.Group):
    """The commands of `COMMANDS`, imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _ = COMMANDS[cmd_name]
        try:
            found: click.Command = getattr(importlib.import_module(f"scaleoutd.cli.{module}"), cmd_name.replace("-", "_"))
        except ModuleNotFoundError as exc:
            raise ConfigError(
                f"cannot run {cmd_name}: the package of module {exc.name} is not installed",
                code="config-missing",
                hint="See which one: `scaleoutctl doctor`.",
            ) from exc
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="scaleoutctl")
def scaleoutctl() -> None:
    """Keys, signatures, single steps and the audit trail of a scaleoutd node.

    \b
    Example:
      scaleoutctl doctor && scaleoutctl init my-project
    """


def main() -> NoReturn:
    run_command(scaleoutctl)


if __name__ == "__main__":
    main()
