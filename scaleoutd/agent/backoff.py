# SPDX-License-Identifier: Apache-2.0
"""Exponential back-off with full jitter: each pause is drawn evenly from zero to a bound that doubles.

A thousand nodes that lost the same combiner must not come back in one second.
"""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """Pauses in seconds.  `draw(bound)` gives a number from 0 to `bound`."""

    def __init__(self, first_s: float, limit_s: float, draw: Callable[[float], float] | None = None) -> None:
        self._first_s, self._limit_s = first_s, limit_s
        self._bound_s = first_s
        # Not a secret: it only spreads attempts in time.
        self._draw = draw or (lambda bound: random.uniform(0.0, bound))  # noqa: S311

    def next_s(self) -> float:
        pause_s = self._draw(self._bound_s)
        self._bound_s = min(self._limit_s, self._bound_s * 2)
        return pause_s

    def reset(self) -> None:
        self._bound_s = self._first_s
