# SPDX-License-Identifier: Apache-2.0
"""What a person in the foreground sees: lines of ours, and what steps print, told apart and made harmless.

A step's text may hold control sequences that rewrite the screen or the title, or answer for the user (CWE-150), so every
control character but newline and tab is shown as its escape.
"""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Callable

import click

MAX_LINE_CHARS = 4096


def say(text: str, *, mark: str = "", colour: str | None = None) -> None:
    """One line of ours, on standard error: standard output is for what was asked for."""
    click.secho(f"{mark}{text}", fg=colour, err=True)


def warn(text: str) -> None:
    say(text, mark="! ", colour="yellow")


def escape(text: str) -> str:
    """`text` with every control character as \\xNN; tabs stay."""
    return "".join(char if char == "\t" or char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return f"\\x{ord(char):02x}" if ord(char) < 0x100 else f"\\u{ord(char):04x}"


class StepOutput:
    """A pipe whose other end gets what steps print; `show` prints what arrived, whole lines and long partial ones."""

    def __init__(self, show: Callable[[str], None] | None = None) -> None:
        self.reader, self._writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.reader, False)
        self._rest = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._show = show or (lambda line: click.echo(click.style("  │ ", dim=True) + line, err=True))

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
                self._show(escape(line.removesuffix("\r")))
            if len(self._rest) > MAX_LINE_CHARS:
                self._show(escape(self._rest))
                self._rest = ""

    def close(self) -> None:
        self.pump()
        if self._rest:
            self._show(escape(self._rest))
        os.close(self.reader)
        os.close(self._writer)


def is_terminal() -> bool:
    return sys.stderr.isatty()
