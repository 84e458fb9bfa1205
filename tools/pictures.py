# SPDX-License-Identifier: Apache-2.0
"""The pictures in docs/images, made from real runs: shells at ptys, a combiner, a node, the commands of docs/tutorial.md.

    python -m tools.pictures [NAME …]

Nothing is acted: what stands in a picture was typed, and printed by the programs.  The home is a new folder; it is shown as `~`,
this checkout as `~/scaleoutd`.  Port 8600 of the tutorial must be free.  A command that takes too long or ends with another
status than expected ends everything, and no picture is written.
"""

from __future__ import annotations

import argparse
import codecs
import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tools.terminal_svg import Pane, published, svg

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
COLUMNS = 112
TIMEOUT_S = 60.0
# "Command finished" of the FinalTerm marks, with its status: it tells the end of a command and is not seen.
_PROMPT = r"\[\e]133;D;$?\a\e[0;2m\]$\[\e[0;1m\] "
_GOES_ON = "\x1b]133;P;k=c\x07"
_FINISHED = re.compile(r"\x1b\]133;D;(\d+)\x07")


class WentWrong(Exception):
    """A command took too long or ended otherwise than the picture says; the message has the terminal."""


class Terminal:
    """A shell at a pty of its own."""

    def __init__(self, desk: Desk) -> None:
        self._desk, self.written, self.has_ended, self._prompts = desk, "", False, 1
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.pid, self.pty = pty.fork()
        if self.pid == 0:
            try:
                os.chdir(desk.home)
                os.execvpe("bash", ["bash", "--norc", "--noprofile", "--noediting", "-i"], {**desk.environment})  # noqa: S606
            finally:
                os._exit(127)
        fcntl.ioctl(self.pty, termios.TIOCSWINSZ, struct.pack("4H", 50, COLUMNS, 0, 0))
        desk.terminals.append(self)
        self._wait(lambda: bool(_FINISHED.search(self.written)), "a shell")

    def type(self, line: str) -> None:
        """Types a command that stays; the shell must be at its prompt."""
        before = self.written.count(_GOES_ON)
        for number, part in enumerate(line.splitlines()):
            if number:
                self.shows(_GOES_ON, times=before + number)
            os.write(self.pty, part.encode() + b"\n")

    def run(self, line: str, *, status: int = 0) -> None:
        """Types a command and waits for its end; WentWrong when its status is another."""
        self.type(line)
        self.ended(line, status=status)

    def press_ctrl_c(self) -> None:
        os.write(self.pty, b"\x03")

    def ended(self, line: str, *, status: int) -> None:
        """Waits for the next prompt."""
        self._prompts += 1
        self._wait(lambda: self._prompts_shown >= self._prompts, line)
        found = int(_FINISHED.findall(self.written)[-1])
        if found != status:
            raise WentWrong(f"{line}: ended with {found}, expected {status}:\n{self.written}")

    def shows(self, text: str, *, times: int = 1) -> None:
        """Waits until the terminal has shown `text` so often."""
        self._wait(lambda: self.written.count(text) >= times, f"{text!r} {times} times")

    def take(self, data: bytes) -> None:
        self.written += self._decoder.decode(data)

    def end(self) -> None:
        """Ctrl-C for what is still there, and the terminal is gone, which ends its shell."""
        before = self._prompts_shown
        self.press_ctrl_c()
        self._comes(lambda: self._prompts_shown > before, 20)
        os.close(self.pty)

    @property
    def _prompts_shown(self) -> int:
        return len(_FINISHED.findall(self.written))

    def _wait(self, has_come: Callable[[], bool], what: str) -> None:
        if not self._comes(has_come, TIMEOUT_S):
            raise WentWrong(f"waited in vain, at most {TIMEOUT_S:g} s, for {what}; the terminal shows:\n{self.written}")

    def _comes(self, has_come: Callable[[], bool], timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while not has_come():
            if self.has_ended or time.monotonic() > deadline:
                return False
            self._desk.read(timeout_s=0.5)
        return True


class Desk:
    """Somebody's `terminals`, in a new home.  Every one is read all the time, so that no program waits for its reader."""

    def __init__(self) -> None:
        # Removed when it is done; a step is another user and has to reach the project in it.
        self._folder = tempfile.TemporaryDirectory(prefix="pictures-")
        self.home = Path(self._folder.name)
        self.home.chmod(0o755)
        self.terminals: list[Terminal] = []
        self.environment: Mapping[str, str] = {
            "HOME": str(self.home),
            "PATH": f"{Path(sys.prefix) / 'bin'}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "VIRTUAL_ENV": sys.prefix,
            "LANG": "C.UTF-8",
            "TERM": "xterm-256color",
            "TZ": "UTC",
            "HISTFILE": "",
            "PS0": r"\e[0m",
            "PS1": _PROMPT,
            "PS2": rf"\[{_GOES_ON}\]",
            "SCALEOUT_CLIENT_TASK_POLLING_INTERVAL": "0.2",  # 5 s for a person; it shows nowhere
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for terminal in reversed(self.terminals):
            self._close(terminal)
        self._folder.cleanup()

    def read(self, *, timeout_s: float) -> None:
        """Takes what was written to any terminal."""
        open_ones = {terminal.pty: terminal for terminal in self.terminals if not terminal.has_ended}
        for fd in select.select(open_ones, [], [], timeout_s)[0]:
            try:
                open_ones[fd].take(os.read(fd, 65536))
            except OSError:  # EIO: nobody has the other end any more
                open_ones[fd].has_ended = True

    def pane(self, terminal: Terminal, title: str, *, since: str = "") -> Pane:
        """What `terminal` shows from the last line with `since` on, without the prompt that waits."""
        instead = {str(self.home): "~", str(ROOT): "~/scaleoutd", sys.prefix: "~/scaleoutd/.venv"}
        text = terminal.written.replace("\r\n", "\n")
        if since:
            at = text.rindex(since)
            text = text[text.rfind("\n", 0, at) + 1 :]
        last = text.rpartition("\n")
        return Pane(title, published(last[0] if _FINISHED.search(last[2]) else text, instead))

    def _close(self, terminal: Terminal) -> None:
        fd = os.pidfd_open(terminal.pid)
        terminal.end()
        self.terminals.remove(terminal)
        if not select.select([fd], [], [], 10)[0]:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        os.waitpid(terminal.pid, 0)
        os.close(fd)


NODE = (
    "scaleoutd client start --api-url https://127.0.0.1:8600 --token-file combiner/token \\\n"
    "    --ca combiner/ca.pem --local-package --project hello"
)


def _first_hour(desk: Desk) -> tuple[Terminal, Terminal]:
    """A project, a combiner and a connected node: its terminal, and one for commands."""
    hand = Terminal(desk)
    for line in ("mkdir first-hour", "cd first-hour", "scaleoutctl init hello"):
        hand.run(line)
    hand.run("scaleoutctl build --project hello --out seed.npz")
    combiner, node = Terminal(desk), Terminal(desk)
    combiner.run("cd first-hour")
    combiner.type("scaleoutctl combiner start")
    combiner.shows("Ctrl-C ends it")
    node.run("cd first-hour; clear")
    node.type(NODE)
    node.shows("agent: connected to combiner")
    return node, hand


def loop(desk: Desk) -> str:
    """A node in the foreground, a round, an edit, a round."""
    node, hand = _first_hour(desk)
    hand.run("clear")
    hand.run("scaleoutctl combiner round --seed seed.npz")
    node.shows("validation of round")
    hand.run("""sed -i 's/"learning_rate", 0.5/"learning_rate", 0.8/' hello/train.py""")
    hand.run("scaleoutctl combiner round")
    node.shows("validation of round", times=2)
    node.shows("re-signed, 1 file changed: train.py")
    return svg(
        [desk.pane(node, "the node"), desk.pane(hand, "another terminal")],
        about="A node in the foreground: it connects, trains, sees an edit of train.py, signs again and trains on",
        columns=COLUMNS,
    )


def refused(desk: Desk) -> str:
    """A step that opens a connection, and one whose model is not a number."""
    node, hand = _first_hour(desk)
    hand.run("cp hello/train.py good-train.py; clear")
    hand.run(
        """sed -i 's|    samples = data.samples()|&; import socket; socket.create_connection(("1.1.1.1", 443))|' hello/train.py"""
    )
    hand.run("scaleoutctl combiner round --seed seed.npz", status=1)
    node.shows("tried to open a network connection")
    hand.run("cp good-train.py hello/train.py")
    hand.run("""sed -i 's/save(path_out, weights, /save(path_out, [float("nan")] * 4, /' hello/train.py""")
    hand.run("scaleoutctl combiner round --seed seed.npz", status=1)
    node.shows("scaleoutctl why output-not-finite")
    return svg(
        [desk.pane(node, "the node", since="agent: connected to"), desk.pane(hand, "another terminal")],
        about="A step that opens a network connection fails and is told where; a model with a NaN does not leave the node",
        columns=COLUMNS,
    )


def record(desk: Desk) -> str:
    """The trail of a node: it verifies, and a copy with one changed word does not."""
    node, hand = _first_hour(desk)
    hand.run("scaleoutctl combiner round --seed seed.npz")
    node.press_ctrl_c()
    node.ended(NODE, status=130)
    hand.run("clear")
    hand.run("scaleoutctl tasks")
    hand.run("scaleoutctl audit verify")
    hand.run("cp -r ~/.local/state/scaleoutd/hello-[0-9a-f]*/audit copy")
    hand.run("sed -i '0,/train/s//Train/' copy/*.jsonl")
    hand.run("scaleoutctl audit verify copy", status=65)
    return svg(
        [desk.pane(hand, "the record")], about="A trail verifies; a copy with one changed letter does not", columns=COLUMNS
    )


PICTURES: Mapping[str, Callable[[Desk], str]] = {"loop": loop, "refused": refused, "record": record}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.pictures", description="The pictures in docs/images, from real runs.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PICTURES)}; without one, all")
    names: list[str] = parser.parse_args(arguments).names
    if unknown := set(names) - set(PICTURES):
        parser.error(f"no picture of this name: {', '.join(sorted(unknown))}; there are {', '.join(PICTURES)}")
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name in names or PICTURES:
        with Desk() as desk:
            picture = PICTURES[name](desk)
        (IMAGES / f"{name}.svg").write_text(picture, encoding="utf-8")
        print(f"docs/images/{name}.svg: {len(picture)} bytes")


if __name__ == "__main__":
    main()
