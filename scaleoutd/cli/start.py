# SPDX-License-Identifier: Apache-2.0
"""`client start`: from the settled command line to running rooms.

With `--policy` the node behaves as the service does: the policy's trust root, mTLS unless the policy says
`client_certificate: none`, no signing.  Without it, it is a development node: a key in the user's home signs what lies in the
folder, at the start and again before a task when something changed, and a banner says so.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from scaleoutd import __version__
from scaleoutd.agent.config import AgentConfig
from scaleoutd.cli.denials import SandboxFacts
from scaleoutd.cli.development import DevelopmentSigner
from scaleoutd.cli.foreground import Folders, Node, default_state
from scaleoutd.cli.startoptions import NUMPY_HELPER, StartOptions, parse_data_sets
from scaleoutd.cli.terminal import say, warn
from scaleoutd.cli.workplace import LedgerDoor, ledger_room
from scaleoutd.core.policy import Policy, development_policy, parse_policy_yaml
from scaleoutd.core.project import PROJECT_FILE, importer_refusal, parse_project
from scaleoutd.durable import storage_errors
from scaleoutd.errors import ConfigError, CredentialError, ScaleoutError
from scaleoutd.ipc.ledger_client import LedgerClient

__all__ = ["development_python", "find_project", "node_policy_of", "parse_data_sets", "start_node"]


def find_project(given: Path | None) -> Path:
    """The project folder: as given, else the working folder, else ./client (as the official client looks)."""
    candidates = [given] if given is not None else [Path.cwd(), Path.cwd() / "client"]
    for folder in candidates:
        if (folder / PROJECT_FILE).is_file():
            _check_kind(folder / PROJECT_FILE)
            return folder.absolute()
    raise ConfigError(
        f"cannot find the project: expected {PROJECT_FILE} in {' or '.join(str(folder) for folder in candidates)}",
        code="config-missing",
        hint="Go to the project's folder, name it with --project, or make one: `scaleoutctl init DIR`.",
    )


def _check_kind(path: Path) -> None:
    """A project that can never run here is refused before the node says that it is connected."""
    with storage_errors(f"read {path}"):
        project = parse_project(path.read_bytes(), name=str(path))
    if project.startup_file is not None and not project.steps:
        raise importer_refusal(project.startup_file)


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


def node_policy_of(
    project: Path | None, policy_file: Path | None, data_sets: Mapping[str, str]
) -> tuple[Policy, DevelopmentSigner | None]:
    """The policy in force; without a policy file, of a development node, which has a signer and has signed.

    The policy's own project folder counts; `project` replaces it when it is given.
    """
    if policy_file is None:
        return _development(find_project(project), data_sets)
    if data_sets:
        raise ConfigError("cannot use --data with --policy: data sets are the policy's", hint="Name them under data_sets:.")
    if not policy_file.exists():
        raise ConfigError(
            f"cannot read the policy {policy_file}: there is no such file",
            code="config-missing",
            hint="policy/policy.example.yaml explains every key; without --policy this is a development node.",
        )
    with storage_errors(f"read the policy {policy_file}"):
        policy = parse_policy_yaml(policy_file.read_bytes(), name=str(policy_file))
    if project is not None:
        policy = replace(policy, project=replace(policy.project, path=str(find_project(project))))
    return policy, None


def _development(project: Path, data_sets: Mapping[str, str]) -> tuple[Policy, DevelopmentSigner]:
    """Signs what lies in the folder with this user's development key, and says so."""
    signer = DevelopmentSigner(project, Path.home(), sorted(data_sets))
    signed = signer.sign()
    for line in signer.lines(signed):
        say(line)
    policy = development_policy(
        str(project),
        development_python(),
        data_sets,
        signed.project,
        trust_root=str(signer.trust_root),
        cpus=len(os.sched_getaffinity(0)),
    )
    return policy, signer


def start_node(options: StartOptions) -> int:
    """Runs the node in the foreground until it is told to end; its exit status."""
    say(f"scaleoutd {__version__}")
    for line in options.notices:
        warn(line)
    policy, signer = node_policy_of(options.project, options.policy, options.data_sets)
    policy = _with_helper(policy, options, signer is not None)
    key = hashlib.sha256(f"{policy.project.path}\0{options.api_url}\0{options.client_id}".encode()).hexdigest()[:12]
    folders = Folders(options.state_dir or default_state(f"{policy.project.name}-{key}"))
    if policy.client_certificate == "required" and not (options.cert and options.key):
        raise _no_certificate(options, policy, folders)
    banner(options, policy, folders, signer)
    return Node(
        folders,
        policy,
        agent_config(options, policy, folders, development=signer is not None),
        facts=SandboxFacts.of(policy),
        signer=signer,
        compute_lock=options.compute_lock,
        on_event=_tell,
    ).run()


def _no_certificate(options: StartOptions, policy: Policy, folders: Folders) -> CredentialError:
    """The refusal, on record: the ledger alone is started for it."""
    missing = " and ".join(flag for flag, given in (("--cert", options.cert), ("--key", options.key)) if not given)
    error = CredentialError(
        f"cannot start: the policy demands mTLS, expected --cert and --key, found no {missing}",
        code="client-certificate-missing",
        hint="Give --cert and --key, or write `client_certificate: none` in the policy.",
    )
    folders.make(policy)
    rooms = ledger_room(folders)
    try:
        rooms.start()
        ledger = LedgerClient(LedgerDoor(rooms), "cli")
        ledger.record("connection-refused", combiner=options.api_url, code=error.code, message=error.message)
    except ScaleoutError as exc:
        warn(f"this refusal is not on record: {exc.message}")  # the start ends all the same
    finally:
        rooms.stop()
    return error


def agent_config(options: StartOptions, policy: Policy, folders: Folders, *, development: bool) -> AgentConfig:
    """What the agent is told.  Without --ca the system's CAs count for a development node only."""
    return AgentConfig(
        api_url=options.api_url,
        state_dir=str(folders.agent),
        token=options.token,
        client_id=options.client_id,
        name=options.name or policy.project.name,
        ca=options.ca,
        cert=str(options.cert or ""),
        key=str(options.key or ""),
        system_store=development and not options.ca,
        api_ca=options.api_ca if options.has_own_api_ca else "",
        # A CA for the combiner alone, by the official client's variable, does not speak for the API.
        api_system_store=development and bool(options.ca) and not options.api_ca and options.ca_is_the_combiners,
        client_certificate=policy.client_certificate,
        preferred_combiner=options.preferred_combiner,
        combiner=options.combiner,
        check_compatibility=options.check_compatibility,
        auth_scheme=options.auth_scheme,
        status_reporting=options.status_reporting,
        token_cache_dir=options.token_cache_dir if development or options.token_is_cached else "",
        poll_interval_ms=options.poll_interval_ms,
        foreground=True,
        log_level=options.log_level,
        log_format=options.log_format,
    )


def _with_helper(policy: Policy, options: StartOptions, development: bool) -> Policy:
    """A helper other than numpy's makes models opaque bytes: in development that is granted by the flag, else by the policy."""
    if options.helper_type in ("", NUMPY_HELPER):
        return policy
    if development:
        return replace(policy, model_formats=(*policy.model_formats, "raw"))
    if "raw" not in policy.model_formats:
        raise ConfigError(
            f"cannot use --helper_type {options.helper_type}: its models are opaque bytes, the policy's model_formats are"
            f" {', '.join(policy.model_formats)}",
            hint="Add raw to model_formats in the policy, if models that nobody can look into are right.",
        )
    return policy


def _tell(room: str, what: str) -> None:
    if what == "restarting" or (what.startswith("ended") and what != "ended 0"):
        warn(f"room {room}: {what}")


def banner(options: StartOptions, policy: Policy, folders: Folders, signer: DevelopmentSigner | None) -> None:
    """What a person must know before anything happens."""
    say(f"project {policy.project.name} in {policy.project.path}; steps run with {_pythons(policy)}")
    say(f"state and trail: {folders.state}")
    if signer is not None:
        warn("development mode: a key in your home signs what lies in the project folder; give --policy for a real node")
    if not options.cert:
        warn("no client certificate: the combiner knows this node by its token only")


def _pythons(policy: Policy) -> str:
    return ", ".join(rule.python for _, rule in sorted(policy.environments.items())) or "no environment"
