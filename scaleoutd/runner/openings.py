# SPDX-License-Identifier: Apache-2.0
"""What is open when a node runs without namespaces, in words, and how it is closed: told at every start, never only once.

An outcome counts as open when the probe could do what must fail (step/probe.py); what is said here is what that means for the
person at this machine.  Only the development mode goes on with an open outcome, or a policy that does not demand it.  The attack
matrix holds these words: what goes through is said here, and what is said goes through (tests/attack/told.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scaleoutd.core.plan import Outcome

MEANING: Mapping[Outcome, str] = {
    "no-socket-out": "a step can connect to Unix sockets of programs that let your user in, though not to the Internet",
    "no-signal-out": "a step can end other programs of your user",
    "no-write-outside": (
        "a step can change modes, groups and times of your user's files; before Linux 6.2 it can also empty them, without"
        " Landlock write them"
    ),
    "no-read-outside": "a step can read files that your user can read",
    "no-foreign-device": "a step can open devices that your user can open",
    "no-survivor": "a process that a step leaves may outlive it",
}
# Beside the outcomes, without a view and process numbers of its own; no kernel's Landlock closes these.
ALWAYS_OPEN = (
    "a step sees which files there are, their sizes, owners, times, attributes, where links point and how full a disk is, also of"
    " files that it cannot read",
    "it can watch when files are opened or changed (inotify)",
    "it sees which process numbers are in use",
    "it can change on which processors and how urgently your other programs run",
)
NOT_THERE = "it has no /dev/shm, so that worker processes that share memory do not start"


def told_at_start(cause: str, how_to_close: str, left_open: Sequence[Outcome]) -> str:
    """Lines for people: why, what is open by name, what to do."""
    lines = [f"steps run without namespaces (backend inner, development only): {cause}"]
    lines += [f"OPEN {name}: {MEANING[name]}" for name in left_open]
    lines += [_also(), f"to close them: {how_to_close}"]
    return "\n".join(lines)


def told_as_allowed(left_open: Sequence[Outcome], backend: str) -> str:
    """The same where a policy does not demand them; "" when nothing is open."""
    lines = [f"OPEN, as the policy allows: {', '.join(left_open)}"] if left_open else []
    return "\n".join([*lines, _also()] if backend == "inner" else lines)


def _also() -> str:
    return f"OPEN also: {'; '.join((*ALWAYS_OPEN, NOT_THERE))}"
