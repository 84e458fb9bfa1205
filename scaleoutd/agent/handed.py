# SPDX-License-Identifier: Apache-2.0
"""Credentials that root hands to a running agent, as files that exist in memory only (memfd_create(2)).

systemd gives a service its credentials at the start and never again (systemd.exec(5), LoadCredential=), so a new certificate
has to come another way: `scaleoutctl reload` opens the files as root and passes the descriptors.  OpenSSL reads keys from a
path, which /proc/self/fd is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from scaleoutd.agent.tls import MAX_PEM_BYTES, TlsFiles
from scaleoutd.durable import storage_errors, write_all
from scaleoutd.errors import ConfigError


class Handed:
    """Copies of what came, so that a later change of the file by whoever has it open counts for nothing."""

    def __init__(self, files: Mapping[str, int]) -> None:
        self._copies: dict[str, int] = {}
        try:
            for name, fd in files.items():
                self._copies[name] = _copy(name, fd)
        except BaseException:
            self.close()
            raise

    @property
    def any(self) -> bool:
        return bool(self._copies)

    def files(self, before: TlsFiles) -> TlsFiles:
        """`before` with what was handed over in its place."""
        return replace(
            before,
            ca=self._path("ca.pem") or before.ca,
            certificate=self._path("client.pem") or before.certificate,
            key=self._path("client.key") or before.key,
        )

    def close(self) -> None:
        while self._copies:
            os.close(self._copies.popitem()[1])

    def _path(self, name: str) -> Path | None:
        return Path(f"/proc/self/fd/{self._copies[name]}") if name in self._copies else None


def _copy(name: str, fd: int) -> int:
    with storage_errors(f"read the credential {name}"):
        data = os.pread(fd, MAX_PEM_BYTES + 1, 0)
        if not data or len(data) > MAX_PEM_BYTES:
            raise ConfigError(f"cannot use the credential {name}: it has {len(data)} bytes")
        copy = os.memfd_create(name, os.MFD_CLOEXEC)
        try:
            write_all(copy, data)
            os.fchmod(copy, 0o400)
        except BaseException:
            os.close(copy)
            raise
    return copy
