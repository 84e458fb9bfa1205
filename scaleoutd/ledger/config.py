# SPDX-License-Identifier: Apache-2.0
"""What the ledger is started with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class LedgerConfig:
    """`folder` is the ledger's own state folder, which is the trail."""

    folder: Path
    host: str = "localhost"
    segment_bytes: int = 8 * 1024 * 1024
    checkpoint_events: int = 256
    checkpoint_s: float = 60.0  # age of an event without a signature over it
    heartbeat_s: float = 900.0  # longest silence of the trail
    lock_wait_s: float = 5.0  # for a ledger whose parent was killed
    algorithm: Literal["ed25519", "ecdsa-p256"] = "ed25519"
