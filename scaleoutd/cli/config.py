# SPDX-License-Identifier: Apache-2.0
"""`scaleoutctl config init | check | show`: the configuration of an installed node.

`init` writes from flags what is needed to begin: scaleoutd.yaml, policy.yaml and the trust root; what it wrote is put into force.
What is there already is not overwritten without --force.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from scaleoutd.agent.nodefile import read_node_config
from scaleoutd.cli.fileset import Change, apply_changes, changes_of, put_back
from scaleoutd.cli.onrecord import note
from scaleoutd.cli.place import JSON_OPTION, ROOT_OPTION, Place, must_be_root
from scaleoutd.cli.policycommand import prepare, reload_systemd
from scaleoutd.cli.signing import now
from scaleoutd.cli.terminal import escape, say, warn
from scaleoutd.core.nodeconfig import MAIN_FILE, NodeConfig, load_config
from scaleoutd.core.policy import parse_policy_yaml
from scaleoutd.core.strictjson import Json
from scaleoutd.core.trust import verify_chain
from scaleoutd.errors import ConfigError, ScaleoutError
from scaleoutd.runner.rootfile import read_root_documents

WOULD_CHANGE = 1
TRUST = "/etc/scaleoutd/trust"


@dataclass(frozen=True)
class Wanted:
    """Flags of `config init`."""

    api_url: str
    name: str
    client_id: str
    combiner: str
    without_certificate: bool
    project: str
    python: str
    data_sets: Mapping[str, str]
    metrics: tuple[str, ...]


@click.group("config")
def config() -> None:
    """The configuration of an installed node.

    \b
    Example:
      scaleoutctl config check
    """


@config.command("init")
@click.option("-u", "--api-url", required=True, metavar="URL", help="address of the API; https")
@click.option("-n", "--name", default="", help="label of this node on the server")
@click.option("--client-id", default="", metavar="ID", help="client id; else the enrollment gives one")
@click.option("--combiner", default="", metavar="HOST:PORT", help="go to this combiner, do not ask the API for one")
@click.option("--without-certificate", is_flag=True, help="no client certificate: the server knows this node by its token only")
@click.option(
    "--project", default="", metavar="NAME", help="also write policy.yaml, for the project that is signed with this name"
)
@click.option("--trust-root", type=click.Path(path_type=Path, exists=True), help="who may sign: a file, or the folder of a chain")
@click.option("--python", default="/usr/bin/python3", show_default=True, help="interpreter of the project's steps")
@click.option("--data", "data", multiple=True, metavar="ID=PATH", help="data that a step may read")
@click.option("--metric", "metrics", multiple=True, metavar="KEY", help="a metric that may leave")
@click.option("--force", is_flag=True, help="overwrite what is there")
@click.option("--check", is_flag=True, help="change nothing; exit status 1 when there is something to change")
@ROOT_OPTION
@JSON_OPTION
def config_init(
    api_url: str,
    name: str,
    client_id: str,
    combiner: str,
    without_certificate: bool,
    project: str,
    trust_root: Path | None,
    python: str,
    data: tuple[str, ...],
    metrics: tuple[str, ...],
    force: bool,
    check: bool,
    root: Path,
    as_json: bool,
) -> int:
    """Write a configuration from flags: scaleoutd.yaml, and with --project a policy, which is put into force.

    \b
    Example:
      sudo scaleoutctl config init --api-url https://api.example.org --name ward-7 \\
        --project heart --trust-root root.json --data samples=/srv/data
    """
    place = Place.of(root)
    wanted = Wanted(
        api_url if "://" in api_url else f"https://{api_url}",
        name,
        client_id,
        combiner,
        without_certificate,
        project,
        python,
        _data_sets(data),
        metrics,
    )
    if trust_root is not None and not project:
        raise click.UsageError("--trust-root goes with --project")
    changes = _changes(place, wanted, trust_root, force)
    if changes and not check:
        must_be_root(place, "write the configuration")
        _write(place, changes, apply=bool(project))
        note(place, "config-init", [str(change.path) for change in changes][:16])
    _tell(changes, check, as_json)
    return WOULD_CHANGE if check and changes else 0


@config.command("check")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), required=False)
@ROOT_OPTION
@JSON_OPTION
def config_check(file: Path | None, root: Path, as_json: bool) -> None:
    """Say whether scaleoutd.yaml and its drop-ins, or FILE alone, can be used.  Needs no node and no root.

    \b
    Example:
      scaleoutctl config check scaleoutd.yaml
    """
    found = _read_file(file) if file is not None else read_node_config(Place.of(root).etc).config
    if as_json:
        click.echo(json.dumps({"ok": True, "api_url": found.api_url}))
    else:
        say(escape(f"a configuration for {found.api_url}"))


@config.command("show")
@click.option("--origin", is_flag=True, help="with file, line and column of each value")
@ROOT_OPTION
@JSON_OPTION
def config_show(origin: bool, root: Path, as_json: bool) -> None:
    """Print every value in force, defaults too.  It holds no secret.

    \b
    Example:
      scaleoutctl config show --origin
    """
    rows = read_node_config(Place.of(root).etc).rows()
    if as_json:
        told: dict[str, Any] = {path: {"value": value, "origin": str(where)} if origin else value for path, value, where in rows}
        click.echo(json.dumps(told, indent=2))
        return
    width = max(len(path) for path, _, _ in rows)
    for path, value, where in rows:
        shown = json.dumps(value)
        click.echo(escape(f"{path:<{width}}  {shown:<32}  {where}" if origin else f"{path:<{width}}  {shown}"))


def _data_sets(words: tuple[str, ...]) -> dict[str, str]:
    result: dict[str, str] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or not path.startswith("/") or name in result:
            raise click.UsageError(f"--data {word}: expected ID=/ABSOLUTE/PATH, each id once")
        result[name] = path
    return result


def _changes(place: Place, wanted: Wanted, trust_root: Path | None, force: bool) -> list[Change]:
    """Everything is checked here, before anything is written."""
    files: dict[str, bytes | None] = {f"etc/scaleoutd/{MAIN_FILE}": _config_text(wanted).encode()}
    load_config([(MAIN_FILE, files[f"etc/scaleoutd/{MAIN_FILE}"] or b"")])
    if trust_root is not None:
        documents = read_root_documents(trust_root)
        last = verify_chain(documents, now())
        for number, document in enumerate(documents, start=last.version - len(documents) + 1):
            files[f"etc/scaleoutd/trust/{number}.json"] = document
    if wanted.project:
        files["etc/scaleoutd/policy.yaml"] = _policy_text(wanted).encode()
        parse_policy_yaml(files["etc/scaleoutd/policy.yaml"] or b"")
    changes = changes_of(place.root, files)
    kept = [str(change.path) for change in changes if change.before is not None]
    if kept and not force:
        raise ConfigError(
            f"cannot write the configuration: {', '.join(kept)} is there and says something else",
            hint="See what differs, then edit it, or use --force.",
        )
    return changes


def _write(place: Place, changes: list[Change], *, apply: bool) -> None:
    """The files, and the policy into force; all of it or nothing."""
    apply_changes(changes)
    if not apply:
        return
    try:
        prepared = prepare(place, place.policy)
        apply_changes(prepared.changes)
    except ScaleoutError:
        put_back(changes)
        raise
    if prepared.changes:
        reload_systemd(place)


def _config_text(wanted: Wanted) -> str:
    lines = [
        "# The agent of this node: where the combiner is and who we are. All keys: scaleoutd.yaml(5), `scaleoutctl config show`.",
        "version: 1",
        f"api_url: {json.dumps(wanted.api_url)}",
    ]
    if wanted.combiner:
        lines.append(f"combiner: {json.dumps(wanted.combiner)}")
    if wanted.name or wanted.client_id:
        lines.append("client:")
        lines += [f"  name: {json.dumps(wanted.name)}"] if wanted.name else []
        lines += [f"  id: {json.dumps(wanted.client_id)}"] if wanted.client_id else []
    if wanted.without_certificate:
        lines += ["tls:", "  client_certificate: none  # the server knows this node by its token only"]
    return "\n".join(lines) + "\n"


def _policy_text(wanted: Wanted) -> str:
    """As little as is needed; everything else is the closed default.  JSON strings are YAML strings."""
    project: dict[str, Json] = {"name": wanted.project, "path": "/var/lib/scaleoutd/project/current"}
    lines = [
        "# What may run on this node, with how much, on what data. What is not named is not granted: policy.yaml(5).",
        "version: 1",
        f"project: {json.dumps(project)}",
        f"trust_root: {json.dumps(TRUST)}",
        f"client_certificate: {'none' if wanted.without_certificate else 'required'}",
        "backend: systemd",
        "environments:",
        f"  default: {{python: {json.dumps(wanted.python)}}}",
    ]
    if wanted.data_sets:
        lines.append("data_sets:")
        lines += [f"  {name}: {{path: {json.dumps(path)}}}" for name, path in wanted.data_sets.items()]
    if wanted.metrics:
        lines += ["egress:", f"  metrics: {json.dumps(list(wanted.metrics))}"]
    return "\n".join(lines) + "\n"


def _read_file(path: Path) -> NodeConfig:
    try:
        return load_config([(str(path), path.read_bytes())]).config
    except OSError as exc:
        raise ConfigError(f"cannot read {path}: {exc.strerror}", code="config-missing") from exc


def _tell(changes: list[Change], check: bool, as_json: bool) -> None:
    if as_json:
        files = [{"path": str(change.path), "change": change.kind} for change in changes]
        click.echo(json.dumps({"changed": bool(changes), "written": bool(changes) and not check, "files": files}, indent=2))
        return
    if not changes:
        say("unchanged")
    for change in changes:
        say(escape(f"{change.kind:<8} {change.path}"))
    if check and changes:
        warn("nothing was written: --check")
