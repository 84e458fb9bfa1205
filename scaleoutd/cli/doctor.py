# SPDX-License-Identifier: Apache-2.0
"""`scaleoutctl doctor`: can this host and this user run a node, and if not, why and what changes it.

Works before any configuration, offline, as root and as an ordinary user; changes nothing.  Exit status 0: all ok; 1: warnings;
2: something that a node would refuse.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from scaleoutd.cli.checks import files, installed, kernel, program, sandbox
from scaleoutd.cli.checks.finding import EXIT, Finding, Subject, fail
from scaleoutd.cli.foreground import default_state
from scaleoutd.cli.nodestatus import is_installed
from scaleoutd.cli.place import Place
from scaleoutd.cli.start import development_python, find_project
from scaleoutd.cli.terminal import escape
from scaleoutd.core.policy import Policy, development_policy, parse_policy_yaml
from scaleoutd.core.project import PROJECT_FILE
from scaleoutd.durable import storage_errors
from scaleoutd.errors import ScaleoutError

_COLOUR = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command("doctor")
@click.option("--policy", type=click.Path(path_type=Path, dir_okay=False), help="policy.yaml; without it: development mode")
@click.option("--project", type=click.Path(path_type=Path, file_okay=False), help="project folder [this one, if it is one]")
@click.option("--state-dir", type=click.Path(path_type=Path, file_okay=False), help="where state and trail are kept")
@click.option("--cert", type=click.Path(path_type=Path, dir_okay=False), help="client certificate to look at, PEM")
@click.option("--key", type=click.Path(path_type=Path, dir_okay=False), help="its private key, PEM")
@click.option("--quick", is_flag=True, help="leave the sandbox's proof out (it takes a second)")
@click.option("--json", "as_json", is_flag=True, help="one JSON object on standard output")
def doctor(
    policy: Path | None,
    project: Path | None,
    state_dir: Path | None,
    cert: Path | None,
    key: Path | None,
    quick: bool,
    as_json: bool,
) -> int:
    """Say whether this host can run a node, and what to do where it cannot.  Exit status 0 ok, 1 warnings, 2 failures.

    Where a node is installed and configured, it is that one: its files, users, sockets and units too, and what its steps can
    reach, tried as their user.

    \b
    Examples:
      scaleoutctl doctor
      sudo scaleoutctl doctor --quick
      sudo scaleoutctl doctor --policy /etc/scaleoutd/policy.yaml --cert node.pem --key node.key --json
    """
    found: list[Finding] = []
    for finding in examine(policy, project, state_dir, cert, key, quick=quick):
        found.append(finding)
        if not as_json:
            show(finding)
    worst = max(found, key=lambda item: EXIT[item.status])
    if as_json:
        told = {"status": worst.status, "uid": os.geteuid(), "findings": [vars(item) for item in found]}
        click.echo(json.dumps(told, indent=2))
    else:
        counts = ", ".join(f"{sum(item.status == status for item in found)} {status}" for status in EXIT)
        click.echo(f"{counts}; as {'root' if os.geteuid() == 0 else f'uid {os.geteuid()}'}")
    return EXIT[worst.status]


def show(finding: Finding) -> None:
    mark = click.style(f"{finding.status:<4}", fg=_COLOUR[finding.status])
    click.echo(f"{mark} {finding.check:<25} {escape(finding.found)}")
    if finding.fix:
        click.echo(f"     {'':<25} → {escape(finding.fix)}")


def examine(
    policy_file: Path | None,
    project: Path | None,
    state_dir: Path | None,
    certificate: Path | None,
    key: Path | None,
    *,
    quick: bool = False,
) -> Iterator[Finding]:
    """Every finding, the cheap ones first.  A policy that cannot be read is one itself; the rest is looked at all the same."""
    folder: Path | None = None
    policy: Policy | None = None
    place = Place()
    is_node = not (policy_file or project or state_dir or certificate or key) and is_installed(place)
    if is_node:
        policy_file, state_dir = place.policy, place.state
    try:
        if project or (not is_node and (Path.cwd() / PROJECT_FILE).is_file()):
            folder = find_project(project)
        policy = _read_policy(policy_file) if policy_file else None
    except ScaleoutError as exc:
        yield fail("policy" if policy_file else "project", f"{exc.message} [{exc.code}]", exc.hint)
        policy_file = None
    if policy is None:
        policy = development_policy(str(folder or "/"), development_python(), {}, "doctor", cpus=1)
    subject = Subject(
        state=state_dir.absolute() if state_dir else default_state(policy.project.name),
        policy=policy,
        policy_file=policy_file,
        project=folder,
        certificate=certificate,
        key=key,
        root=os.geteuid() == 0,
        environment=os.environ,
        installed=is_node,
    )
    parts: list[Callable[[Subject], Iterator[Finding]]] = [program.checks, kernel.checks, files.checks]
    if is_node:
        parts.append(lambda asked: installed.checks(asked, place))
        if subject.root and policy_file is not None:  # the project is root's and the runner's to read
            parts.append(sandbox.policy_checks)
    else:
        parts += [sandbox.policy_checks, *([] if quick else [sandbox.probe_checks])]
    for part in parts:
        yield from part(subject)


def _read_policy(path: Path) -> Policy:
    with storage_errors(f"read the policy {path}"):
        return parse_policy_yaml(path.read_bytes(), name=str(path))
