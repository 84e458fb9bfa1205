# SPDX-License-Identifier: Apache-2.0
"""`scaleoutctl combiner`: the development combiner for a person: started here, with the line that connects a node, and rounds.

Loopback only, everything in one folder: `token` and `ca.pem` are what a node needs, `control` is the socket by which
`combiner round` asks.  They go away at the end, so that a token of yesterday is not mistaken for one of today.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import click

from scaleoutd.cli.build import build_seed
from scaleoutd.cli.combinerdoor import ask, doors
from scaleoutd.cli.foreground import Folders, default_state
from scaleoutd.cli.start import find_project, node_policy_of
from scaleoutd.cli.terminal import escape, fail, say
from scaleoutd.cli.training import Order, Training, watch
from scaleoutd.core.project import PROJECT_FILE
from scaleoutd.devcombiner.server import DevCombiner
from scaleoutd.durable import make_private_folder, storage_errors
from scaleoutd.errors import ConfigError, ScaleoutError, TransportError

HOST = "127.0.0.1"  # by address: it is resolved everywhere
PORT = 8600
FOLDER = Path("combiner")
WAIT_S = 900.0  # for the nodes of --rounds

folder_argument = click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default=FOLDER)
project_option = click.option(
    "--project", type=click.Path(path_type=Path, file_okay=False), help="take the seed model of this project, built if need be"
)
nodes_option = click.option("--nodes", type=click.IntRange(1, 100), default=1, show_default=True, help="to wait for")


@click.group()
def combiner() -> None:
    """A combiner on this machine, to try a node with.

    \b
    Example:
      scaleoutctl combiner start
    """


@combiner.command()
@folder_argument
@click.option("--port", type=click.IntRange(1, 65535), default=PORT, show_default=True, help="of the API, on loopback")
@click.option("--rounds", type=click.IntRange(1, 1000), help="train so many rounds as soon as the nodes are there")
@nodes_option
@project_option
def start(folder: Path, port: int, rounds: int | None, nodes: int, project: Path | None) -> int:
    """Run a combiner in FOLDER until Ctrl-C, and say how a node is connected to it.

    \b
    Examples:
      scaleoutctl combiner start
      scaleoutctl combiner start --project my-project --rounds 3
    """
    if rounds is not None and project is None:
        raise ConfigError(
            "cannot start rounds: no model to begin with is named", hint="Add --project DIR.", code="config-missing"
        )
    seed = seed_of(project) if project is not None else None
    make_empty(folder)
    running = DevCombiner(folder=folder / "server", client_certificate="none", hostname=HOST, rest_port=port)
    try:
        try:
            running.start()
        except OSError as exc:
            raise ConfigError(
                f"cannot start a combiner on {HOST}:{port}: {os.strerror(exc.errno or 0)}",
                hint="Is one running already? If it is another program, name another port with --port.",
            ) from exc
        training = Training(running)
        write_entry(folder, running)
        greet(folder, port, seed is not None, rounds)
        with doors(folder, training), until_signal() as ended:
            threading.Thread(target=watch, args=[running, say, ended], daemon=True).start()
            if seed is not None and rounds is not None:
                order = Order(rounds, nodes, str(seed.absolute()), {}, WAIT_S)
                threading.Thread(target=train, args=[training, order], daemon=True).start()
            ended.wait()
    finally:
        running.stop()
        remove(folder)
    say("the combiner has ended; nodes go on trying to reach it until they are stopped")
    return 0


@combiner.command("round")
@folder_argument
@click.option("--rounds", type=click.IntRange(1, 1000), default=1, show_default=True)
@nodes_option
@project_option
@click.option("--seed", type=click.Path(path_type=Path, dir_okay=False, exists=True), help="begin with this model")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="client_settings for the steps; JSON values")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="write the trained model (npz) here")
@click.option("--timeout", type=click.FloatRange(1, 3600), default=60.0, show_default=True, help="seconds a round may take")
def round_(
    folder: Path,
    rounds: int,
    nodes: int,
    project: Path | None,
    seed: Path | None,
    settings: tuple[str, ...],
    out: Path | None,
    timeout: float,
) -> int:
    """Have the combiner in FOLDER train: on from its last model, or from --project or --seed.

    \b
    Examples:
      scaleoutctl combiner round --project my-project
      scaleoutctl combiner round --rounds 3 --set epochs=8 --out trained.npz
    """
    if seed is None and project is not None:
        seed = seed_of(project)
    begin = str(seed.absolute()) if seed else ""
    order = Order(rounds, nodes, begin, parse_settings(settings), timeout, str(out.absolute()) if out else "")
    for answer in ask(folder, order.as_json()):
        if "say" in answer:
            click.echo(escape(str(answer["say"])))
        elif "code" in answer:
            kind = TransportError if answer["code"] == "transport-failed" else ConfigError
            raise kind(str(answer["message"]), code=str(answer["code"]), hint=str(answer["hint"]))
        else:
            return int(answer["failed"] > 0)
    raise TransportError(
        f"cannot finish the round: the combiner in {folder} ended", hint="Start it: `scaleoutctl combiner start`."
    )


def parse_settings(given: tuple[str, ...]) -> dict[str, Any]:
    """KEY=VALUE pairs; a value that is no JSON is a text."""
    found: dict[str, Any] = {}
    for pair in given:
        key, mark, value = pair.partition("=")
        if not mark or not key:
            raise ConfigError(f"cannot use --set {pair[:200]}: expected KEY=VALUE", hint="For example: --set epochs=8")
        try:
            found[key] = json.loads(value)
        except (ValueError, RecursionError):
            found[key] = value
    return found


def seed_of(project: Path) -> Path:
    """The project's seed.npz, made by its `build` command where it is missing."""
    folder = find_project(project)
    seed = folder / "seed.npz"
    if not seed.exists():
        policy, _ = node_policy_of(folder, None, {})
        build_seed(Folders(default_state(f"{policy.project.name}-local")), policy, seed)
        say(f"built {seed.name} with the project's build command")
    return seed


def make_empty(folder: Path) -> None:
    """The combiner's folder; what an earlier one left there after a hard end is named, not removed."""
    found = sorted(folder.iterdir()) if folder.exists() else []
    if found:
        ours = (folder / "token").exists() and (folder / "server").is_dir()
        raise ConfigError(
            f"cannot start a combiner in {folder}: expected a new or empty folder, found {found[0].name}",
            hint=f"If no combiner runs there any more: `rm -r {folder}`." if ours else "Name another folder.",
        )
    inside = next((parent for parent in folder.absolute().parents if (parent / PROJECT_FILE).exists()), None)
    if inside is not None:
        raise ConfigError(
            f"cannot start a combiner in {folder}: {inside} is a project, the token would be signed and shown to its steps",
            hint="Go up (`cd ..`) or name a folder outside.",
        )
    make_private_folder(folder)


def remove(folder: Path) -> None:
    """What the combiner made, and no file of somebody else that lies beside it."""
    shutil.rmtree(folder / "server", ignore_errors=True)
    for name in ("token", "ca.pem", "control"):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):  # not empty
        folder.rmdir()


def write_entry(folder: Path, running: DevCombiner) -> None:
    """What a node needs."""
    with storage_errors(f"write to {folder}"):
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(running.mint_enrollment(lifetime_s=86400))
        (folder / "ca.pem").write_bytes(running.ca_file.read_bytes())


def greet(folder: Path, port: int, has_seed: bool, rounds: int | None) -> None:
    say(f"a combiner for trying things out is running on https://{HOST}:{port}, for this machine only")
    say("connect a node, in a terminal in its project's folder:", mark="\n")
    say(f"scaleoutd client start --api-url https://{HOST}:{port} --token-file {folder.absolute() / 'token'} \\", mark="  ")
    say(f"    --ca {folder.absolute() / 'ca.pem'} --local-package", mark="  ")
    if rounds is None:
        where = "" if folder == FOLDER else f" {folder}"
        say("have it train, in a third terminal:", mark="\n")
        say(f"scaleoutctl combiner round{where}{'' if has_seed else ' --project DIR'}", mark="  ")
    say("Ctrl-C ends it\n", mark="\n")


def train(training: Training, order: Order) -> None:
    try:
        for line, learned in training.rounds(order):
            say(escape(line), colour="green" if learned else "red")
    except ScaleoutError as exc:
        fail(exc.message, exc.code, exc.hint)


@contextmanager
def until_signal() -> Iterator[threading.Event]:
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    yield ended
