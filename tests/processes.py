# SPDX-License-Identifier: Apache-2.0
"""What /proc says of processes that may end meanwhile (proc(5)).

Between the listing of /proc and a look at an entry the process may be gone: then open(2) says ENOENT, read(2) of a file that was
opened in time says ESRCH, and a file that belongs to nobody any more says EACCES.  Here that is no error but the answer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

GONE = (FileNotFoundError, ProcessLookupError, PermissionError)


@dataclass(frozen=True)
class Process:
    """`command`: the words of its command line, with a space after each; "" for a zombie and for a thread of the kernel."""

    pid: int
    parent: int
    state: str
    command: str

    @property
    def lives(self) -> bool:
        """No zombie, and not dead otherwise."""
        return self.state not in "ZX"


def read_process(pid: int, what: str) -> bytes:
    """The file `what` of /proc/<pid>; nothing when it is gone, or no affair of this user."""
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes()
    except GONE:
        return b""


def processes() -> Iterator[Process]:
    """Every process that is there while it is looked at, zombies too."""
    for name in os.listdir("/proc"):
        if name.isdigit() and (found := process(int(name))) is not None:
            yield found


def process(pid: int) -> Process | None:
    """None when it is gone."""
    status = read_process(pid, "stat").decode(errors="replace").rpartition(")")[2].split()
    if not status:
        return None
    command = read_process(pid, "cmdline").decode(errors="replace").replace("\0", " ")
    return Process(pid, int(status[1]), status[0], command)


def is_alive(pid: int) -> bool:
    """There, and no zombie."""
    found = process(pid)
    return found is not None and found.lives


def descendants(of: int) -> dict[int, str]:
    """Pid and command line of every process below `of`, zombies left out."""
    below: dict[int, str] = {}
    found = [item for item in processes() if item.lives]
    while more := [item for item in found if item.pid not in below and (item.parent == of or item.parent in below)]:
        below.update({item.pid: item.command for item in more})
    return below


def descriptors_of(pid: int) -> dict[int, str]:
    """Number and target of every open descriptor; those that close meanwhile are left out.  Asks as who may look."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            continue
    return found
