# SPDX-License-Identifier: Apache-2.0
"""SHA-256 without OpenSSL.

hashlib maps libcrypto, 3.5 MiB of memory in every idle launcher, for a digest of a few KiB.  The interpreter's own
implementation is a builtin module: `_sha2` from 3.12 on, `_sha256` before.
"""

from __future__ import annotations

import importlib
from typing import Any


def _implementation() -> Any:
    for name in ("_sha2", "_sha256", "hashlib"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise ImportError("no SHA-256 in this interpreter")


_sha256 = _implementation().sha256


def sha256_hex(data: bytes) -> str:
    result: str = _sha256(data).hexdigest()
    return result
