# SPDX-License-Identifier: Apache-2.0
"""`scaleoutd`: the node.  `scaleoutd client start` is the official client's command line (PROTOCOL.md section 2)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import click

from scaleoutd import __version__
from scaleoutd.cli.main import run_command
from scaleoutd.cli.start import StartOptions, start_node
from scaleoutd.cli.token import read_token, take_off_command_line


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="scaleoutd")
def scaleoutd() -> None:
    """A federated-learning node for places where nobody may push code."""


@scaleoutd.group()
def client() -> None:
    """Run this node as a client of a combiner."""


@client.command()
@click.option("-u", "--api-url", required=True, metavar="URL", help="address of the API; https only")
@click.option("--token", metavar="TOKEN", help="enrollment or refresh token; taken off the command line at once")
@click.option("--token-fd", type=int, hidden=True)
@click.option("--token-file", type=click.Path(path_type=Path), metavar="FILE", help="file with the token, - for standard input")
@click.option("--local-package", is_flag=True, help="run the local project; the only way there is, accepted for habit")
@click.option("--project", type=click.Path(path_type=Path, file_okay=False), help="project folder [this one, or ./client]")
@click.option("-i", "--client-id", default="", help="client id")
@click.option("-n", "--name", default="", help="name of this client")
@click.option("--ca", type=click.Path(path_type=Path, dir_okay=False), help="the only CA that is trusted, PEM")
@click.option("--cert", type=click.Path(path_type=Path, dir_okay=False), help="client certificate, PEM")
@click.option("--key", type=click.Path(path_type=Path, dir_okay=False), help="its private key, PEM")
@click.option("--state-dir", type=click.Path(path_type=Path, file_okay=False), help="where state and trail are kept")
@click.option("--policy", type=click.Path(path_type=Path, dir_okay=False), help="policy.yaml; without it: development mode")
@click.option("--data", "data_sets", multiple=True, metavar="ID=PATH", help="a data set for the steps (development mode)")
@click.option("-c", "--preferred-combiner", default="", help="combiner to ask the API for")
@click.option("--poll-interval", type=click.FloatRange(0.05, 3600), default=5.0, show_default=True, help="seconds between polls")
@click.option("--log-level", type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]), default="INFO")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="text on a terminal, else json")
def start(
    token: str | None,
    token_fd: int | None,
    token_file: Path | None,
    data_sets: tuple[str, ...],
    local_package: bool,
    **given: object,
) -> int:
    """Connect to a combiner and run its tasks on the local project.

    \b
    Example:
      scaleoutd client start --api-url https://api.example.org --token-file token --local-package
    """
    options = StartOptions.of(token=token or read_token(token_fd, token_file), data_sets=data_sets, **given)
    os.umask(0o077)
    return start_node(options)


def main() -> NoReturn:
    take_off_command_line()
    run_command(scaleoutd)


if __name__ == "__main__":
    main()
