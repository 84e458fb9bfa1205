# SPDX-License-Identifier: Apache-2.0
"""A document whose commands are run as they stand and whose shown output is compared with what they print.

    ```sh                     typed in the terminal `main`, one line after the other; each must end with status 0
    ```text                   what the last terminal shows next: line by line, nothing between; `…` is any text in a line,
                              and alone in a line any lines

A comment before a block changes that; it does not show on the page:

    <!-- terminal: node -->             in the terminal of that name, which starts where `main` is now
    <!-- terminal: node, stays -->      the same, and the command does not end
    <!-- status: 77 -->                 the last line must end with this status
    <!-- shows: node -->                output of that terminal (for a text block)
    <!-- press: Ctrl-C in node -->      the key, here and now; what stays there must end
    <!-- not run: reason -->            left out

A block that stands whole in a comment is compared and not shown.  Each terminal is a shell at a pty of its own.
"""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

MAIN = "main"
_MARK = re.compile(r"<!-- ([a-z ]+): (.+?) -->")
_HERE = re.compile(r"<<'?(\w+)'?")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# Commands come by descriptor 9, so that the terminal is the commands' own; a record separator tells the end and the status.
SHELL = """
trap : INT
while IFS= read -r -u 9 line; do eval "$line" 9<&-; printf '\\036%d %s\\036\\n' $? "$PWD"; done
"""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its lines, the marks before it, and the number of its first line in the document."""

    language: str
    lines: tuple[str, ...]
    marks: Mapping[str, str]
    number: int


class WrongDocument(AssertionError):
    """The document and the program do not agree."""


def blocks(document: str) -> Iterator[Block]:
    """The fenced blocks; a mark without a block (a key) comes as a block without language."""
    marks: dict[str, str] = {}
    lines: list[str] = []
    language, began, inside = "", 0, False
    for number, line in enumerate(document.splitlines(), 1):
        if line.startswith("```"):
            if inside:
                yield Block(language, tuple(lines), marks, began)
                marks = {}
            inside, language, lines, began = not inside, line[3:].strip(), [], number + 1
        elif inside:
            lines.append(line)
        elif found := _MARK.fullmatch(line.strip()):
            if found[1] == "press":
                yield Block("", (), {"press": found[2]}, number)
            else:
                marks[found[1]] = found[2]


def typed(lines: tuple[str, ...]) -> list[str]:
    """Whole commands: a backslash at the end of a line goes on in the next, a here-document to its mark; comments are nothing."""
    found: list[str] = []
    mark = ""
    for line in "\n".join(lines).replace("\\\n", " ").split("\n"):
        if mark:
            found[-1] += f"\n{line}"
            mark = "" if line == mark else mark
        elif line.strip() and not line.lstrip().startswith("#"):
            found.append(line)
            mark = here[1] if (here := _HERE.search(line)) else ""
    return found


@dataclass
class Terminal:
    """A shell at a pty; `shown` is what stands there, without colours."""

    folder: Path
    environment: Mapping[str, str]
    shown: list[str] = field(default_factory=list)
    cursor: int = 0  # what a block has accounted for
    where: str = ""
    _ended: list[int] = field(default_factory=list)
    _rest: str = ""
    _arrived: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        reader, self._commands = os.pipe()
        self._pid, self._pty = pty.fork()
        if self._pid == 0:
            try:
                os.dup2(reader, 9)
                os.chdir(self.folder)
                os.execve("/bin/bash", ["bash", "--norc", "--noprofile", "-c", SHELL], dict(self.environment))
            finally:
                os._exit(127)
        os.close(reader)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def type(self, line: str) -> None:
        # One line for `read`, whatever is in it.
        quoted = line.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
        self.write_command(f"eval $'{quoted}'\n".encode())

    def write_command(self, line: bytes) -> None:
        os.write(self._commands, line)

    def wait_status(self, timeout_s: float = 90) -> int:
        with self._arrived:
            if not self._arrived.wait_for(lambda: self._ended, timeout_s):
                raise WrongDocument(f"the command did not end within {timeout_s} s; the terminal shows:\n{self.text}")
            return self._ended.pop(0)

    def press_ctrl_c(self) -> None:
        os.write(self._pty, b"\x03")

    @property
    def text(self) -> str:
        return "\n".join(self.shown)

    def expect(self, wanted: tuple[str, ...], timeout_s: float, *, at: int) -> None:
        """Waits until `wanted` stands there, from the cursor on; `at` is the line of the document."""
        deadline = time.monotonic() + timeout_s
        with self._arrived:
            while True:
                found = match(wanted, self.shown[self.cursor :])
                if found is not None:
                    self.cursor += found
                    return
                left = deadline - time.monotonic()
                if left <= 0:
                    raise WrongDocument(f"line {at} shows:\n{chr(10).join(wanted)}\n--- the terminal:\n"
                                        + "\n".join(self.shown[self.cursor :]))  # fmt: skip
                self._arrived.wait(min(left, 0.5))

    def close(self) -> None:
        """Ctrl-C for what is still there, then the end of the shell."""
        os.close(self._commands)
        try:
            self.press_ctrl_c()
            fd = os.pidfd_open(self._pid)
            if not select.select([fd], [], [], 20)[0]:
                os.kill(self._pid, 9)
            os.close(fd)
        except OSError:
            pass
        os.waitpid(self._pid, 0)
        self._reader.join(5)
        os.close(self._pty)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._pty, 65536)
            except OSError:  # EIO: nobody has the other end any more
                return
            if not data:
                return
            self.arrive(data)

    def arrive(self, data: bytes) -> None:
        """What the terminal shows, as it comes."""
        with self._arrived:
            *lines, self._rest = (self._rest + data.decode(errors="replace")).split("\n")
            for line in lines:
                self._take(_COLOUR.sub("", line).rstrip("\r").removeprefix("^C"))
            self._arrived.notify_all()

    def _take(self, line: str) -> None:
        before, mark, rest = line.partition("\x1e")
        if before:
            self.shown.append(before)
        if mark:
            status, _, self.where = rest.rstrip("\x1e").partition(" ")
            self._ended.append(int(status))
        elif not before:
            self.shown.append("")


def match(wanted: tuple[str, ...], shown: list[str]) -> int | None:
    """How many lines of `shown` the document's lines account for, blank ones apart; None when they do not stand there."""
    patterns = [line.rstrip() for line in wanted if line.strip()]

    def fits(index: int, at: int) -> int | None:
        if index == len(patterns):
            return at
        if patterns[index].strip() == "…":
            return next((end for start in range(at, len(shown) + 1) if (end := fits(index + 1, start)) is not None), None)
        while at < len(shown) and not shown[at].strip():
            at += 1
        if at == len(shown) or not _regex(patterns[index]).fullmatch(shown[at].rstrip()):
            return None
        return fits(index + 1, at + 1)

    return fits(0, 0)


def _regex(line: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in line.split("…")))


class Walkthrough:
    """Runs a document's blocks in `folder`, with `environment` and nothing else."""

    def __init__(self, folder: Path, environment: Mapping[str, str], *, timeout_s: float = 60) -> None:
        self._folder, self._environment, self._timeout_s = folder, environment, timeout_s
        self.terminals: dict[str, Terminal] = {}
        self._last = MAIN
        self._is_done = True  # the last block's command
        self.commands: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for terminal in reversed(self.terminals.values()):
            terminal.close()

    def run(self, document: str) -> None:
        """WrongDocument where a command fails or the output is another."""
        for block in blocks(document):
            if "not run" in block.marks:
                continue
            if "press" in block.marks:
                self._press(block)
            elif block.language == "sh":
                self._type(block)
            elif block.language == "text":
                name = block.marks.get("shows", self._last)
                timeout_s = self._timeout_s if "shows" in block.marks or not self._is_done else 2
                self.terminals[name].expect(block.lines, timeout_s, at=block.number)

    def _terminal(self, name: str) -> Terminal:
        if name not in self.terminals:
            main = self.terminals.get(MAIN)
            folder = Path(main.where) if main is not None and main.where else self._folder
            self.terminals[name] = self.new_terminal(folder)
        return self.terminals[name]

    def new_terminal(self, folder: Path) -> Terminal:
        return Terminal(folder, self._environment)

    def _type(self, block: Block) -> None:
        self._last, _, stays = block.marks.get("terminal", MAIN).partition(", ")
        terminal, lines = self._terminal(self._last), typed(block.lines)
        self._is_done = not stays
        terminal.cursor = len(terminal.shown)
        for index, line in enumerate(lines):
            is_last = index == len(lines) - 1
            terminal.type(line)
            self.commands.append(line)
            if is_last and stays:
                return
            wanted = int(block.marks.get("status", "0")) if is_last else 0
            if (status := terminal.wait_status()) != wanted:
                raise WrongDocument(
                    f"line {block.number}: {shlex.quote(line)} ended with {status}, expected {wanted}:\n{terminal.text}"
                )

    def _press(self, block: Block) -> None:
        key, _, name = block.marks["press"].partition(" in ")
        assert key == "Ctrl-C", key
        self._last, self._is_done = name, True
        terminal = self.terminals[name]
        terminal.cursor = len(terminal.shown)
        terminal.press_ctrl_c()
        terminal.wait_status()
