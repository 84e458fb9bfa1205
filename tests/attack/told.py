# SPDX-License-Identifier: Apache-2.0
"""What a start without namespaces says to be open (runner/openings.py), held to what goes through in the matrix, word by word.

Where Landlock is there, each attempt that goes through has a word in what is said of its outcome, or, beside the outcomes, in
ALWAYS_OPEN; and what is said goes through.  Without Landlock most attempts go through: there the outcomes by name are told.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from scaleoutd.core.plan import OUTCOMES
from scaleoutd.runner.openings import ALWAYS_OPEN, MEANING
from tests.attack.attempts import ATTEMPTS
from tests.attack.hosts import Host
from tests.attack.matrix import BESIDE, Found

SAID_BESIDE: Mapping[str, str] = {
    "stat-outside": "sizes, owners, times",
    "readlink-outside": "where links point",
    "getxattr-outside": "attributes",
    "watch-outside": "watch when files are opened or changed (inotify)",
    "affinity-of-victim": "on which processors",
    "scheduler-of-victim": "how urgently",
}
SAID: Mapping[str, str] = {
    **SAID_BESIDE,
    "connect-unix-path": "connect to Unix sockets",
    "chmod-outside": "modes",
    "chown-outside": "groups",
    "utime-outside": "times",
}
SAID_OF_OLD_KERNELS: Mapping[str, str] = {
    "truncate-outside": "before Linux 6.2 it can also empty them",
    "connect-unix-abstract": "connect to Unix sockets",
    **dict.fromkeys(("kill-victim", "kill-launcher", "tgkill-victim", "sigqueue-victim"), "end other programs"),
    # Who runs these tests is the runner: root is out of a step's reach, its own user is not.
    **({} if os.geteuid() == 0 else {"kill-runner": "end other programs"}),
}
# Said too, but no attack: tests/kernel/test_without_namespaces.py does it, with a control.
SAID_AND_DONE_ELSEWHERE = ("how full a disk is", "which process numbers are in use")
OPEN_ON: Mapping[Host, Mapping[str, str]] = {"plain": SAID, "no-userns": SAID, "abi-2": {**SAID, **SAID_OF_OLD_KERNELS}}


def check_told(host: Host, found: Found) -> None:
    """Asserts that what went through in a cell of the development mode is what its start says."""
    assert found.through() >= BESIDE, "what is told to be open at every start is open in every cell"
    if host in OPEN_ON:
        assert found.through() == set(OPEN_ON[host]), found.through() ^ set(OPEN_ON[host])


def place_of(name: str) -> str:
    """Where the word for an attempt has to stand."""
    if name in BESIDE:
        return "; ".join(ALWAYS_OPEN)
    outcome = ATTEMPTS[name].outcome
    assert outcome in OUTCOMES, outcome
    return MEANING[outcome]
