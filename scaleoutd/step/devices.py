# SPDX-License-Identifier: Apache-2.0
"""From the words of a policy to the nodes that are there: looked up for every run, so that a card that came or went counts.

A node is granted when it is a character device by its own name (a link is not followed) and the step's user may open it by
the rights of everybody: the step has no group.  Fail closed: a run that was promised a device does not fall back to the
processor, it is refused.  Standard library and core only.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from scaleoutd.core.devices import FOLDERS, Device, chosen, lacking
from scaleoutd.errors import LaunchError

DEV = "/dev"
_FOR_ALL_TO_USE, _FOR_ALL_TO_READ = 0o006, 0o004


def nodes_of(words: Sequence[Device]) -> tuple[str, ...]:
    """Paths below /dev of all nodes that `words` stand for; LaunchError `device-missing` when one that is needed is not there."""
    if not words:
        return ()
    found = present(words)
    missing = lacking(words, [path.removeprefix(f"{DEV}/") for path in found])
    if missing:
        raise LaunchError(
            f"cannot grant devices {', '.join(words)}: expected {', '.join(missing)} as a character device that every user"
            f" may open, found {', '.join(found) or 'none of its nodes'}",
            code="device-missing",
            hint="Load the driver before the run (`nvidia-modprobe -u -c 0` makes the nodes), see `ls -l /dev/nvidia*`; or take"
            " the word off devices: in the policy.",
        )
    return found


def present(words: Sequence[Device]) -> tuple[str, ...]:
    """As `nodes_of`, what there is of them."""
    return tuple(path for path in (f"{DEV}/{name}" for name in chosen(words, _names())) if _is_usable(path))


def _names() -> list[str]:
    names = []
    for folder in FOLDERS:
        try:
            names += [os.path.join(folder, name) for name in os.listdir(os.path.join(DEV, folder))]
        except (FileNotFoundError, NotADirectoryError):
            pass  # only a host with the driver has it
    return names


def _is_usable(path: str) -> bool:
    try:
        info = os.lstat(path)
    except FileNotFoundError:
        return False  # gone since it was listed
    # Nodes of partitions (MIG) are for reading only.
    rights = _FOR_ALL_TO_READ if "/nvidia-caps/" in path else _FOR_ALL_TO_USE
    return stat.S_ISCHR(info.st_mode) and info.st_mode & rights == rights
