# SPDX-License-Identifier: Apache-2.0
"""The official client's token cache: `<folder>/<client_id>.json`, mode 0600, in a folder of mode 0700.

    {"access_token": "...", "refresh_token": "...", "expires_at": ISO 8601 or null, "updated_at": ISO 8601}

The agent's own file (tokens.py) is what it lives by.  This one is read when a person comes from the official client, and
written after it, atomically, so that the way back stays open: a refresh token is good once, and the official client must find the
one that counts.  That it cannot be written is told and hinders nothing.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from scaleoutd.core import strictjson
from scaleoutd.durable import make_private_folder, replace_file, storage_errors
from scaleoutd.errors import ConfigError, FormatError

MAX_CACHE_BYTES = 64 * 1024
_CLIENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class CachedTokens:
    """`mode` is the file's, for a warning."""

    refresh_token: str
    mode: int

    def __repr__(self) -> str:
        return f"CachedTokens(mode={self.mode:04o})"


def cache_path(folder: Path, client_id: str) -> Path | None:
    """None for a client id that is no file name: it comes from a server."""
    return folder / f"{client_id}.json" if _CLIENT_ID.fullmatch(client_id) else None


def read_tokens(folder: Path, client_id: str) -> CachedTokens | None:
    """None when there is nothing; ConfigError when what is there cannot be used."""
    path = cache_path(folder, client_id)
    if path is None or not path.is_file():
        return None
    with storage_errors(f"read the token cache {path}"), open(path, "rb") as file:
        data = file.read(MAX_CACHE_BYTES + 1)
        mode = path.stat().st_mode & 0o777
    token = refresh_token_of(data, path)
    return CachedTokens(token, mode) if token else None


def refresh_token_of(data: bytes, path: Path) -> str:
    """ "" when there is none; ConfigError when the file cannot be read."""
    try:
        value = strictjson.parse(data, max_bytes=MAX_CACHE_BYTES, what=f"the token cache {path}")
    except FormatError as exc:
        raise ConfigError(exc.message, hint=f"Remove {path}, or give a token with --token-file.") from exc
    token = value.get("refresh_token") if isinstance(value, dict) else None
    return token if isinstance(token, str) else ""


def write_tokens(folder: Path, client_id: str, *, access_token: str, refresh_token: str, expires_at_s: int, now_s: float) -> None:
    """Replaces the file; StorageError when that cannot be done."""
    path = cache_path(folder, client_id)
    if path is None:
        return
    body = {
        "access_token": access_token,
        "refresh_token": refresh_token,
        "expires_at": datetime.fromtimestamp(expires_at_s, UTC).isoformat() if expires_at_s else None,
        "updated_at": datetime.fromtimestamp(now_s, UTC).isoformat(),
    }
    replace_file(make_private_folder(folder) / path.name, json.dumps(body, indent=2).encode(), mode=0o600)
