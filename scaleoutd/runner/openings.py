# SPDX-License-Identifier: Apache-2.0
"""What is open when a node runs without namespaces, in words, and how it is closed: told at every start, never only once.

An outcome counts as open when the probe could do what must fail (step/probe.py); what is said here is what that means for the
person at this machine.  Only the development mode goes on with an open outcome.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scaleoutd.core.plan import Outcome

MEANING: Mapping[Outcome, str] = {
    "no-socket-out": "a step can connect to Unix sockets of programs that let your user in, though not to the Internet",
    "no-signal-out": "a step can end other programs of your user",
    "no-write-outside": "a step can change modes and times of your user's files; without Landlock it can write them",
    "no-read-outside": "a step can read files that your user can read",
    "no-foreign-device": "a step can open devices that your user can open",
    "no-survivor": "a process that a step leaves may outlive it",
}
ALWAYS_OPEN = (
    "without a view of its own a step sees which files there are, though not what is in them; it can change on which"
    " processors your other programs run; it has no /dev/shm, so that worker processes that share memory do not start"
)


def told_at_start(cause: str, how_to_close: str, left_open: Sequence[Outcome]) -> str:
    """Lines for people: why, what is open by name, what to do."""
    lines = [f"steps run without namespaces (backend inner, development only): {cause}"]
    lines += [f"OPEN {name}: {MEANING[name]}" for name in left_open]
    lines += [f"OPEN also: {ALWAYS_OPEN}", f"to close them: {how_to_close}"]
    return "\n".join(lines)
