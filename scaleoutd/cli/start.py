# SPDX-License-Identifier: Apache-2.0
"""`client start`: from the command line to running rooms.

With `--policy` the node behaves as the service does: the policy's trust root, mTLS unless the policy says
`client_certificate: none`, no signing.  Without it, it is a development node: a key in the user's home signs what lies in the
folder, and a banner says so.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scaleoutd import __version__
from scaleoutd.agent.config import AgentConfig
from scaleoutd.cli.development import development_root_path, development_signer, resign_if_changed
from scaleoutd.cli.foreground import Folders, Node, default_state
from scaleoutd.cli.terminal import is_terminal, say, warn
from scaleoutd.core.policy import Policy, development_policy, parse_policy_yaml
from scaleoutd.core.project import PROJECT_FILE
from scaleoutd.durable import storage_errors
from scaleoutd.errors import ConfigError, CredentialError


@dataclass(frozen=True)
class StartOptions:
    """The command line, as values."""

    api_url: str
    token: str
    project: Path | None
    policy: Path | None
    state_dir: Path | None
    client_id: str
    name: str
    ca: Path | None
    cert: Path | None
    key: Path | None
    data_sets: Mapping[str, str]
    preferred_combiner: str
    poll_interval_ms: int
    log_level: str
    log_format: str

    @classmethod
    def of(cls, *, token: str, data_sets: Sequence[str], **given: Any) -> StartOptions:
        return cls(
            api_url=given["api_url"],
            token=token,
            project=_absolute(given["project"]),
            policy=_absolute(given["policy"]),
            state_dir=_absolute(given["state_dir"]),
            client_id=given["client_id"],
            name=given["name"],
            ca=_absolute(given["ca"]),
            cert=_absolute(given["cert"]),
            key=_absolute(given["key"]),
            data_sets=parse_data_sets(data_sets),
            preferred_combiner=given["preferred_combiner"],
            poll_interval_ms=int(given["poll_interval"] * 1000),
            log_level=given["log_level"],
            log_format=given["log_format"] or ("text" if is_terminal() else "json"),
        )


def _absolute(path: Path | None) -> Path | None:
    return path.absolute() if path is not None else None


def find_project(given: Path | None) -> Path:
    """The project folder: as given, else the working folder, else ./client (as the official client looks)."""
    candidates = [given] if given is not None else [Path.cwd(), Path.cwd() / "client"]
    for folder in candidates:
        if (folder / PROJECT_FILE).is_file():
            return folder.absolute()
    raise ConfigError(
        f"cannot find the project: expected {PROJECT_FILE} in {' or '.join(str(folder) for folder in candidates)}",
        code="config-missing",
        hint="Go to the project's folder, name it with --project, or make one: `scaleoutctl init DIR`.",
    )


def parse_data_sets(given: Sequence[str]) -> dict[str, str]:
    """ID=PATH pairs; the path is made absolute and must exist."""
    found: dict[str, str] = {}
    for pair in given:
        name, mark, path = pair.partition("=")
        if not mark or not name or not path:
            raise ConfigError(f"cannot use --data {pair}: expected ID=PATH")
        if not Path(path).exists():
            raise ConfigError(f"cannot use --data {pair}: there is nothing at {path}", code="config-missing")
        found[name] = os.path.realpath(path)
    return found


def development_python() -> str:
    """The interpreter for steps: the active venv or conda environment, else python on PATH, else the system's python3."""
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        prefix = os.environ.get(variable)
        if prefix and (Path(prefix) / "bin" / "python").exists():
            return str(Path(prefix) / "bin" / "python")
    found = shutil.which("python") or shutil.which("python3") or sys.executable
    return _through_shims(found)


def _through_shims(python: str) -> str:
    """A version manager's shim is a shell script that needs its manager; the step gets the interpreter behind it."""
    with open(python, "rb") as file:
        if file.read(2) != b"#!":
            return python
    return os.path.realpath(sys.executable)


def node_policy_of(project: Path | None, policy_file: Path | None, data_sets: Mapping[str, str]) -> tuple[Policy, bool]:
    """The policy in force, and whether this is a development node (no policy file).

    The policy's own project folder counts; `project` replaces it when it is given.
    """
    if policy_file is None:
        return _development(find_project(project), data_sets), True
    if data_sets:
        raise ConfigError("cannot use --data with --policy: data sets are the policy's", hint="Name them under data_sets:.")
    with storage_errors(f"read the policy {policy_file}"):
        policy = parse_policy_yaml(policy_file.read_bytes(), name=str(policy_file))
    if project is not None:
        policy = replace(policy, project=replace(policy.project, path=str(find_project(project))))
    return policy, False


def _development(project: Path, data_sets: Mapping[str, str]) -> Policy:
    """Signs what lies in the folder with this user's development key, and says so."""
    home = Path.home()
    key, _ = development_signer(home)
    signed = resign_if_changed(project, key, environments=["default"], data_sets=sorted(data_sets))
    if signed.first:
        say(f"signed with your development key: {signed.project}, version {signed.version}")
    elif signed.signed:
        count = len(signed.changed)
        say(f"re-signed, {count} file{'s' if count != 1 else ''} changed: {', '.join(signed.changed[:5])}")
    return development_policy(
        str(project),
        development_python(),
        data_sets,
        signed.project,
        trust_root=str(development_root_path(home)),
        cpus=len(os.sched_getaffinity(0)),
    )


def start_node(options: StartOptions) -> int:
    """Runs the node in the foreground until it is told to end; its exit status."""
    policy, development = node_policy_of(options.project, options.policy, options.data_sets)
    if policy.client_certificate == "required" and not (options.cert and options.key):
        raise CredentialError(
            "cannot start: mTLS is demanded and no client certificate was given",
            code="client-certificate-missing",
            hint="Give --cert and --key, or write `client_certificate: none` in the policy.",
        )
    name = options.name or policy.project.name
    key = hashlib.sha256(f"{policy.project.path}\0{options.api_url}\0{options.client_id}".encode()).hexdigest()[:12]
    folders = Folders(options.state_dir or default_state(f"{policy.project.name}-{key}"))
    banner(options, policy, folders, development)
    agent = AgentConfig(
        api_url=options.api_url,
        state_dir=str(folders.agent),
        token=options.token,
        client_id=options.client_id,
        name=name,
        ca=str(options.ca or ""),
        cert=str(options.cert or ""),
        key=str(options.key or ""),
        system_store=development and options.ca is None,
        client_certificate=policy.client_certificate,
        preferred_combiner=options.preferred_combiner,
        poll_interval_ms=options.poll_interval_ms,
        log_level=options.log_level,  # type: ignore[arg-type]  # click checked the choice
        log_format=options.log_format,  # type: ignore[arg-type]
    )
    return Node(folders, policy, agent, on_event=_tell).run()


def _tell(room: str, what: str) -> None:
    if what == "restarting" or (what.startswith("ended") and what != "ended 0"):
        warn(f"room {room}: {what}")


def banner(options: StartOptions, policy: Policy, folders: Folders, development: bool) -> None:
    """What a person must know before anything happens."""
    say(f"scaleoutd {__version__}: project {policy.project.name} in {policy.project.path}")
    say(f"state and trail: {folders.state}")
    if development:
        warn("development mode: a key in your home signs what lies in the project folder; give --policy for a real node")
    if not options.cert:
        warn("no client certificate: the combiner knows this node by its token only")
