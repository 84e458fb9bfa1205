# SPDX-License-Identifier: Apache-2.0
"""Puts on record what a command did to the node's files, through the runner, which stamps who it was.

A node that does not run has no record to write to, and is no place where anything could run: the rooms put the digests of what
they find on record when they start.
"""

from __future__ import annotations

from collections.abc import Sequence

from scaleoutd.cli.place import Place
from scaleoutd.cli.terminal import warn
from scaleoutd.errors import PeerError, ScaleoutError
from scaleoutd.ipc.control import Change, Done, call, login_uid

NOTE_S = 15.0


def note(place: Place, command: str, arguments: Sequence[str]) -> bool:
    """False when it could not be recorded, which is told."""
    path = place.control("runner")
    if not path.exists():
        return False
    try:
        return isinstance(call(str(path), "runner", Change(command, tuple(arguments), login_uid()), timeout_s=NOTE_S), Done)
    except PeerError as exc:
        warn(f"not on record: {exc.message}")
    except ScaleoutError as exc:
        warn(f"not on record: {exc.message} [{exc.code}]")
    return False
