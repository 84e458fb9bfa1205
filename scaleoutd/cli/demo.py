# SPDX-License-Identifier: Apache-2.0
"""`scaleoutctl demo`: the main job on one machine, with everything real.

A combiner that demands client certificates, two nodes started by their own command line, three rounds on samples that were
drawn with a known truth, the trail of both verified; then one byte of a node's train.py is changed, and the next task is
refused.  Everything lies in one folder that goes away, unless --keep names one.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from scaleoutd.cli import audit
from scaleoutd.cli.init import write_project
from scaleoutd.cli.keygen import new_private_key, write_key_pair
from scaleoutd.cli.rooms import module_command
from scaleoutd.cli.terminal import escape, say
from scaleoutd.devcombiner.records import RoundRecord
from scaleoutd.devcombiner.server import DevCombiner
from scaleoutd.errors import ScaleoutError, WorkloadError

ROUNDS = 3
PROJECT = "known-truth"
CONNECT_S = 60.0
ROUND_S = 60.0
SETTINGS = {"epochs": 8, "learning_rate": 0.8}


@dataclass
class DemoNode:
    """One node: its folder and its process."""

    name: str
    folder: Path
    seed: int
    process: subprocess.Popen[str] | None = None

    @property
    def project(self) -> Path:
        return self.folder / "project"

    @property
    def state(self) -> Path:
        return self.folder / "state"


@click.command()
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), help="folder to work in and to leave behind")
@click.option("--rounds", type=click.IntRange(1, 20), default=ROUNDS, show_default=True)
@click.option("--quiet", is_flag=True, help="leave out what the steps print")
def demo(keep: Path | None, rounds: int, quiet: bool) -> int:
    """Show the main job on this machine: combiner, two nodes, rounds, trail, a refusal.

    \b
    Example:
      scaleoutctl demo --rounds 5 --keep demo
    """
    began = time.monotonic()
    with ExitStack() as stack:
        folder = keep.absolute() if keep else Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scaleoutd-demo-")))
        folder.mkdir(parents=True, exist_ok=True)
        nodes = [DemoNode(f"node-{number}", folder / f"node-{number}", number) for number in (1, 2)]
        heading("A project, signed; a trust root; a policy for each node")
        prepare(folder, nodes)
        heading("A combiner that demands client certificates, and two nodes")
        # By address: a minimal root has no /etc/hosts.
        combiner = stack.enter_context(DevCombiner(hostname="127.0.0.1"))
        for node in nodes:
            stack.enter_context(running(combiner, node, quiet))
        wait_connected(combiner, nodes)
        heading(f"{rounds} rounds")
        train(combiner, nodes, folder, rounds)
        heading("One byte of node-1's train.py is changed, and another task comes")
        refuse(combiner, nodes[0])
        for node in nodes:
            stop(node)
        heading("The trail of each node")
        for node in nodes:
            show_trail(node)
    say(f"\ndone in {time.monotonic() - began:.1f} s" + (f"; everything lies in {keep}" if keep else ""))
    return 0


def heading(text: str) -> None:
    click.secho(f"\n== {text}", bold=True, err=True)


def prepare(folder: Path, nodes: Sequence[DemoNode]) -> None:
    """Keys, trust root, and for each node project, samples and policy, by the commands a person would use."""
    keys = folder / "keys"
    keys.mkdir(mode=0o700, exist_ok=True)
    for name in ("root", "science"):
        write_key_pair(keys, name, new_private_key("ed25519"))
    say("$ scaleoutctl trust init --sign-with root.key --key ml=science.pub")
    control("trust", "init", "--out", str(folder / "trust"), "--sign-with", str(keys / "root.key"),
            "--key", f"ml={keys / 'science.pub'}")  # fmt: skip
    for node in nodes:
        write_project(node.project)
        samples = node.folder / "samples.csv"
        subprocess.run([sys.executable, "-B", "data.py", str(node.seed), str(samples)], cwd=node.project, check=True)
        policy = node.folder / "policy.yaml"
        policy.write_text(policy_text(node, folder / "trust", samples))
        say(f"$ scaleoutctl sign {node.name}/project --key science.key")
        control("sign", str(node.project), "--key", str(keys / "science.key"), "--name", PROJECT, "--data-set", "samples")
    subprocess.run(
        [sys.executable, "-B", "build.py", str(folder / "seed.npz")],
        cwd=nodes[0].project,
        check=True,
        stdout=subprocess.DEVNULL,
    )


def policy_text(node: DemoNode, trust: Path, samples: Path) -> str:
    return f"""\
version: 1
project: {{name: {PROJECT}, path: {json.dumps(str(node.project))}}}
trust_root: {json.dumps(str(trust))}
environments: {{system: {{python: {json.dumps(system_python())}}}}}
data_sets: {{samples: {{path: {json.dumps(str(samples))}}}}}
limits: {{wall_clock_s: 60s, cpu_s: 60s, memory_bytes: 512MiB, scratch_bytes: 64MiB, model_bytes: 16MiB}}
settings_schema:
  type: object
  properties:
    epochs: {{type: integer, minimum: 1, maximum: 100}}
    learning_rate: {{type: number, minimum: "0", maximum: "10"}}
egress: {{metrics: [loss, accuracy, distance_to_truth], metadata: [loss]}}
"""


def system_python() -> str:
    """An interpreter that the step can reach and that has nothing of ours in it."""
    for path in ("/usr/bin/python3", sys.executable):
        if Path(path).exists():
            return path
    return sys.executable


def control(*arguments: str) -> None:
    """Runs `scaleoutctl`; ScaleoutError with its words when it fails."""
    command = module_command("scaleoutd.cli.scaleoutctl", "scaleoutctl", arguments)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ScaleoutError(f"cannot prepare the demo: scaleoutctl {' '.join(arguments[:2])}: {done.stderr.strip()}")


# --- the nodes ---------------------------------------------------------------------------------------------------


@contextmanager
def running(combiner: DevCombiner, node: DemoNode, quiet: bool) -> Iterator[None]:
    """A node as its own process, by the command that an administrator would write."""
    certificate, key = combiner.issue_client_certificate(node.name)
    token = node.folder / "token"
    token.write_text(combiner.mint_enrollment())
    token.chmod(0o600)
    arguments = [
        "client", "start", "--api-url", combiner.api_url, "--local-package", "--name", node.name,
        "--token-file", str(token), "--ca", str(combiner.ca_file), "--cert", str(certificate), "--key", str(key),
        "--policy", str(node.folder / "policy.yaml"), "--state-dir", str(node.state), "--poll-interval", "0.2",
        "--log-format", "text", "--log-level", "WARNING",
    ]  # fmt: skip
    say(f"$ scaleoutd client start --api-url {combiner.api_url} --local-package --policy {node.name}/policy.yaml …")
    node.process = subprocess.Popen(
        module_command("scaleoutd.cli.scaleoutd", "scaleoutd", arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )
    reader = threading.Thread(target=echo, args=[node, quiet], daemon=True)
    reader.start()
    try:
        yield
    finally:
        stop(node)
        reader.join(5)


def echo(node: DemoNode, quiet: bool) -> None:
    """The node's lines, with its name before them; what steps print stands behind a bar."""
    if node.process is None or node.process.stdout is None:
        return
    for line in node.process.stdout:
        if not (quiet and line.startswith("  │")):
            click.echo(click.style(f"{node.name} ", fg="cyan") + escape(line.rstrip("\n")), err=True)


def stop(node: DemoNode) -> None:
    if node.process is not None and node.process.poll() is None:
        node.process.send_signal(signal.SIGTERM)
        try:
            node.process.wait(20)
        except subprocess.TimeoutExpired:
            node.process.kill()
            node.process.wait()


def wait_connected(combiner: DevCombiner, nodes: Sequence[DemoNode]) -> None:
    wanted = len(nodes)
    if not combiner.board.wait_until(lambda: len(connected(combiner)) >= wanted or any(gone(node) for node in nodes), CONNECT_S):
        raise WorkloadError(f"cannot go on: {len(connected(combiner))} of {wanted} nodes connected after {CONNECT_S:.0f} s")
    for node in nodes:
        if gone(node):
            raise WorkloadError(f"cannot go on: {node.name} ended; its last words stand above")
    say(f"{wanted} nodes connected over mTLS: {', '.join(sorted(connected(combiner).values()))}")


def gone(node: DemoNode) -> bool:
    return node.process is None or node.process.poll() is not None


def connected(combiner: DevCombiner) -> dict[str, str]:
    """Client id → name of the clients that announced themselves."""
    return {client.client_id: client.name for client in list(combiner.board.clients.values()) if client.connected}


# --- the rounds --------------------------------------------------------------------------------------------------


def train(combiner: DevCombiner, nodes: Sequence[DemoNode], folder: Path, rounds: int) -> None:
    """Runs the session and shows loss and distance to the truth, round by round; both must fall."""
    seed = (folder / "seed.npz").read_bytes()
    names = connected(combiner)
    session = combiner.start_session(seed, rounds, len(nodes), ROUND_S, client_settings=SETTINGS)
    losses = []
    for number in range(rounds):
        record = wait_for_round(combiner, number)
        if record is None:
            raise WorkloadError(f"cannot finish round {number + 1}: {session.status}", hint="What the nodes said stands above.")
        metrics = [found for found in record.validations.values() if isinstance(found, dict)]
        losses.append(mean(metrics, "loss"))
        examples = ", ".join(f"{names[client]}: {update.num_examples}" for client, update in sorted(record.updates.items()))
        click.secho(
            f"round {record.number}: loss {losses[-1]:.4f}, accuracy {mean(metrics, 'accuracy'):.3f},"
            f" distance to the truth {mean(metrics, 'distance_to_truth'):.3f}   (examples: {examples})",
            fg="green",
        )
    combiner.wait_session(ROUND_S)
    if sorted(losses, reverse=True) != losses or len(set(losses)) != len(losses):
        raise WorkloadError(f"cannot be satisfied: the loss did not fall round by round: {losses}")


def wait_for_round(combiner: DevCombiner, number: int) -> RoundRecord | None:
    """Round `number` (from 0) when every node has delivered its update and its validation, else None."""
    history = combiner.history

    def is_over() -> bool:
        record = history[number] if len(history) > number else None
        return record is not None and (
            record.status not in ("running", "completed") or len(record.validations) == len(record.participants)
        )

    combiner.board.wait_until(is_over, ROUND_S)
    return history[number] if is_over() and history[number].status == "completed" else None


def mean(metrics: Sequence[dict[str, Any]], key: str) -> float:
    values = [float(found[key]) for found in metrics]
    return sum(values) / len(values)


def refuse(combiner: DevCombiner, node: DemoNode) -> None:
    """Changes one byte of the signed train.py and offers a task: nothing may run, and everybody is told why."""
    script = node.project / "train.py"
    text = script.read_bytes()
    script.write_bytes(text.replace(b"1 sample", b"2 sample", 1) if b"1 sample" in text else bytes([text[0] ^ 1]) + text[1:])
    client = next(client for client, name in connected(combiner).items() if name == node.name)
    task = combiner.offer_task(client, "Scaleout_ModelUpdate", combiner.history[-1].new_model_id, client_settings=SETTINGS)
    if not combiner.board.wait_until(lambda: combiner.board.offers[task].done, ROUND_S):
        raise WorkloadError("cannot finish the demo: the changed project was not reported")
    offer = combiner.board.offers[task]
    updates = [update for update in combiner.updates if update.correlation_id == task]
    if offer.status != "FAILED" or updates:
        raise WorkloadError(f"cannot be satisfied: the changed project was not refused but {offer.status}")
    click.secho(f"refused: the combiner was told {offer.status} {offer.response}", fg="green")


def show_trail(node: DemoNode) -> None:
    """Verifies the trail offline, then shows what ran, on which code, with which model, and what left."""
    folder = node.state / "audit"
    say(f"$ scaleoutctl audit verify {node.name}/state/audit")
    if audit.verify_and_print(folder):
        raise WorkloadError(f"cannot be satisfied: the trail of {node.name} does not verify")
    if node.seed == 1:
        say(f"$ scaleoutctl audit show {node.name}/state/audit")
        audit.show_trail(folder)
