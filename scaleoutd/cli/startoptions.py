# SPDX-License-Identifier: Apache-2.0
"""What `client start` was told, by flags, the official client's variables and its `--init` file, settled into values.

A flag beats the environment, the environment beats the init file.  A credential is looked for in this order: `--token` and its
kind, SCALEOUT_AUTH_TOKEN, the official client's token cache for the client id, the init file, and last what the node itself
has kept from an earlier start.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scaleoutd.agent.tokencache import cache_path, read_tokens
from scaleoutd.cli.initfile import InitFile, read_init_file
from scaleoutd.cli.official import Environment, api_address, check_flags, check_variables, read_environment
from scaleoutd.cli.terminal import is_terminal
from scaleoutd.errors import ConfigError

DEFAULT_POLL_S = 5.0
NUMPY_HELPER = "numpyhelper"
RAW_HELPERS = ("binaryhelper", "androidhelper")


@dataclass(frozen=True)
class StartOptions:
    """The command line, as values.  "" and None: not given.  `notices` is what to tell before anything else."""

    api_url: str
    token: str
    project: Path | None
    policy: Path | None
    state_dir: Path | None
    client_id: str
    name: str
    ca: str
    api_ca: str
    cert: Path | None
    key: Path | None
    data_sets: Mapping[str, str]
    preferred_combiner: str
    combiner: str
    helper_type: str
    poll_interval_ms: int
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
    log_format: Literal["json", "text"]
    auth_scheme: str
    check_compatibility: bool
    status_reporting: bool
    token_cache_dir: str
    compute_lock: str
    ca_is_the_combiners: bool = False  # it came by SCALEOUT_GRPC_ROOT_CERT_PATH, which does not speak for the API
    token_is_cached: bool = False  # it lies in the official client's cache, and must be written back when it changes
    notices: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"StartOptions(api_url={self.api_url!r}, client_id={self.client_id!r})"  # the token stays out of tracebacks

    @property
    def has_own_api_ca(self) -> bool:
        """The API's CA is not the combiner's: SCALEOUT_GRPC_ROOT_CERT_PATH is for the combiner alone."""
        return bool(self.api_ca) and self.api_ca != self.ca


def settle(given: Mapping[str, Any], *, token: str, data_sets: Sequence[str], environment: Mapping[str, str]) -> StartOptions:
    """`given` by click's parameter names; ConfigError names the flag, variable or key that cannot be used."""
    told = check_flags({_flag(key): str(value) for key, value in given.items() if value not in (None, False, "")})
    told += check_variables(environment)
    found = read_environment(environment)
    init, more = read_init_file(given["init"]) if given["init"] else (InitFile(), [])
    told += more
    client_id = _id(given["client_id"] or init.client_id)
    cache_dir = str(Path(found.token_cache_dir).absolute()) if found.persist_tokens and found.token_cache_dir else ""
    is_cached = False
    if not token and cache_dir and client_id:
        token, more = _cached(Path(cache_dir), client_id)
        told += more
        is_cached = bool(token)
    url = given["api_url"] or init.url
    if not url:
        raise ConfigError(
            "cannot start: no API address is given",
            code="config-missing",
            hint="Give --api-url URL (the token is redeemed there, also with --combiner).",
        )
    address = api_address(url, given["api_port"] or init.port, found.url_prefix)
    if "://" not in url:
        told.append(f"--api-url has no scheme: {address} is used")
    ca, api_ca = _authorities(given["ca"], found)
    poll_s = given["poll_interval"] or found.poll_interval_s or DEFAULT_POLL_S
    return StartOptions(
        api_url=address,
        token=token or init.refresh_token,
        project=_absolute(given["project"]),
        policy=_absolute(given["policy"]),
        state_dir=_absolute(given["state_dir"]),
        client_id=client_id,
        name=given["name"] or init.name,
        ca=ca,
        api_ca=api_ca,
        cert=_absolute(given["cert"]),
        key=_absolute(given["key"]),
        data_sets=parse_data_sets(data_sets),
        preferred_combiner=given["preferred_combiner"] or init.preferred_combiner,
        combiner=_combiner(given["combiner"] or init.combiner, given["combiner_port"] or init.combiner_port),
        helper_type=_helper(given["helper_type"] or init.helper_type),
        poll_interval_ms=int(poll_s * 1000),
        log_level="DEBUG" if given["verbose"] else given["log_level"],
        log_format=given["log_format"] or ("text" if is_terminal() else "json"),
        auth_scheme=found.auth_scheme,
        check_compatibility=found.check_compatibility,
        status_reporting=found.status_reporting,
        token_cache_dir=cache_dir,
        compute_lock=str(Path(found.compute_lock).absolute()) if found.compute_lock else "",
        ca_is_the_combiners=bool(found.ca) and given["ca"] is None,
        token_is_cached=is_cached,
        notices=tuple(told),
    )


def _flag(parameter: str) -> str:
    """The official spelling of click's parameter name."""
    return "--helper_type" if parameter == "helper_type" else f"--{parameter.replace('_', '-')}"


def _cached(folder: Path, client_id: str) -> tuple[str, list[str]]:
    cached = read_tokens(folder, client_id)
    if cached is None:
        return "", []
    path = cache_path(folder, client_id)
    told = [f"using the token of {client_id} in {path}"]
    if cached.mode & 0o077:
        told.append(f"{path} has mode {cached.mode:04o}: others can read the token; `chmod 600 {path}`")
    return cached.refresh_token, told


def _authorities(ca: Path | None, found: Environment) -> tuple[str, str]:
    """The CA of the combiner and that of the API; --ca is for both and beats the environment."""
    if ca is not None:
        return str(ca.absolute()), ""
    return tuple(str(Path(path).absolute()) if path else "" for path in (found.ca, found.api_ca))  # type: ignore[return-value]


def _id(client_id: str) -> str:
    if client_id and not re.fullmatch(r"[A-Za-z0-9._-]{1,128}", client_id):
        raise ConfigError(
            f"cannot use the client id {client_id[:64]!r}: expected 1 to 128 letters, digits, '.', '_' or '-'",
            hint="`scaleoutd client enroll` prints a client id that can be used.",
        )
    return client_id


def _combiner(host: str, port: str) -> str:
    if not host:
        return ""
    if "/" in host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(
            f"cannot use --combiner {host} with --combiner-port {port or '(none)'}: expected a host name and a port",
            hint="For example: --combiner combiner.example.org --combiner-port 443",
        )
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def _helper(helper_type: str) -> str:
    if helper_type and helper_type not in (NUMPY_HELPER, *RAW_HELPERS):
        raise ConfigError(
            f"cannot use --helper_type {helper_type}: expected {NUMPY_HELPER}, {' or '.join(RAW_HELPERS)}",
            hint=f"Leave it out for {NUMPY_HELPER}, the default.",
        )
    return helper_type


def _absolute(path: Path | None) -> Path | None:
    return path.absolute() if path is not None else None


def parse_data_sets(given: Sequence[str]) -> dict[str, str]:
    """ID=PATH pairs; the path is made absolute and must exist."""
    found: dict[str, str] = {}
    for pair in given:
        name, mark, path = pair.partition("=")
        if not mark or not name or not path:
            raise ConfigError(f"cannot use --data {pair}: expected ID=PATH", hint="For example: --data samples=~/samples.csv")
        if not Path(path).expanduser().exists():
            raise ConfigError(
                f"cannot use --data {pair}: there is nothing at {path}",
                code="config-missing",
                hint="Name the file or folder; `scaleoutctl explain` shows where a step finds it.",
            )
        found[name] = os.path.realpath(Path(path).expanduser())
    return found
