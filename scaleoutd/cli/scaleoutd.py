# SPDX-License-Identifier: Apache-2.0
"""`scaleoutd`: the node.  `scaleoutd client start` is the official client's command line (PROTOCOL.md section 2)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import click

from scaleoutd import __version__
from scaleoutd.cli.enroll import enroll
from scaleoutd.cli.main import run_command
from scaleoutd.cli.start import start_node
from scaleoutd.cli.startoptions import settle
from scaleoutd.cli.token import read_token, take_off_command_line

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)
LEVELS = click.Choice(["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"])
NO_EFFECT = "accepted, without effect"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="scaleoutd")
def scaleoutd() -> None:
    """A federated-learning node for places where nobody may push code.

    \b
    Example:
      scaleoutd client start --api-url https://api.example.org --token-file token --local-package
    """


@scaleoutd.group()
def client() -> None:
    """Run this node as a client of a combiner.

    \b
    Example:
      scaleoutd client start --api-url https://api.example.org --token-file token --local-package
    """


client.add_command(enroll)


@client.command()
@click.option("-u", "--api-url", default="", metavar="URL", help="address of the API; https, also without a scheme")
@click.option("-p", "--api-port", default="", metavar="PORT", help="port of the API, when it is not in the URL")
@click.option("--token", metavar="TOKEN", help="enrollment or refresh token; taken off the command line at once")
@click.option("--token-fd", type=int, hidden=True)
@click.option("--token-file", type=click.Path(path_type=Path), metavar="FILE", help="file with the token, - for standard input")
@click.option("--local-package", is_flag=True, help="run the local project; the only way there is, accepted for habit")
@click.option("--project", type=FOLDER, help="project folder [this one, or ./client]")
@click.option("-i", "--client-id", default="", metavar="ID", help="client id; its token may lie in the official cache")
@click.option("-n", "--name", default="", help="name of this client")
@click.option("-in", "--init", type=FILE, metavar="FILE", help="YAML that `client enroll` wrote")
@click.option("--ca", type=FILE, help="the only CA that is trusted, PEM")
@click.option("--cert", type=FILE, help="client certificate, PEM")
@click.option("--key", type=FILE, help="its private key, PEM")
@click.option("--state-dir", type=FOLDER, help="where state and trail are kept")
@click.option("--policy", type=FILE, help="policy.yaml; without it: development mode")
@click.option("--data", "data_sets", multiple=True, metavar="ID=PATH", help="a data set for the steps (development mode)")
@click.option("-c", "--preferred-combiner", default="", metavar="NAME", help="combiner to ask the API for")
@click.option("--combiner", default="", metavar="HOST", help="go to this combiner, whatever the API says")
@click.option("--combiner-port", default="", metavar="PORT", help="its port")
@click.option("-hp", "--helper_type", default="", metavar="HELPER", help="numpyhelper; binaryhelper: models are opaque bytes")
@click.option("--poll-interval", type=click.FloatRange(0.05, 3600), metavar="SECONDS", help="seconds between polls  [5]")
@click.option("--log-level", type=LEVELS, default="INFO", show_default=True)
@click.option("-v", "--verbose", is_flag=True, help="--log-level DEBUG: each stage of a task")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="text on a terminal, else json")
@click.option("--dispatcher", is_flag=True, hidden=True, help=NO_EFFECT)
@click.option("--disable-managed-env", is_flag=True, hidden=True, help=NO_EFFECT)
@click.option("-va", "--validator", hidden=True, help=NO_EFFECT)
@click.option("-tr", "--trainer", hidden=True, help=NO_EFFECT)
@click.option("--remote-package", is_flag=False, flag_value="__default__", hidden=True, help="refused")
def start(
    token: str | None,
    token_fd: int | None,
    token_file: Path | None,
    data_sets: tuple[str, ...],
    **given: object,
) -> int:
    """Connect to a combiner and run its tasks on the local project.

    Every flag and SCALEOUT_* variable of the official client is accepted; what has no effect here is told at the start.

    \b
    Examples:
      scaleoutd client start --api-url https://api.example.org --token-file token --local-package
      scaleoutd client start --init 0f3c….yaml --data samples=/data/samples.csv
      scaleoutd client start --api-url api.example.org --policy policy.yaml --ca ca.pem --cert node.pem --key node.key
    """
    found = token or read_token(token_fd, token_file)
    options = settle(given, token=found, data_sets=data_sets, environment=os.environ)
    os.umask(0o077)
    return start_node(options)


def main() -> NoReturn:
    take_off_command_line()
    run_command(scaleoutd)


if __name__ == "__main__":
    main()
