# SPDX-License-Identifier: Apache-2.0
"""A command in a guest, as the host sees it: its streams, its status, and the waits for them."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tests.system.inside import CHUNK_BYTES, ERROR, EXIT, INPUT, INPUT_END, KILL, OUTPUT


class Line(Protocol):
    """What a command needs of its guest."""

    patience: float

    def send(self, kind: bytes, number: int, body: bytes = b"") -> None: ...

    def console(self) -> str: ...


class GuestGone(AssertionError):
    """The guest ended, or reboots, while it was asked something."""


@dataclass(frozen=True)
class Ran:
    """What a command in the guest came to."""

    status: int  # exit status; a signal's number, negated
    stdout: str
    stderr: str

    @property
    def text(self) -> str:
        """The output without the white space around it."""
        return self.stdout.strip()

    @property
    def told(self) -> str:
        """Both streams, for the message of an assertion."""
        return f"{self.stdout}{self.stderr}"


class Process:
    """A command that goes on in the guest."""

    def __init__(self, guest: Line, number: int, shown: str, sink: Callable[[bytes], None] | None = None) -> None:
        self._guest = guest
        self._number = number
        self._shown = shown
        self._sink = sink  # takes the standard output instead of this object
        self._changed = threading.Condition()
        self._streams = {OUTPUT: bytearray(), ERROR: bytearray()}
        self._status: int | None = None
        self._gone = False

    def happened(self, kind: bytes, body: bytes) -> None:
        if kind == OUTPUT and self._sink:
            self._sink(body)
            return
        with self._changed:
            if kind == EXIT:
                self._status = int(body)
            else:
                self._streams[kind] += body
            self._changed.notify_all()

    def lost(self) -> None:
        with self._changed:
            self._gone = True
            self._changed.notify_all()

    def send(self, data: bytes) -> None:
        for at in range(0, len(data), CHUNK_BYTES):
            self._guest.send(INPUT, self._number, data[at : at + CHUNK_BYTES])

    def end_input(self) -> None:
        self._guest.send(INPUT_END, self._number)

    def kill(self, signal_number: int = 9) -> None:
        """Sends the signal to the process and to what it started (its process group)."""
        self._guest.send(KILL, self._number, str(signal_number).encode())

    @property
    def stdout(self) -> str:
        """What it has written until now."""
        with self._changed:
            return self._streams[OUTPUT].decode(errors="replace")

    def wait_for(self, pattern: str, timeout_s: float = 60, *, errors: bool = False) -> re.Match[str]:
        """Waits until its output, or its standard error, has a match of the regular expression."""
        stream = self._streams[ERROR if errors else OUTPUT]

        def found() -> re.Match[str] | None:
            return re.search(pattern, stream.decode(errors="replace"), re.MULTILINE)

        with self._changed:
            self._changed.wait_for(lambda: found() or self._over(), self._guest.patience * timeout_s)
            if match := found():
                return match
            self._refuse_gone()
            told = b"".join(self._streams.values()).decode(errors="replace")
            raise AssertionError(f"{self._shown}: no {pattern!r} in what it printed (status {self._status}):\n{told[-6000:]}")

    def wait(self, timeout_s: float = 60) -> Ran:
        with self._changed:
            if not self._changed.wait_for(self._over, self._guest.patience * timeout_s):
                self.kill()
                self._changed.wait_for(self._over, 10)
                told = bytes(self._streams[OUTPUT] + self._streams[ERROR]).decode(errors="replace")
                raise AssertionError(f"{self._shown}: not over after {self._guest.patience * timeout_s:.0f} s:\n{told[-4000:]}")
            if self._status is None:
                self._refuse_gone()
            assert self._status is not None
            output, error = (bytes(self._streams[kind]) for kind in (OUTPUT, ERROR))
        return Ran(self._status, output.decode(errors="replace"), error.decode(errors="replace"))

    def output(self) -> bytes:
        """The bytes of its standard output."""
        with self._changed:
            return bytes(self._streams[OUTPUT])

    def _over(self) -> bool:
        return self._status is not None or self._gone

    def _refuse_gone(self) -> None:
        if self._gone:
            raise GuestGone(f"{self._shown}: the guest is gone:\n{self._guest.console()[-2000:]}")
