# SPDX-License-Identifier: Apache-2.0
"""How far long work over many bytes has come: on a terminal one line that draws over itself, else plain lines now and then.

Work that is over within a second says nothing.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from scaleoutd.cli.measures import size

FIRST_S = 1.0
REDRAW_S = 0.2
LINE_S = 5.0


class Progress:
    """Call it with each number of bytes that is done, from any thread.

    with Progress("hashing", total_bytes) as done:
        check_files(tree, entries, on_bytes=done)
    """

    def __init__(
        self, what: str, total_bytes: int, *, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._what, self._total = what, total_bytes
        self._stream = stream or sys.stderr
        self._draws = self._stream.isatty()
        self._clock = clock
        self._next_s = clock() + FIRST_S
        self._done = 0
        self._drawn = False
        self._lock = threading.Lock()

    def __call__(self, count: int) -> None:
        with self._lock:
            self._done += count
            now = self._clock()
            if now >= self._next_s:
                self._next_s = now + (REDRAW_S if self._draws else LINE_S)
                self._show()

    def _show(self) -> None:
        share = f" ({min(100, self._done * 100 // self._total)} %)" if self._total else ""
        text = f"{self._what}: {size(self._done)} of {size(self._total)}{share}"
        self._stream.write(f"\r\x1b[K{text}" if self._draws else f"{text}\n")
        self._stream.flush()
        self._drawn = self._draws

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
