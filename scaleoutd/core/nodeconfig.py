# SPDX-License-Identifier: Apache-2.0
"""scaleoutd.yaml: where the combiner is, who this node is, how its agent behaves.

Nothing here is about the project or what may run: that is the policy's.  Rules:
  1. `/etc/scaleoutd/scaleoutd.yaml`, then `/etc/scaleoutd/scaleoutd.d/*.yaml` in the order of their names; the later file's
     keys count, lists and scalars are replaced whole.  Each file is strict (core/strictyaml.py): unknown and duplicate keys,
     wrong types are refused with file, line, column and the nearest key.
  2. Certificates, key and token are credential names (a file of systemd's LoadCredential=) or absolute paths.  A secret is
     never a value in this file.
  3. Intervals are milliseconds, or carry a unit: ms, s, m, h.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from scaleoutd.core import records
from scaleoutd.core.records import Range, Text
from scaleoutd.core.strictjson import Json
from scaleoutd.core.strictyaml import Position, YamlDocument, decode_yaml, load_yaml, map_scalars
from scaleoutd.errors import ConfigError, FormatError

MAIN_FILE = "scaleoutd.yaml"
_REQUIRED: dict[str, Json] = {"version": 1, "api_url": "https://another-file-has-it"}
_MILLISECONDS = {"": 1, "ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}

Line = Annotated[str, Text(256, r"[^\x00-\x1f\x7f]*")]
# A credential's name, an absolute path, or nothing.
Credential = Annotated[str, Text(4096, r"(?:[A-Za-z0-9][A-Za-z0-9._-]*|/[^\x00-\x1f\x7f]*)?")]
Milliseconds = Annotated[int, Range(50, 3_600_000)]


@dataclass(frozen=True)
class ClientSection:
    """Who this node is for the server.  `id` "": the one of the enrollment."""

    id: Annotated[str, Text(128, r"[A-Za-z0-9._-]*")] = ""
    name: Line = ""


@dataclass(frozen=True)
class TlsSection:
    """`system_store` lets the system's CAs count when `ca` is ""; `api_*` are for the API alone, where it has another CA."""

    ca: Credential = "ca.pem"
    certificate: Credential = "client.pem"
    key: Credential = "client.key"
    client_certificate: Literal["required", "none"] = "required"
    system_store: bool = False
    api_ca: Credential = ""
    api_system_store: bool = False


@dataclass(frozen=True)
class LogSection:
    format: Literal["json", "text"] = "json"
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"


@dataclass(frozen=True)
class IntervalSection:
    """How often the combiner is asked and told, and how long the pauses after failures are (full jitter up to the limit)."""

    poll_ms: Milliseconds = 5000
    heartbeat_ms: Milliseconds = 2000
    backoff_ms: Milliseconds = 1000
    backoff_limit_ms: Milliseconds = 60_000


@dataclass(frozen=True)
class NodeConfig:
    """The whole document.  `combiner` (HOST:PORT) skips the assignment by the API; `token` is an enrollment or refresh token."""

    version: Annotated[int, Range(1, 1)]
    api_url: Annotated[str, Text(256, r"https://[^\x00-\x20\x7f]+", 1)]
    dialect: Literal["edge"] = "edge"
    combiner: Annotated[str, Text(261, r"(?:[^\s:/]+:[0-9]{1,5}|\[[0-9A-Fa-f:.]+\]:[0-9]{1,5})?")] = ""
    preferred_combiner: Line = ""
    token: Credential = "token"  # noqa: S105 (the name of a credential)
    auth_scheme: Annotated[str, Text(32, r"[A-Za-z][A-Za-z0-9_-]*")] = "Bearer"
    client: ClientSection = field(default_factory=ClientSection)
    tls: TlsSection = field(default_factory=TlsSection)
    log: LogSection = field(default_factory=LogSection)
    intervals: IntervalSection = field(default_factory=IntervalSection)
    check_compatibility: bool = True
    status_reporting: bool = True

    def agent_values(self, state_dir: str, files: Mapping[str, str], token: str) -> dict[str, Json]:
        """The fields of the agent's own configuration (agent/config.py).

        `files` are paths by "ca", "certificate", "key", "api_ca" ("" for none), `token` is the token itself.
        """
        return {
            "api_url": self.api_url,
            "state_dir": state_dir,
            "token": token,
            "client_id": self.client.id,
            "name": self.client.name,
            "ca": files["ca"],
            "cert": files["certificate"],
            "key": files["key"],
            "system_store": self.tls.system_store,
            "api_ca": files["api_ca"],
            "api_system_store": self.tls.api_system_store,
            "client_certificate": self.tls.client_certificate,
            "preferred_combiner": self.preferred_combiner,
            "combiner": self.combiner,
            "check_compatibility": self.check_compatibility,
            "auth_scheme": self.auth_scheme,
            "status_reporting": self.status_reporting,
            "poll_interval_ms": self.intervals.poll_ms,
            "heartbeat_interval_ms": self.intervals.heartbeat_ms,
            "backoff_ms": self.intervals.backoff_ms,
            "backoff_limit_ms": self.intervals.backoff_limit_ms,
            "log_format": self.log.format,
            "log_level": self.log.level,
        }


@dataclass(frozen=True)
class Origin:
    """Where a value was written: `file` "" for a default."""

    file: str = ""
    position: Position | None = None

    def __str__(self) -> str:
        return f"{self.file}:{self.position.line}:{self.position.column}" if self.position else "default"


@dataclass(frozen=True)
class LoadedConfig:
    """The configuration, and of each written leaf where it stands, by path without the root: "tls.ca"."""

    config: NodeConfig
    origins: Mapping[str, Origin]

    def rows(self) -> list[tuple[str, Json, Origin]]:
        """Every value in force with its origin, defaults too, in the order of the schema."""
        return [(path, value, self.origins.get(path, Origin())) for path, value in _leaves(records.encode(self.config), "")]


def load_config(files: Sequence[tuple[str, bytes]]) -> LoadedConfig:
    """The configuration of `files` (name, bytes), the main file first; ConfigError `yaml-invalid` that points into one."""
    merged: dict[str, Json] = {}
    owners: dict[str, YamlDocument] = {}
    for name, data in files:
        document = load_yaml(data, name=name, root="node")
        value = map_scalars(document.value, "node", _milliseconds_of(document))
        _refuse_unknown(document, value)
        _merge(merged, value, "node", document, owners)
    main = load_yaml(b"{}", name=files[0][0] if files else MAIN_FILE, root="node") if not owners else owners["node"]
    try:
        config = records.decode(NodeConfig, merged, "node")
    except FormatError as exc:
        path, _, cause = exc.message.removeprefix("cannot read ").partition(": it ")
        owner = _owner(owners, path) or main
        hint = "Write it from flags: `scaleoutctl config init --api-url URL`." if cause == "is missing" else exc.hint
        raise owner.refuse(f"{path.removeprefix('node.')} {cause}", path, hint) from exc
    origins = {
        path.removeprefix("node."): Origin(document.name, document.positions[path])
        for path, document in owners.items()
        if path in document.positions and path != "node"
    }
    _check(config, owners, main)
    return LoadedConfig(config, origins)


def parse_milliseconds(text: str) -> int:
    """Milliseconds of "250ms", "5s", "1m" or "500"; ConfigError otherwise."""
    match = re.fullmatch(r"([0-9]{1,9})\s?([A-Za-z]*)", text)
    if match is None or match[2] not in _MILLISECONDS:
        raise ConfigError(f"cannot read {text[:40]!r}: expected an interval such as 5s or 500ms", hint="Units: ms, s, m, h.")
    return int(match[1]) * _MILLISECONDS[match[2]]


def _milliseconds_of(document: YamlDocument) -> Callable[[str, str, Json], Json]:
    def change(path: str, key: str, scalar: Json) -> Json:
        if not isinstance(scalar, str) or not key.endswith("_ms"):
            return scalar
        try:
            return parse_milliseconds(scalar)
        except ConfigError as exc:
            raise document.refuse(exc.message, path, exc.hint) from exc

    return change


def _refuse_unknown(document: YamlDocument, value: Json) -> None:
    """What one file alone can be blamed for: a key or type that the schema does not have, whatever other files say."""
    if isinstance(value, dict):
        decode_yaml(NodeConfig, document, {**_REQUIRED, **value})


def _merge(into: dict[str, Json], value: Json, path: str, document: YamlDocument, owners: dict[str, YamlDocument]) -> None:
    owners.setdefault(path, document)
    if not isinstance(value, dict):
        raise document.refuse("the file must be a mapping of keys and values", path)
    for key, item in value.items():
        where = f"{path}.{key}"
        if isinstance(item, dict):
            below = into.setdefault(key, {})
            if isinstance(below, dict):
                _merge(below, item, where, document, owners)
                owners[where] = document
                continue
        into[key] = item
        owners[where] = document


def _owner(owners: Mapping[str, YamlDocument], path: str) -> YamlDocument | None:
    while path:
        if path in owners:
            return owners[path]
        path = path.rpartition(".")[0]
    return None


def _check(config: NodeConfig, owners: Mapping[str, YamlDocument], main: YamlDocument) -> None:
    """What the schema cannot say."""

    def refuse(path: str, message: str, hint: str) -> ConfigError:
        full = f"node.{path}"
        return (_owner(owners, full) or main).refuse(f"{path}: {message}", full, hint)

    tls = config.tls
    if bool(tls.certificate) != bool(tls.key):
        raise refuse("tls.key", "certificate and key are given together or not at all", "Set both, or both to ''.")
    if tls.client_certificate == "required" and not tls.certificate:
        raise refuse(
            "tls.certificate",
            "a client certificate is required and none is named",
            "Name one, or write client_certificate: none here and in the policy.",
        )
    if not tls.ca and not tls.system_store:
        raise refuse("tls.ca", "no CA is trusted", "Name the CA's file, or set system_store: true.")
    if config.intervals.backoff_ms > config.intervals.backoff_limit_ms:
        raise refuse("intervals.backoff_ms", "it is more than backoff_limit_ms", "Raise the limit.")
    if "@" in config.api_url or "?" in config.api_url or "#" in config.api_url:
        raise refuse("api_url", "it has a user, a query or a fragment", "Give scheme, host, port and path only.")


def _leaves(value: Json, path: str) -> list[tuple[str, Json]]:
    if isinstance(value, dict) and value:
        return [leaf for key, item in value.items() for leaf in _leaves(item, f"{path}.{key}" if path else key)]
    return [(path, value)]
