# SPDX-License-Identifier: Apache-2.0
"""The official client's `--init` file: YAML that `client enroll` writes and `client start` reads.

Two keys have an older name beside the newer one; the older one wins there, and so it does here.  A refresh token in it makes it
a credential: whoever else can read it is told.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from scaleoutd.core.records import Text
from scaleoutd.core.strictyaml import decode_yaml, load_yaml
from scaleoutd.durable import make_private_folder, replace_file, storage_errors
from scaleoutd.errors import ConfigError

Word = Annotated[str, Text(1024, r"[^\x00-\x1f\x7f]*")]
Token = Annotated[str, Text(16 * 1024, r"[\x21-\x7e]*")]
MAX_INIT_BYTES = 64 * 1024


@dataclass(frozen=True)
class InitFile:
    """What the file says; "" where it says nothing.  The last line of fields is accepted and has no effect."""

    api_url: Word = ""
    api_port: Word = ""
    client_id: Word = ""
    name: Word = ""
    refresh_token: Token = ""
    preferred_combiner: Word = ""
    combiner: Word = ""
    combiner_port: Word = ""
    helper_type: Word = ""
    discover_host: Word = ""
    discover_port: Word = ""
    token: Token = ""
    package_checksum: Word = ""
    validator: Word = ""
    trainer: Word = ""

    def __repr__(self) -> str:
        return f"InitFile(client_id={self.client_id!r})"  # a token must not reach a log by way of a repr

    @property
    def url(self) -> str:
        return self.discover_host or self.api_url

    @property
    def port(self) -> str:
        return self.discover_port or self.api_port


def read_init_file(path: Path) -> tuple[InitFile, list[str]]:
    """The file, and what to tell about it; ConfigError with line and column for what cannot be used."""
    if not path.is_file():
        raise ConfigError(
            f"cannot read the init file {path}: there is no such file",
            code="config-missing",
            hint="`scaleoutd client enroll` writes one.",
        )
    with storage_errors(f"read the init file {path}"), open(path, "rb") as file:
        data = file.read(MAX_INIT_BYTES + 1)
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    found = parse_init_file(data, str(path))
    told = []
    if (found.refresh_token or found.token) and mode & 0o077:
        told.append(f"{path} holds a token and has mode {mode:04o}: others can read it; `chmod 600 {path}`")
    if found.package_checksum:
        told.append("package_checksum in the init file has no effect: the project's signed manifest says what may run")
    return found, told


def parse_init_file(data: bytes, name: str) -> InitFile:
    """ConfigError `yaml-invalid` with line and column."""
    document = load_yaml(data, name=name, root="init")
    # The official client takes numbers and booleans as they come: here each is its text.
    return decode_yaml(InitFile, document, {key: _text(item) for key, item in document.value.items()})


def _text(item: object) -> object:
    if isinstance(item, bool):
        return "true" if item else "false"
    return str(item) if isinstance(item, int) else item


def write_init_file(folder: Path, *, client_id: str, api_url: str, name: str, refresh_token: str) -> Path:
    """`FOLDER/<client_id>.yaml` with the keys that the official `enroll` writes, but for its owner only (0600)."""
    with storage_errors(f"make {folder}"):
        if not folder.exists():
            make_private_folder(folder)
    path = folder / f"{client_id}.yaml"
    lines = (("client_id", client_id), ("discover_host", api_url), ("name", name), ("refresh_token", refresh_token))
    replace_file(path, "".join(f"{key}: {_quoted(value)}\n" for key, value in lines).encode(), mode=0o600)
    return path


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
