# SPDX-License-Identifier: Apache-2.0
"""The installed node's configuration: scaleoutd.yaml and its drop-ins, and the credentials that systemd handed over.

A credential that is not there, or is empty, is none: the agent then refuses with its own sentence (no CA, no certificate, no
token), which says more than a unit that cannot start.
"""

from __future__ import annotations

import os
from pathlib import Path

from scaleoutd.agent.config import AgentConfig
from scaleoutd.core import records
from scaleoutd.core.nodeconfig import MAIN_FILE, LoadedConfig, NodeConfig, load_config
from scaleoutd.core.render import CERTIFICATE_VARIABLE
from scaleoutd.errors import ConfigError, CredentialError, FormatError

ETC = Path("/etc/scaleoutd")
MAX_TOKEN_BYTES = 16 * 1024


def read_node_config(etc: Path = ETC) -> LoadedConfig:
    """`etc`/scaleoutd.yaml and `etc`/scaleoutd.d/*.yaml; ConfigError `config-missing` without the first."""
    files = [etc / MAIN_FILE, *sorted((etc / "scaleoutd.d").glob("*.yaml"))]
    try:
        return load_config([(str(path), path.read_bytes()) for path in files])
    except FileNotFoundError as exc:
        raise ConfigError(
            f"cannot read the configuration: {exc.filename} is not there",
            code="config-missing",
            hint="Write it: `scaleoutctl config init --api-url URL`.",
        ) from exc
    except OSError as exc:
        raise ConfigError(f"cannot read the configuration {exc.filename}: {exc.strerror}") from exc


def load_agent_config(credentials: Path | None, state_dir: Path, etc: Path = ETC) -> AgentConfig:
    """What the agent of the service is started with.  `credentials` is $CREDENTIALS_DIRECTORY, None outside of systemd.

    To go without a client certificate is the policy's to allow, whose word stands in the unit's environment.
    """
    config = read_node_config(etc).config
    if config.tls.client_certificate == "none" and os.environ.get(CERTIFICATE_VARIABLE) != "none":
        raise ConfigError(
            "cannot start the agent: scaleoutd.yaml says client_certificate: none, and the policy does not",
            code="client-certificate-missing",
            hint="Install one (`scaleoutctl identity install`), or write client_certificate: none in policy.yaml and apply it.",
        )
    return agent_config(config, credentials, state_dir)


def agent_config(config: NodeConfig, credentials: Path | None, state_dir: Path) -> AgentConfig:
    named = {"ca": config.tls.ca, "certificate": config.tls.certificate, "key": config.tls.key, "api_ca": config.tls.api_ca}
    files = {use: _present(name, credentials) for use, name in named.items()}
    if config.tls.client_certificate == "none" and not (files["certificate"] and files["key"]):
        files["certificate"] = files["key"] = ""
    values = config.agent_values(str(state_dir), files, _token(config.token, credentials))
    try:
        return records.decode(AgentConfig, values, "agent")
    except FormatError as exc:
        raise ConfigError(f"cannot start the agent: {exc.message}") from exc


def _present(name: str, credentials: Path | None) -> str:
    """The path of a credential, or "" when there is none."""
    path = _path(name, credentials)
    try:
        return str(path) if path is not None and path.stat().st_size else ""
    except FileNotFoundError:
        return ""
    except OSError as exc:
        raise ConfigError(f"cannot use the credential {name}: {exc.strerror}", hint="See its owner and mode.") from exc


def _path(name: str, credentials: Path | None) -> Path | None:
    if not name:
        return None
    if name.startswith("/"):
        return Path(name)
    if credentials is None:
        return None
    # The unit hands over the folder /etc/scaleoutd/identity (systemd.exec(5): a prefix then); a site may hand over single files.
    alone = credentials / name
    return alone if alone.exists() else credentials / f"identity_{name}"


def _token(name: str, credentials: Path | None) -> str:
    path = _present(name, credentials)
    if not path:
        return ""
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_TOKEN_BYTES + 1)
    except OSError as exc:
        raise ConfigError(f"cannot read the token {name}: {exc.strerror}") from exc
    if len(data) > MAX_TOKEN_BYTES or not data.isascii():
        raise CredentialError(f"cannot read the token {name}: it is no token", code="token-invalid")
    return data.decode("ascii").strip()
