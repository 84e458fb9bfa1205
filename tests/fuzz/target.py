# SPDX-License-Identifier: Apache-2.0
"""What a parser promises about any bytes, and the one place where that is checked.

1. It returns, or raises one of the codes that its target lists, from scaleoutd.errors.  Nothing else.
2. The error's message is short: it goes to logs, to the trail and to other rooms.
3. It needs at most `CPU_S` seconds of processor and `MEMORY_BYTES` more address space, whatever the bytes say.
4. The same bytes have the same outcome.
5. What it accepts holds the target's own properties (`parse` raises AssertionError otherwise): the written form of what was
   read reads as the same, and where bytes have one canonical form no other is accepted.
"""

from __future__ import annotations

import contextlib
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from scaleoutd.errors import ScaleoutError

CPU_S = 5.0
MEMORY_BYTES = 768 << 20
MAX_MESSAGE_CHARS = 4096


@dataclass(frozen=True)
class Target:
    """`seeds` are valid inputs, made anew; `words` what a mutator may put in; `json` whether the input is a JSON text."""

    name: str
    parse: Callable[[bytes], object]
    seeds: Callable[[], Sequence[bytes]]
    codes: frozenset[str]
    words: tuple[bytes, ...] = ()
    json: bool = False
    max_bytes: int = 16 * 1024  # of what the fuzzer tries; the parser's own bound is larger


class Finding(Exception):
    """A promise was broken."""


def outcome(target: Target, data: bytes) -> str:
    """ "accepted" or the error's code; Finding for anything else."""
    try:
        with _bounded():
            target.parse(data)
    except ScaleoutError as exc:
        if exc.code not in target.codes:
            raise Finding(f"{target.name}: code {exc.code} is not promised: {exc.message[:300]}") from exc
        if len(exc.message) > MAX_MESSAGE_CHARS or len(exc.hint) > MAX_MESSAGE_CHARS:
            raise Finding(f"{target.name}: a message of {len(exc.message)} characters: {exc.message[:300]}") from exc
        return exc.code
    except Exception as exc:
        raise Finding(f"{target.name}: {type(exc).__name__}: {str(exc)[:500]}") from exc
    return "accepted"


def limit_memory() -> None:
    """For a process of its own: from here on it may map `MEMORY_BYTES` more than it has."""
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY_BYTES, hard))


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    # Processor time and not the clock's: a loaded machine makes no finding.
    before = signal.signal(signal.SIGPROF, _too_slow)
    signal.setitimer(signal.ITIMER_PROF, CPU_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _too_slow(number: int, frame: FrameType | None) -> None:
    raise Finding(f"more than {CPU_S} s of processor time")


def same(found: Any, expected: Any, what: str) -> None:
    """A property of a target: both are equal."""
    assert found == expected, f"{what}: {str(found)[:300]!r} is not {str(expected)[:300]!r}"
