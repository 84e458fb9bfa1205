# SPDX-License-Identifier: Apache-2.0
"""`scaleoutctl run`: one step alone, through every stage, without a server."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from scaleoutd.cli.foreground import Folders, Node, default_state
from scaleoutd.cli.main import show_error
from scaleoutd.cli.offer import offer_locally
from scaleoutd.cli.shell import open_shell
from scaleoutd.cli.start import node_policy_of, parse_data_sets
from scaleoutd.cli.terminal import StepOutput, escape, say
from scaleoutd.core.plan import Task
from scaleoutd.errors import ConfigError, ScaleoutError


@click.command()
@click.argument("task", type=click.Choice(["train", "validate", "predict"]))
@click.option("--project", type=click.Path(path_type=Path, file_okay=False), help="project folder [this one, or ./client]")
@click.option("--in", "model", type=click.Path(path_type=Path, dir_okay=False, exists=True), required=True, help="the model")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="where the result goes: update (train) or JSON")
@click.option("--settings", default="", metavar="JSON", help="client_settings for the step")
@click.option("--policy", type=click.Path(path_type=Path, dir_okay=False), help="policy.yaml; without it: development mode")
@click.option("--data", "data_sets", multiple=True, metavar="ID=PATH", help="a data set for the step (development mode)")
@click.option("--state-dir", type=click.Path(path_type=Path, file_okay=False), help="where state and trail are kept")
@click.option("--shell", is_flag=True, help="a shell in the step's sandbox instead of the step (development mode)")
@click.option("--json", "as_json", is_flag=True, help="one JSON object on standard output")
def run(
    task: Task,
    project: Path | None,
    model: Path,
    out: Path | None,
    settings: str,
    policy: Path | None,
    data_sets: tuple[str, ...],
    state_dir: Path | None,
    shell: bool,
    as_json: bool,
) -> int:
    """Run one step of the local project: proven, confined and on record, without a server.

    \b
    Examples:
      scaleoutctl build && scaleoutctl run train --in seed.npz --out update.zip
      scaleoutctl run train --in seed.npz --shell
    """
    if shell and policy is not None:
        raise ConfigError(
            "cannot open a shell: a policy is in force, and a shell is for the development mode",
            hint="Leave --policy out; the sandbox is the same.",
        )
    if shell and (as_json or out):
        raise ConfigError("cannot open a shell with --json or --out: nothing of it is a result", hint="Leave them out.")
    node = None
    try:
        found, signer = node_policy_of(project, policy, parse_data_sets(data_sets))
        folders = Folders(state_dir.absolute() if state_dir else default_state(f"{found.project.name}-local"))
        if shell:
            return open_shell(folders, found, task, model, settings)
        node = Node(folders, found, output=StepOutput(), signer=signer)
        node.rooms.start()
        began = time.monotonic()
        result = offer_locally(node.rooms, task, model, settings=settings, save_to=out, on_stage=lambda name: None)
        wall_s = time.monotonic() - began
    except ScaleoutError as exc:
        if node is None or exc.message not in node.told:
            show_error(exc)
        if as_json:
            click.echo(json.dumps({"ok": False, "code": exc.code, "message": exc.message, "hint": exc.hint}))
        return exc.exit_status
    finally:
        if node is not None:
            node.stop()
    released = result.released
    if as_json:
        body = json.loads(released.body)
        told = {"ok": True, "run": released.run, "result": body, "sha256": released.sha256, "bytes": released.size_bytes}
        click.echo(json.dumps({**told, "withheld": list(released.withheld), "trail": str(folders.audit)}))
        return 0
    say(f"{task} done in {wall_s:.2f} s: {escape(released.body)}")
    if released.withheld:
        say(f"withheld by the policy: {escape(', '.join(released.withheld))}")
    if result.file is not None:
        what = f"update: {result.file} ({released.size_bytes} bytes, sha256 {released.sha256})"
        say(what if task == "train" else f"result: {result.file}")
    say(f"trail: scaleoutctl audit verify {folders.audit}")
    return 0
