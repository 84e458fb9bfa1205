# SPDX-License-Identifier: Apache-2.0
"""`scaleoutctl build`: the project's `build` command makes the seed model, in the sandbox of a step.

As `scaleout run build`: no arguments, SCALEOUT_BUILD_OUTPUT_DIR names the folder of the result.  The working folder is that
folder too, since projects write `seed.npz` to where they are, and the project itself is read-only.  The command comes from
the manifest, so it is one that was signed.  It sees neither data sets nor a model.  The one file that it writes is read in a
confined child like any other model, and only then taken out.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from scaleoutd.cli.foreground import Folders, default_state
from scaleoutd.cli.instance import OwnInstance, own_instance
from scaleoutd.cli.main import show_error
from scaleoutd.cli.offer import CHUNK_BYTES
from scaleoutd.cli.start import find_project, node_policy_of
from scaleoutd.cli.terminal import StepOutput, escape, say
from scaleoutd.cli.workplace import LedgerDoor, Workplace, ledger_room, operator, prepare
from scaleoutd.core import strictjson
from scaleoutd.core.grant import BuildGrant, authorize_build
from scaleoutd.core.plan import GateRules, ModelFacts, SandboxPlan, StepResult
from scaleoutd.core.policy import Policy
from scaleoutd.core.project import PROJECT_FILE, parse_project
from scaleoutd.durable import storage_errors
from scaleoutd.errors import OutputError, PolicyDeniedError, ScaleoutError
from scaleoutd.ipc.ledger_client import LedgerClient
from scaleoutd.ipc.step import Ended, Execute, Gate, Gated, Started
from scaleoutd.runner.environments import link_interpreter, resolve_environment
from scaleoutd.runner.execution import failure_of
from scaleoutd.runner.instances import GATE_S, GRACE_S, PROBE_S
from scaleoutd.runner.planner import build_inputs_of, make_plan


@dataclass(frozen=True)
class Seed:
    """A seed model that was built, checked and written."""

    path: Path
    size_bytes: int
    sha256: str
    facts: ModelFacts


@click.command()
@click.option("-p", "--project", "--path", "project", type=click.Path(path_type=Path, file_okay=False),
              help="project folder [this one, or ./client]")  # fmt: skip
@click.option("-o", "--out", type=click.Path(path_type=Path), help="file or folder for the seed model [this folder]")
@click.option("--policy", type=click.Path(path_type=Path, dir_okay=False), help="policy.yaml; without it: development mode")
@click.option("--state-dir", type=click.Path(path_type=Path, file_okay=False), help="where state and trail are kept")
@click.option("--json", "as_json", is_flag=True, help="one JSON object on standard output")
def build(project: Path | None, out: Path | None, policy: Path | None, state_dir: Path | None, as_json: bool) -> int:
    """Make the seed model with the project's `build` command: proven, confined and on record.

    \b
    Examples:
      scaleoutctl build
      scaleoutctl build --project my-project --out seed.npz
    """
    try:
        if policy is None:
            _refuse_importer(find_project(project))
        found, _ = node_policy_of(project, policy, {})
        folders = Folders(state_dir.absolute() if state_dir else default_state(f"{found.project.name}-local"))
        seed = build_seed(folders, found, out or Path())
    except ScaleoutError as exc:
        show_error(exc)
        if as_json:
            click.echo(json.dumps({"ok": False, "code": exc.code, "message": exc.message, "hint": exc.hint}))
        return exc.exit_status
    if as_json:
        facts = {"format": seed.facts.format, "arrays": seed.facts.arrays, "parameters": seed.facts.parameters}
        told = {"ok": True, "file": str(seed.path), "bytes": seed.size_bytes, "sha256": seed.sha256, **facts}
        click.echo(json.dumps({**told, "trail": str(folders.audit)}))
        return 0
    say(f"seed model: {seed.path} ({seed.size_bytes} bytes, {seed.facts.format}, {seed.facts.parameters} numbers,"
        f" sha256 {seed.sha256})")  # fmt: skip
    return 0


def build_seed(folders: Folders, policy: Policy, out: Path) -> Seed:
    """Proves, runs, checks and writes; what ended it otherwise is raised and on record."""
    folders.make(policy)
    rooms = ledger_room(folders)
    try:
        rooms.start()
        ledger = LedgerClient(LedgerDoor(rooms), "cli")
        at = prepare(folders, policy, ledger)
        grant = authorize_build(policy, at.proven.manifest, at.now)
        arguments = [policy.project.path, f"manifest {grant.manifest_sha256}", *grant.command]
        told = {"command": "build", "arguments": arguments, "operator": operator()}
        ledger.record("operator-command", **told)  # before anything runs
        try:
            seed = _build(folders, grant, at, out)
        except ScaleoutError as exc:
            ledger.record("operator-command", **told, exit_status=exc.exit_status, code=exc.code, message=exc.message)
            raise
        ledger.record("operator-command", **told, exit_status=0, note=f"{seed.size_bytes} bytes, sha256 {seed.sha256}")
        return seed
    finally:
        rooms.stop()


def _refuse_importer(project: Path) -> None:
    with storage_errors(f"read {project / PROJECT_FILE}"):
        found = parse_project((project / PROJECT_FILE).read_bytes(), name=str(project / PROJECT_FILE))
    if found.build is None and found.build_file is not None:
        raise PolicyDeniedError(
            f"cannot build a seed model: entry_points.build is the file {found.build_file} (importer mode), expected a command",
            code="importer-project",
            hint=f"Give it as `build: {{command: python {found.build_file}}}`; it is called without arguments.",
        )


def _build(folders: Folders, grant: BuildGrant, at: Workplace, out: Path) -> Seed:
    with _empty_folder(folders) as folder:
        environment = resolve_environment(grant.environment)
        place = at.place(f"build-{secrets.token_hex(6)}", grant.backend, folder)
        if place.backend == "inner":
            link_interpreter(folder, environment.python)
        plan = make_plan(build_inputs_of(grant, environment, place))
        with own_instance() as instance:
            error = failure_of(_execute(instance, plan), plan)
            if error is not None:
                error.hint = error.hint if error.code != "step-failed" else "What it printed stands above."
                raise error
            return _take(instance, plan, grant, out)


@contextmanager
def _empty_folder(folders: Folders) -> Iterator[Path]:
    folder = folders.runner / "in" / f"build-{secrets.token_hex(12)}"
    with storage_errors(f"make the folder {folder}"):
        folder.parent.mkdir(mode=0o711, exist_ok=True)
        folder.mkdir(mode=0o755)
        folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _execute(instance: OwnInstance, plan: SandboxPlan) -> StepResult:
    """Runs the command; what it prints is shown as it comes."""
    output = StepOutput()
    try:
        with tempfile.TemporaryFile("ab") as log:
            writer = output.writer()
            try:
                instance.channel.tell(Execute(plan, terminal=True), [log.fileno(), writer])
            finally:
                os.close(writer)
            instance.channel.expect(Started, timeout_s=PROBE_S)
            while not instance.channel.connection.wait(0.05):
                output.pump()
            return instance.channel.expect(Ended, timeout_s=GRACE_S).result
    finally:
        output.close()


def _take(instance: OwnInstance, plan: SandboxPlan, grant: BuildGrant, out: Path) -> Seed:
    """The seed model out of the sandbox: checked by the gate first, under the name that the step gave it."""
    instance.channel.tell(Gate(plan, GateRules("build", grant.limits.output_bytes, model=grant.model)))
    received = instance.channel.receive(Gated, timeout_s=GATE_S)
    try:
        facts = received.message.facts
        metadata = strictjson.parse(facts.metadata.encode(), max_bytes=64 * 1024, what="the gate's answer")
        if facts.model is None or len(received.descriptors) != 1 or not isinstance(metadata, dict):
            raise OutputError("cannot take the seed model: the gate's answer is incomplete")
        path = out / _plain_name(metadata.get("name")) if out.is_dir() else out
        return _write(received.descriptors[0], path, facts.model)
    finally:
        received.close()


def _plain_name(name: object) -> str:
    """The step's own word for its file, if a person would not be fooled by it."""
    text = str(name)
    if text != escape(text) or "/" in text or text.startswith((".", "-")) or len(text) > 128:
        raise OutputError(
            f"cannot write the seed model: the step named it {escape(text)[:64]!r}",
            hint="Name a file with --out.",
            code="output-unsafe",
        )
    return text


def _write(fd: int, path: Path, facts: ModelFacts) -> Seed:
    """Beside its place and renamed: a build that is interrupted leaves the seed of before."""
    digest, size = hashlib.sha256(), 0
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(6)}")
    with storage_errors(f"write {path}"):
        try:
            with open(temporary, "xb") as file:
                while data := os.pread(fd, CHUNK_BYTES, size):
                    file.write(data)
                    digest.update(data)
                    size += len(data)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return Seed(path, size, digest.hexdigest(), facts)
