# SPDX-License-Identifier: Apache-2.0
"""`scaleoutctl policy apply | check | show`: from policy.yaml to policy.lock and the drop-ins of the units (core/render.py).

All or nothing: a policy that cannot be used changes nothing, the one before stays in force.  When nothing changes, nothing is
written and systemd is not asked to read its files again.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from scaleoutd.cli.fileset import Change, apply_changes, changes_of
from scaleoutd.cli.inroot import in_root
from scaleoutd.cli.onrecord import note
from scaleoutd.cli.place import JSON_OPTION, ROOT_OPTION, Place, must_be_root
from scaleoutd.cli.terminal import escape, say, warn
from scaleoutd.core.policy import MAX_POLICY_BYTES, Policy, parse_policy, parse_policy_yaml
from scaleoutd.core.records import decode, encode
from scaleoutd.core.render import AGENT, RUNNER, Facts, Rendered, check_memory, render
from scaleoutd.core.strictjson import Json
from scaleoutd.durable import storage_errors
from scaleoutd.errors import ConfigError, ScaleoutError
from scaleoutd.runner.environments import resolve_environment
from scaleoutd.step.devices import nodes_of

WOULD_CHANGE = 1
RELOAD_S = 90


@dataclass(frozen=True)
class Prepared:
    policy: Policy
    rendered: Rendered
    changes: list[Change]


@click.group("policy")
def policy() -> None:
    """What may run on this node, with how much, on what data.

    \b
    Example:
      scaleoutctl policy check policy.yaml
      scaleoutctl policy apply
    """


@policy.command("apply")
@click.option("--file", "file", type=click.Path(path_type=Path, dir_okay=False), help="another policy.yaml")
@click.option("--check", is_flag=True, help="change nothing; exit status 1 when there is something to change")
@click.option("--diff", is_flag=True, help="show what changes, line by line")
@ROOT_OPTION
@JSON_OPTION
def policy_apply(file: Path | None, check: bool, diff: bool, root: Path, as_json: bool) -> int:
    """Put /etc/scaleoutd/policy.yaml into force: policy.lock and the units' drop-ins.  A bad policy changes nothing.

    Limits of memory, tasks and processor time reach a run in progress; all else counts from the next run on.

    \b
    Examples:
      scaleoutctl policy apply --check --diff
      scaleoutctl policy apply
    """
    place = Place.of(root)
    prepared = prepare(place, file or place.policy)
    reloaded = False
    if diff and not as_json:
        for change in prepared.changes:
            for line in change.diff():
                click.echo(escape(line))
    if prepared.changes and not check:
        must_be_root(place, "apply the policy")
        apply_changes(prepared.changes)
        reloaded = reload_systemd(place)
        note(place, "policy-apply", [prepared.rendered.digest])
    if as_json:
        click.echo(json.dumps(_told(prepared, check, reloaded), indent=2))
    else:
        _say(prepared, check)
    return WOULD_CHANGE if check and prepared.changes else 0


@policy.command("check")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), required=False)
@click.option("--paths", is_flag=True, help="also look for every path it names, as apply does")
@ROOT_OPTION
@JSON_OPTION
def policy_check(file: Path | None, paths: bool, root: Path, as_json: bool) -> None:
    """Say whether FILE (or /etc/scaleoutd/policy.yaml) is a policy that can be applied.  Needs no node and no root.

    \b
    Example:
      scaleoutctl policy check policy.yaml
    """
    place = Place.of(root)
    found = read_yaml(file or place.policy)
    check_memory(found)
    if paths:
        prepare(place, file or place.policy)
    if as_json:
        click.echo(json.dumps({"ok": True, "policy_sha256": found.digest(), "project": found.project.name}))
    else:
        say(escape(f"a policy for project {found.project.name}, digest {found.digest()}"))


@policy.command("show")
@ROOT_OPTION
@JSON_OPTION
def policy_show(root: Path, as_json: bool) -> int:
    """Print the policy in force, its digest, and whether the drop-ins are those of it.

    Exit status 1 when they are not.

    \b
    Example:
      scaleoutctl policy show
    """
    place = Place.of(root)
    found, states = in_force(place)
    fresh = all(state == "current" for state in states.values())
    if as_json:
        told = {"policy_sha256": found.digest(), "policy": encode(found), "files": states, "current": fresh}
        click.echo(json.dumps(told, indent=2))
    else:
        click.echo(json.dumps(encode(found), indent=2))
        say(f"digest {found.digest()}")
        for path, state in states.items():
            say(escape(f"{state:<8} {path}"))
        if not fresh:
            warn("run `scaleoutctl policy apply`")
    return 0 if fresh else WOULD_CHANGE


def prepare(place: Place, file: Path) -> Prepared:
    """Everything that can be wrong is found here, before anything is written."""
    found = read_yaml(file)
    rendered = render(found, facts_of(place, found))
    missing = {path: use for path, use in rendered.bound.items() if not _is_there(place, path)}
    if missing:
        listed = "; ".join(f"{use}: {path}" for path, use in missing.items())
        raise ConfigError(
            f"cannot apply the policy: expected every path it names, not found: {listed}",
            code="config-missing",
            hint="Make them, or correct the policy: a step without its data would not start.",
        )
    return Prepared(found, rendered, changes_of(place.root, rendered.files))


def in_force(place: Place) -> tuple[Policy, Mapping[str, str]]:
    """policy.lock, and of each file that it asks for: current, stale, missing or unknown (an environment is not there)."""
    found = read_lock(place)
    try:
        wanted = render(found, facts_of(place, found)).files
    except ScaleoutError as exc:
        return found, {exc.message: "unknown"}
    stale = {change.path: change for change in changes_of(place.root, wanted)}
    paths = [place.root / name for name in wanted]
    return found, {
        str(path): ("missing" if stale[path].before is None else "stale") if path in stale else "current" for path in paths
    }


def read_yaml(path: Path) -> Policy:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_POLICY_BYTES + 1)
    except FileNotFoundError as exc:
        raise ConfigError(
            f"cannot read the policy: {path} is not there",
            code="config-missing",
            hint="Begin with policy.example.yaml, which is beside the documentation.",
        ) from exc
    except OSError as exc:
        raise ConfigError(f"cannot read the policy {path}: {exc.strerror}") from exc
    return parse_policy_yaml(data, name=str(path))


def read_lock(place: Place) -> Policy:
    try:
        with place.lock.open("rb") as file:
            return parse_policy(file.read(MAX_POLICY_BYTES + 1))
    except FileNotFoundError as exc:
        raise ConfigError(
            f"cannot read the policy in force: {place.lock} is not there",
            code="config-missing",
            hint="Put one into force: `scaleoutctl policy apply`.",
        ) from exc
    except OSError as exc:
        raise ConfigError(f"cannot read the policy in force: {exc.strerror}", hint="Use sudo, or see its mode.") from exc


def facts_of(place: Place, found: Policy) -> Facts:
    """What the environments consist of, seen from inside the root."""

    def look() -> Json:
        binds = {name: resolve_environment(rule).binds for name, rule in found.environments.items()}
        facts = Facts(binds, nodes_of(found.devices))
        return encode(facts)

    return decode(Facts, in_root(place.root, look), "facts")


def reload_systemd(place: Place) -> bool:
    """systemctl daemon-reload, on this host and where systemd is; False when there is nobody to ask."""
    if not place.is_this_host or not Path("/run/systemd/system").is_dir():
        return False
    program = shutil.which("systemctl") or "/usr/bin/systemctl"
    done = subprocess.run([program, "daemon-reload"], capture_output=True, text=True, timeout=RELOAD_S, check=False)
    if done.returncode:
        raise ConfigError(
            f"cannot have systemd read the new drop-ins: {done.stderr.strip()[:500]}", hint="Run `systemctl daemon-reload`."
        )
    return True


def _is_there(place: Place, path: str) -> bool:
    def look() -> Json:
        with storage_errors(f"look for {path}"):
            return Path(path).exists()

    return in_root(place.root, look) is True


def to_restart(changes: list[Change]) -> list[str]:
    """Units whose view or environment changed: a process that runs keeps what it was started with."""
    names = {RUNNER: "scaleoutd-runner.service", AGENT: "scaleoutd.service"}
    return [unit for file, unit in names.items() if any(str(change.path).endswith(f"/{file}") for change in changes)]


def _told(prepared: Prepared, check: bool, reloaded: bool) -> dict[str, Any]:
    return {
        "restart": to_restart(prepared.changes),
        "changed": bool(prepared.changes),
        "written": bool(prepared.changes) and not check,
        "reloaded": reloaded,
        "policy_sha256": prepared.rendered.digest,
        "files": [{"path": str(change.path), "change": change.kind} for change in prepared.changes],
    }


def _say(prepared: Prepared, check: bool) -> None:
    if not prepared.changes:
        say(f"unchanged, policy {prepared.rendered.digest}")
        return
    for change in prepared.changes:
        say(escape(f"{change.kind:<8} {change.path}"))
    verb = "would be" if check else "is"
    say(f"policy {prepared.rendered.digest} {verb} in force")
    if units := to_restart(prepared.changes):
        say(f"if they run already: systemctl restart {' '.join(units)}   (after `scaleoutctl drain --wait`)")
