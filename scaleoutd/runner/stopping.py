# SPDX-License-Identifier: Apache-2.0
"""SIGTERM as an exception in the main thread, which waits for connections."""

from __future__ import annotations

import signal
from types import FrameType


class Stopped(Exception):
    """SIGTERM came."""


def stop_on_sigterm() -> None:
    """Makes SIGTERM raise `Stopped` in the main thread."""

    def raise_stopped(signum: int, frame: FrameType | None) -> None:
        raise Stopped

    signal.signal(signal.SIGTERM, raise_stopped)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
