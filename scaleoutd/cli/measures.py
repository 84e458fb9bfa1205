# SPDX-License-Identifier: Apache-2.0
"""Sizes, durations and counts as people write them."""

from __future__ import annotations

from scaleoutd.core.policy import GIB, KIB, MIB


def size(count: int) -> str:
    """`2 GiB`, `1.5 MiB`, `17 bytes`."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if count >= unit:
            return f"{count / unit:.1f}".removesuffix(".0") + f" {name}"
    return counted(count, "byte")


def duration(seconds: int) -> str:
    """`1 h`, `90 s`, `15 min`, `2 d`: exact."""
    for unit, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit and seconds % unit == 0:
            return f"{seconds // unit} {name}"
    return f"{seconds} s"


def ago(seconds: float) -> str:
    """`3 d`, `5 h`, `12 min`, `8 s`: rounded down to its largest unit."""
    for unit, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{int(seconds // unit)} {name}"
    return f"{max(0, int(seconds))} s"


def counted(number: int, noun: str) -> str:
    """`1 file`, `2 files`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
