# SPDX-License-Identifier: Apache-2.0
"""The official client's command line and environment: each flag and variable, and what becomes of it here.

One table.  `honoured`: it does what it does there.  `no-effect`: accepted, and the person is told what holds instead, unless
the value given is what holds anyway.  `refused`: it would break a promise of this node; the message names the replacement.
A test goes through the options and variables of the official package itself, so none is forgotten.  Source: PROTOCOL.md
section 2, and scaleout 1.1.0 as published.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

from scaleoutd.errors import ConfigError

Fate = Literal["honoured", "no-effect", "refused"]


@dataclass(frozen=True)
class Entry:
    """`names`: all spellings, the long one first.  `quiet`: values (lower case) that need no word; "*" for every value."""

    names: tuple[str, ...]
    fate: Fate
    instead: str = ""  # what holds instead, and what to use
    quiet: tuple[str, ...] = ()

    def is_quiet(self, value: str) -> bool:
        return "*" in self.quiet or value.lower() in self.quiet


FLAGS: tuple[Entry, ...] = (
    Entry(("--api-url", "-u"), "honoured"),
    Entry(("--api-port", "-p"), "honoured"),
    Entry(("--token",), "honoured"),
    Entry(("--name", "-n"), "honoured"),
    Entry(("--client-id", "-i"), "honoured"),
    Entry(("--init", "-in"), "honoured"),
    Entry(("--log-level",), "honoured"),
    Entry(("--preferred-combiner", "-c"), "honoured"),
    Entry(("--combiner",), "honoured"),
    Entry(("--combiner-port",), "honoured"),
    Entry(("--helper_type", "-hp"), "honoured"),
    Entry(("--local-package",), "no-effect", "the local project is what runs, always", ("*",)),
    Entry(("--dispatcher",), "no-effect", "scaleout.yaml says which kind of project it is", ("*",)),
    Entry(("--disable-managed-env",), "no-effect", "no environment is ever made: steps use the active one", ("*",)),
    Entry(("--validator", "-va"), "no-effect", "as in the official client; the entry points in scaleout.yaml decide"),
    Entry(("--trainer", "-tr"), "no-effect", "as in the official client; the entry points in scaleout.yaml decide"),
    Entry(
        ("--remote-package",),
        "refused",
        "no code is taken from a server; put the project in a folder of yours and use --project DIR --local-package",
    ),
)

VARIABLES: tuple[Entry, ...] = (
    Entry(("SCALEOUT_AUTH_TOKEN",), "honoured"),
    Entry(("SCALEOUT_AUTH_SCHEME",), "honoured"),
    Entry(("SCALEOUT_BUILD_OUTPUT_DIR",), "honoured"),  # by scaleoutctl build
    Entry(("SCALEOUT_CHECK_COMPATIBILITY",), "honoured"),
    Entry(("SCALEOUT_CLIENT_COMPUTE_LOCK",), "honoured"),
    Entry(("SCALEOUT_CLIENT_STATUS_REPORTING",), "honoured"),
    Entry(("SCALEOUT_CLIENT_TASK_POLLING_INTERVAL",), "honoured"),
    Entry(("SCALEOUT_CUSTOM_URL_PREFIX",), "honoured"),
    Entry(("SCALEOUT_GRPC_ROOT_CERT_PATH",), "honoured"),
    Entry(("SCALEOUT_HOME_DIR",), "honoured"),
    Entry(("SCALEOUT_PERSIST_TOKENS",), "honoured"),
    Entry(("SCALEOUT_TOKEN_CACHE_DIR",), "honoured"),
    Entry(("SCALEOUT_GRPC_SECURE",), "no-effect", "the combiner is always reached over TLS; there is no plaintext", ("true",)),
    Entry(("SCALEOUT_GRACEFUL_GRPC_HANDLING",), "no-effect", "connect and disconnect are always announced", ("true",)),
    Entry(("SCALEOUT_CLIENT_SEND_TELEMETRY",), "no-effect", "no telemetry leaves: memory and CPU figures stay here", ("false",)),
    Entry(("SCALEOUT_CLIENT_LEGACY_TELEMETRY",), "no-effect", "no telemetry leaves, in no form", ("false",)),
    Entry(("SCALEOUT_MODEL_CACHE_DIR",), "no-effect", "models lie in the node's state; --state-dir DIR moves it"),
    Entry(("SCALEOUT_ARCHIVE_DIR",), "no-effect", "no package is downloaded and no environment made; --project DIR"),
    Entry(("SCALEOUT_PACKAGE_EXTRACT_DIR",), "no-effect", "no package is downloaded; --project DIR names yours"),
    Entry(("SCALEOUT_LOG_LEVEL",), "no-effect", "as in the official client start; use --log-level"),
    Entry(("SCALEOUT_LOG_CONSOLE",), "no-effect", "the log is on this terminal", ("true",)),
    Entry(("SCALEOUT_UTIL_INSTALL_SPEC",), "no-effect", "nothing is installed: steps use the active venv or conda environment"),
    Entry(("SCALEOUT_CLIENT_INSTALL_SPEC",), "no-effect", "nothing is installed: steps use the active venv or conda environment"),
    Entry(("SCALEOUT_API_HOST",), "no-effect", "use --api-url"),
    Entry(("SCALEOUT_API_PORT",), "no-effect", "use --api-url or --api-port"),
    Entry(("SCALEOUT_RESTART_VENV_BIN",), "no-effect", "the official client's note to itself", ("*",)),
    Entry(
        ("SCALEOUT_CONNECT_API_SECURE",),
        "refused",
        "the API's certificate is always verified; give its CA with --ca FILE (or REQUESTS_CA_BUNDLE)",
        ("true",),
    ),
)


def check_flags(given: Mapping[str, str]) -> list[str]:
    """What to tell about the flags that were given (long name to value); ConfigError for one that is refused."""
    return _check(FLAGS, given)


def check_variables(environment: Mapping[str, str]) -> list[str]:
    """What to tell about the SCALEOUT_* variables that are set; ConfigError for one that is refused."""
    found = {name: value for name, value in environment.items() if name.startswith("SCALEOUT_") and value}
    told = _check(VARIABLES, found)
    known = [entry.names[0] for entry in VARIABLES]
    for name in sorted(found.keys() - set(known)):
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        told.append(f"{name} has no effect: no such variable is known" + (f"; did you mean {near[0]}?" if near else ""))
    return told


def _check(table: tuple[Entry, ...], given: Mapping[str, str]) -> list[str]:
    told = []
    for entry in table:
        name = entry.names[0]
        value = given.get(name)
        if value is None or entry.fate == "honoured" or entry.is_quiet(value):
            continue
        shown = f"{name}={value}" if name.startswith("SCALEOUT_") else name
        if entry.fate == "refused":
            raise ConfigError(f"cannot use {shown}: {entry.instead.partition('; ')[0]}", hint=_sentence(entry.instead))
        told.append(f"{shown} has no effect: {entry.instead}")
    return told


def _sentence(instead: str) -> str:
    hint = instead.partition("; ")[2]
    return hint[:1].upper() + hint[1:] + "."


@dataclass(frozen=True)
class Environment:
    """The honoured variables as values; None or "" where nothing was said."""

    ca: str = ""  # of the combiner
    api_ca: str = ""
    auth_scheme: str = "Bearer"
    check_compatibility: bool = True
    status_reporting: bool = True
    poll_interval_s: float | None = None
    url_prefix: str = ""
    token_cache_dir: str = ""  # where the official client keeps its tokens
    persist_tokens: bool = True
    compute_lock: str = ""


def read_environment(environment: Mapping[str, str]) -> Environment:
    """ConfigError for a value that cannot be used.  What is without effect is told by `check_variables`."""

    def is_true(name: str) -> bool:
        return environment.get(name, "true").lower() == "true"

    interval = environment.get("SCALEOUT_CLIENT_TASK_POLLING_INTERVAL", "")
    try:
        interval_s = float(interval) if interval else None
    except ValueError:
        interval_s = -1.0
    if interval_s is not None and not 0.05 <= interval_s <= 3600:
        raise ConfigError(
            f"cannot use SCALEOUT_CLIENT_TASK_POLLING_INTERVAL={interval}: expected 0.05 to 3600 seconds",
            hint="Unset it (the default is 5), or give --poll-interval.",
        )
    home = environment.get("SCALEOUT_HOME_DIR") or environment.get("HOME") or ""
    return Environment(
        ca=environment.get("SCALEOUT_GRPC_ROOT_CERT_PATH", ""),
        # What the requests library reads, with which the official client calls the API.
        api_ca=environment.get("REQUESTS_CA_BUNDLE", "") or environment.get("CURL_CA_BUNDLE", ""),
        auth_scheme=environment.get("SCALEOUT_AUTH_SCHEME") or "Bearer",
        check_compatibility=is_true("SCALEOUT_CHECK_COMPATIBILITY"),
        status_reporting=is_true("SCALEOUT_CLIENT_STATUS_REPORTING"),
        poll_interval_s=interval_s,
        url_prefix=environment.get("SCALEOUT_CUSTOM_URL_PREFIX", "").strip("/"),
        token_cache_dir=environment.get("SCALEOUT_TOKEN_CACHE_DIR") or (f"{home}/.scaleout/tokens" if home else ""),
        persist_tokens=environment.get("SCALEOUT_PERSIST_TOKENS", "true").lower() not in ("false", "0", "no"),
        compute_lock=environment.get("SCALEOUT_CLIENT_COMPUTE_LOCK", ""),
    )


def api_address(url: str, port: str = "", prefix: str = "") -> str:
    """The API's address: https where no scheme is given, never http; `port` and `prefix` as the official client adds them."""
    try:
        parts = urlsplit(url if "://" in url else f"https://{url}")
        host, own_port = parts.hostname or "", parts.port
    except ValueError as exc:
        raise ConfigError(f"cannot use the API address {url}: {exc}", hint="Expected https://HOST[:PORT][/PREFIX].") from exc
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ConfigError(f"cannot use --api-port {port}: expected 1 to 65535")
    if not host:
        raise ConfigError(f"cannot use the API address {url!r}: it names no host", hint="Expected https://HOST[:PORT][/PREFIX].")
    shown = f"[{host}]" if ":" in host else host
    number = port or (str(own_port) if own_port else "")
    path = "/".join(part for part in (parts.path.strip("/"), prefix) if part)
    user = f"{parts.username}@" if parts.username else ""  # the agent refuses it by name
    where = user + shown + (f":{number}" if number else "")
    return urlunsplit((parts.scheme, where, f"/{path}" if path else "", parts.query, parts.fragment))
