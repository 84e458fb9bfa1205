# SPDX-License-Identifier: Apache-2.0
"""The clocks of this machine as a value (core.clock.Now), for the rooms and for doctor.

Whether the wall clock is synchronised is what systemd-timesyncd(8) says: without its mark the clock counts as not synchronised,
and raises no floor.
"""

from __future__ import annotations

import secrets
import time
from pathlib import Path

from scaleoutd.core.clock import Now

SYNCHRONISED_MARK = Path("/run/systemd/timesync/synchronized")


class HostClock:
    """Call it for the time.  The mark is looked up again when the last look is `look_ms` old; 0: each time."""

    def __init__(self, look_ms: int = 0) -> None:
        self._look_ms = look_ms
        self._synchronised = False
        self._looked_ms: int | None = None

    def __call__(self) -> Now:
        monotonic_ms = time.monotonic_ns() // 1_000_000
        if self._looked_ms is None or monotonic_ms - self._looked_ms >= self._look_ms:
            self._synchronised, self._looked_ms = SYNCHRONISED_MARK.exists(), monotonic_ms
        return Now(time.time_ns() // 1_000_000, monotonic_ms, self._synchronised)


_THIS_PROCESS = secrets.token_hex(16)


def boot_id() -> str:
    """The kernel's id of this boot; where /proc does not show it, one of this process."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return _THIS_PROCESS
