# SPDX-License-Identifier: Apache-2.0
"""What a person in the foreground sees: lines of ours, and what steps print, told apart and made harmless.

A step's text may hold control sequences that rewrite the screen or the title, or answer for the user (CWE-150), so every
control character but newline and tab is shown as its escape.  A carriage return, with which progress bars draw over
themselves, becomes the end of a line that is shown at most once a second.
"""

from __future__ import annotations

import codecs
import fcntl
import os
import sys
import time
from collections.abc import Callable

import click

MAX_LINE_CHARS = 4096
PIPE_BYTES = 1 << 20  # a long traceback fits while this process is busy
PROGRESS_S = 1.0
F_SETPIPE_SZ = 1031  # fcntl(2), Linux


def colours() -> bool | None:
    """None: where a terminal is.  False for somebody who set NO_COLOR (no-color.org)."""
    return False if os.environ.get("NO_COLOR") else None


def say(text: str, *, mark: str = "", colour: str | None = None) -> None:
    """One line of ours, on standard error: standard output is for what was asked for."""
    click.secho(f"{mark}{text}", fg=colour, err=True, color=colours())


def warn(text: str) -> None:
    say(text, mark="! ", colour="yellow")


def advise(text: str, hint: str) -> None:
    """What is behind a failure, and what to do."""
    warn(escape(text))
    if hint:
        say(f"  → {escape(hint)}")


def fail(text: str, code: str, hint: str = "") -> None:
    """An error: what, its code, the next step."""
    say(f"{escape(text)} [{escape(code)}]", colour="red")
    if hint:
        say(f"  → {escape(hint)}")


def escape(text: str) -> str:
    """`text` with every control character as \\xNN; tabs stay."""
    return "".join(char if char == "\t" or char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    number = ord(char)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


class StepOutput:
    """A pipe whose other end gets what steps print; `show` prints what arrived, whole lines and long partial ones.

    `observe` hears each line after it was shown.
    """

    def __init__(self, show: Callable[[str], None] | None = None) -> None:
        self.reader, self._writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.reader, False)
        try:
            fcntl.fcntl(self.reader, F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:  # above the user's pipe-user-pages-soft: 64 KiB it is
            pass
        self._rest = ""
        self._progress_s = float("-inf")
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._show = show or (lambda line: click.echo(click.style("  │ ", dim=True) + line, err=True, color=colours()))
        self.observe: Callable[[str], None] = lambda line: None

    def writer(self) -> int:
        """A fresh descriptor for a child that is started now."""
        return os.dup(self._writer)

    def pump(self) -> None:
        """Prints what is there."""
        while True:
            try:
                data = os.read(self.reader, 65536)
            except BlockingIOError:
                return
            if not data:
                return
            self._rest += self._decoder.decode(data)
            *lines, self._rest = self._rest.split("\n")
            for line in lines:
                self._print(_last_drawn(line))
            self._draw()
            if len(self._rest) > MAX_LINE_CHARS:
                self._print(self._rest)
                self._rest = ""

    def flush(self) -> None:
        """Prints what is there, an unfinished line too: nothing more will come for now."""
        self.pump()
        if self._rest:
            self._print(_last_drawn(self._rest))
            self._rest = ""

    def close(self) -> None:
        self.flush()
        os.close(self.reader)
        os.close(self._writer)

    def _draw(self) -> None:
        """A bar that draws over itself: its newest state now and then, the rest of it is not needed any more."""
        drawn, mark, rest = self._rest.rpartition("\r")
        if not mark:
            return
        self._rest = rest or _last_drawn(drawn) + "\r"
        if time.monotonic() - self._progress_s >= PROGRESS_S:
            self._progress_s = time.monotonic()
            self._print(_last_drawn(self._rest))

    def _print(self, line: str) -> None:
        shown = escape(line)
        self._show(shown)
        self.observe(shown)


def _last_drawn(line: str) -> str:
    """What a terminal would show of a line with carriage returns in it."""
    return next((part for part in reversed(line.split("\r")) if part), "")


def is_terminal() -> bool:
    return sys.stderr.isatty()
