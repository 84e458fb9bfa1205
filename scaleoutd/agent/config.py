# SPDX-License-Identifier: Apache-2.0
"""What the agent is started with: one JSON document, which comes on a descriptor and not on a command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from scaleoutd.core import records, strictjson
from scaleoutd.core.records import Range, Text
from scaleoutd.errors import ConfigError, FormatError

MAX_CONFIG_BYTES = 64 * 1024
Milliseconds = Annotated[int, Range(50, 3_600_000)]
Line = Annotated[str, Text(256, r"[^\x00-\x1f\x7f]*")]


@dataclass(frozen=True)
class AgentConfig:
    """Everything the agent needs to know.  It holds nothing about the project or the policy.

    `token` is an enrollment or refresh token, "" when the one in the state folder is to be used.  `combiner` (HOST:PORT)
    skips the assignment by the API.  `system_store` lets the system's CAs count when no `ca` is given.  `api_ca` is the CA of
    the API when it is another than the combiner's; `api_system_store` lets the system's CAs count for the API alone.
    `token_cache_dir` is the official client's token cache, kept in step when it is named (tokencache.py).
    """

    api_url: Line
    state_dir: str
    token: Annotated[str, Text(16 * 1024)] = ""
    client_id: Annotated[str, Text(128, r"[A-Za-z0-9._-]*")] = ""
    name: Line = ""
    ca: str = ""
    cert: str = ""
    key: str = ""
    system_store: bool = False
    api_ca: str = ""
    api_system_store: bool = False
    client_certificate: Literal["required", "none"] = "required"
    preferred_combiner: Line = ""
    combiner: Line = ""
    client_version: Line = "1.1.0"
    check_compatibility: bool = True
    auth_scheme: Annotated[str, Text(32, r"[A-Za-z][A-Za-z0-9_-]*")] = "Bearer"
    status_reporting: bool = True
    token_cache_dir: str = ""
    poll_interval_ms: Milliseconds = 5000
    heartbeat_interval_ms: Milliseconds = 2000
    backoff_ms: Milliseconds = 1000
    backoff_limit_ms: Milliseconds = 60_000
    foreground: bool = False  # the parent tells the person how runs fail
    log_format: Literal["json", "text"] = "json"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"

    def __repr__(self) -> str:
        return f"AgentConfig(api_url={self.api_url!r}, state_dir={self.state_dir!r})"  # the token stays out of tracebacks

    @property
    def state(self) -> Path:
        return Path(self.state_dir)


def parse_config(data: bytes) -> AgentConfig:
    """ConfigError with the field that is wrong."""
    try:
        value = strictjson.parse(data, max_bytes=MAX_CONFIG_BYTES, what="the agent's configuration")
        return records.decode(AgentConfig, value, "agent")
    except FormatError as exc:
        raise ConfigError(f"cannot start the agent: {exc.message}") from exc
