# SPDX-License-Identifier: Apache-2.0
"""A picture of terminals: the bytes that programs wrote to them, as one SVG.

Text stays text (it can be searched, copied and read aloud).  Each run of one colour is put on the grid of columns, so that a
reader's font does not move it.  Colours follow the reader's light or dark scheme.  A picture is published: what belongs to the
machine that made it is replaced, and when something of it is left, there is no picture.
Control sequences: ECMA-48 8.3.117 (Select Graphic Rendition); every other one is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from xml.sax.saxutils import escape, quoteattr

COLUMN, LINE, MARGIN, BAR = 8.0, 19.0, 18.0, 34.0  # px
COLOURS = {30: "black", 31: "red", 32: "green", 33: "yellow", 34: "blue", 35: "magenta", 36: "cyan", 37: "", 39: "", 90: "dim"}
_CLEAR = "\x1b[2J"
_SGR = re.compile(r"\x1b\[([0-9;]*)m")
_OTHER_CONTROL = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b\[[0-9;?]*[A-Za-ln-z]|\x1b[()][A-Z0-9]|[\x00-\x08\x0b\x0c\x0e-\x1a\x7f]"
)
_PRIVATE = re.compile(r"eyJ[A-Za-z0-9_-]{8,}|/(?:root|home|work|tmp|mnt|Users|workspaces?|builds?)/[\w.-]*|PRIVATE KEY")
_STYLE = """
  .frame { fill: #ffffff; stroke: #d0d7de; } .rule { stroke: #d0d7de; } .dot { fill: #d0d7de; }
  text { fill: #24292f; white-space: pre;
    font: 13.2px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
  .title, .dim { fill: #6e7781; } .bold { font-weight: 600; } .red { fill: #b3261e; } .green { fill: #1a7f37; }
  .yellow { fill: #8a5300; } .blue { fill: #0550ae; } .cyan { fill: #0b6b78; } .magenta { fill: #8250df; }
  @media (prefers-color-scheme: dark) {
    .frame { fill: #0d1117; stroke: #30363d; } .rule { stroke: #30363d; } .dot { fill: #30363d; } text { fill: #e6edf3; }
    .title, .dim { fill: #8b949e; } .red { fill: #ff7b72; } .green { fill: #56d364; } .yellow { fill: #e3b341; }
    .blue { fill: #79c0ff; } .cyan { fill: #56d4dd; } .magenta { fill: #d2a8ff; }
  }
"""


class NotForPublication(Exception):
    """Something of the machine or a secret is still in the text; the message has the line."""


@dataclass(frozen=True)
class Pane:
    """One terminal: what stands in its bar, and what was written to it (text with control sequences)."""

    title: str
    written: str


@dataclass(frozen=True)
class Look:
    """How a piece of text looks; `names` are the classes of the style sheet."""

    colour: str = ""
    bold: bool = False
    dim: bool = False

    @property
    def names(self) -> str:
        return " ".join(filter(None, (self.colour, "bold" * self.bold, "dim" * self.dim)))

    def after(self, codes: str) -> Look:
        """After the parameters of a Select Graphic Rendition; what is not known changes nothing."""
        look = self
        for code in (int(part or 0) for part in codes.split(";")):
            if code == 0:
                look = Look()
            elif code in (1, 2, 22):
                look = replace(look, bold=code == 1, dim=code == 2)
            elif code in COLOURS:
                look = replace(look, colour=COLOURS[code])
        return look


@dataclass(frozen=True)
class Piece:
    """Text of one look in a line, from a column on."""

    column: int
    text: str
    look: Look


def published(written: str, instead: Mapping[str, str]) -> str:
    """`written` with each key of `instead` replaced, the longest first.  NotForPublication where a path or a secret is left."""
    for key in sorted(instead, key=len, reverse=True):
        written = written.replace(key, instead[key])
    for line in _OTHER_CONTROL.sub("", written.rpartition(_CLEAR)[2]).splitlines():
        if found := _PRIVATE.search(line):
            raise NotForPublication(f"cannot publish the picture: {found[0]!r} stands in: {line}")
    return written


def lines_of(written: str, columns: int) -> list[list[Piece]]:
    """The screen, line by line; a line longer than `columns` goes on in the next, where it has a space there."""
    found: list[list[Piece]] = []
    look = Look()
    for line in _OTHER_CONTROL.sub("", written.rpartition(_CLEAR)[2]).rstrip().split("\n"):
        text, looks = "", list[Look]()
        seen = line.rstrip("\r").rpartition("\r")[2]  # what a carriage return drew over is not seen
        for index, part in enumerate(_SGR.split(seen)):
            if index % 2:
                look = look.after(part)
            else:
                text = (text + part).expandtabs(8)
                looks += [look] * (len(text) - len(looks))
        begin = 0
        while len(text) - begin > columns:
            end = text.rfind(" ", begin + columns // 2, begin + columns) + 1 or begin + columns
            found.append(_pieces(text[begin:end], looks[begin:end]))
            begin = end
        found.append(_pieces(text[begin:], looks[begin:]))
    return found


def _pieces(text: str, looks: Sequence[Look]) -> list[Piece]:
    found, column = [], 0
    for look, same in groupby(looks):
        length = len(list(same))
        found.append(Piece(column, text[column : column + length], look))
        column += length
    return found


def svg(panes: Sequence[Pane], *, about: str, columns: int) -> str:
    """The picture, one pane below the other; `about` is what a screen reader says first."""
    width, drawn, top = columns * COLUMN + 2 * MARGIN, list[str](), 0.0
    for number, pane in enumerate(panes):
        if number:
            drawn.append(f'<path class="rule" d="M1 {top:g}H{width - 1:g}"/>')
        drawn.append(f'<text class="title" x="{width / 2:g}" y="{top + 21.5:g}" text-anchor="middle">{escape(pane.title)}</text>')
        lines = lines_of(pane.written, columns)
        for row, pieces in enumerate(lines):
            drawn += _drawn(pieces, y=top + BAR + (row + 0.75) * LINE)
        top += BAR + len(lines) * LINE + MARGIN / 2
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {top:g}" width="{width:g}" height="{top:g}"'
            f' role="img" xml:space="preserve"'  # not every viewer knows the style's white-space
            f" aria-label={quoteattr(about)}>",
            f"<title>{escape(about)}</title>",
            f"<style>{_STYLE}</style>",
            f'<rect class="frame" x="0.5" y="0.5" width="{width - 1:g}" height="{top - 1:g}" rx="8"/>',
            *(f'<circle class="dot" cx="{20 + 16 * number}" cy="17" r="5"/>' for number in range(3)),
            *drawn,
            "</svg>",
            "",
        ]
    )


def _drawn(pieces: Sequence[Piece], *, y: float) -> list[str]:
    found = []
    for piece in pieces:
        shown = piece.text.strip()
        if not shown:
            continue
        names = f' class="{piece.look.names}"' if piece.look.names else ""
        x = MARGIN + (piece.column + len(piece.text) - len(piece.text.lstrip())) * COLUMN
        size = f'textLength="{len(shown) * COLUMN:g}" lengthAdjust="spacingAndGlyphs"'
        found.append(f'<text{names} x="{x:g}" y="{y:g}" {size}>{escape(shown)}</text>')
    return found
