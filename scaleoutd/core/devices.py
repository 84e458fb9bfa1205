# SPDX-License-Identifier: Apache-2.0
"""Devices that a policy may grant: a closed list of words, and the nodes of /dev that each stands for.

A policy has a word and never a path, so that no policy can open a disk.  Of a driver's nodes only those are granted that
computing needs; what else it has (displays, other processes' memory, the partitioning of the card) stays closed.

Source: NVIDIA driver README, chapter on device files (195:255 nvidiactl, 195:0 and up nvidia0 and up; nvidia-uvm is managed
memory, without which the CUDA runtime does not start); MIG: /proc/driver/nvidia-caps/mig-minors, where 1 and 2 are the
rights to partition and to watch all partitions, and 3 and up those to use one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from scaleoutd.core.records import Text

Device = Literal["nvidia"]
NodePath = Annotated[str, Text(255, r"/dev/[A-Za-z0-9._/-]+", 6, "be a path below /dev")]


@dataclass(frozen=True)
class Nodes:
    """Names below /dev, as regular expressions: each of `needed` must be there once or more, `optional` may be; of what the
    same driver has, `closed` are the best known that stay out (the probe tries them)."""

    needed: tuple[str, ...]
    optional: tuple[str, ...]
    closed: tuple[str, ...]


NODES: Mapping[Device, Nodes] = {
    "nvidia": Nodes(
        needed=("nvidiactl", "nvidia-uvm", "nvidia[0-9]{1,3}"),
        optional=("nvidia-caps/nvidia-cap([3-9]|[1-9][0-9]{1,4})",),
        closed=("nvidia-modeset", "nvidia-uvm-tools", "nvidia-caps/nvidia-cap1", "nvidia-caps/nvidia-cap2"),
    ),
}
FOLDERS = ("", "nvidia-caps")  # below /dev: where names of NODES lie


def chosen(words: Sequence[Device], names: Sequence[str]) -> tuple[str, ...]:
    """Those of `names` (below /dev) that the words stand for, sorted."""
    patterns = [pattern for word in words for pattern in (*NODES[word].needed, *NODES[word].optional)]
    return tuple(sorted({name for name in names if any(re.fullmatch(pattern, name) for pattern in patterns)}))


def lacking(words: Sequence[Device], names: Sequence[str]) -> tuple[str, ...]:
    """What the words need and `names` does not have, in words for people."""
    patterns = [pattern for word in words for pattern in NODES[word].needed]
    missing = [pattern for pattern in patterns if not any(re.fullmatch(pattern, name) for name in names)]
    return tuple("/dev/" + re.sub(r"\[0-9\]\{1,3\}", "0 or another number", pattern) for pattern in missing)


def always_closed() -> tuple[str, ...]:
    """Paths that no word opens."""
    return tuple(f"/dev/{name}" for nodes in NODES.values() for name in nodes.closed)
