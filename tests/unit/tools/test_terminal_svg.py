# SPDX-License-Identifier: Apache-2.0
"""The pictures in docs/images: what a terminal showed, whole and well-formed, and nothing of the machine that made them."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tools.pictures import PICTURES, Desk, Terminal, WentWrong
from tools.terminal_svg import COLUMN, MARGIN, NotForPublication, Pane, lines_of, published, svg

ROOT = Path(__file__).resolve().parents[3]
IMAGES = sorted((ROOT / "docs" / "images").glob("*.svg"))
SVG = "{http://www.w3.org/2000/svg}"
TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJub2RlIn0.c2lnbmF0dXJl"


def texts(picture: str) -> list[ET.Element]:
    return list(ET.fromstring(picture).iter(f"{SVG}text"))


def drawn(picture: str) -> str:
    return "\n".join("".join(text.itertext()) for text in texts(picture))


def test_text_colours_and_what_xml_would_read_as_markup() -> None:
    written = '\x1b[33m! a < b && "c"\x1b[0m plain\n\x1b[2m  │ \x1b[0mloss 0.5\n\x1b[1;31mcannot\x1b[0m'
    picture = svg([Pane("a <node>", written)], about='its "title" & more', columns=80)
    assert ET.fromstring(picture).get("aria-label") == 'its "title" & more'
    found = {"".join(text.itertext()): text.get("class") for text in texts(picture)}
    assert found == {
        "a <node>": "title", '! a < b && "c"': "yellow", "plain": None, "│": "dim", "loss 0.5": None, "cannot": "red bold",
    }  # fmt: skip
    assert "prefers-color-scheme: dark" in picture


def test_control_sequences_are_obeyed_or_left_out_and_never_shown() -> None:
    written = "gone\n\x1b[H\x1b[2J\x1b[3J\x1b]0;title\x07one\x08\x1b[?2004h\r\n10 %\r20 %\r\x1b[Kdone\n\x1b(Bend\x00\x7f"
    assert ["".join(piece.text for piece in line) for line in lines_of(written, 80)] == ["one", "done", "end"]


def test_a_long_line_goes_on_in_the_next_and_loses_nothing() -> None:
    words, solid = "\x1b[31mword \x1b[0m" * 30, "x" * 95
    for line in (words, solid):
        shown = ["".join(piece.text for piece in row) for row in lines_of(line, 40)]
        assert "".join(shown).rstrip() == re.sub(r"\x1b\[\d*m", "", line).rstrip()
        assert max(map(len, shown)) <= 40
    assert all(piece.look.colour == "red" for row in lines_of(words, 40) for piece in row if piece.text.strip())


def test_a_tab_goes_to_the_next_eighth_column() -> None:
    assert [piece.column for piece in lines_of("a\x1b[1m\tb\x1b[0mc", 80)[0]] == [0, 1, 9]


@pytest.mark.parametrize(
    "left",
    [
        "in /root/x",
        "in /home/ada/hello",
        "in /tmp/pictures-a1/hello",
        "in /work/h/x",
        f"token {TOKEN}",
        "-----BEGIN PRIVATE KEY-----",
    ],
)
def test_what_belongs_to_the_machine_or_is_secret_is_not_published(left: str) -> None:
    with pytest.raises(NotForPublication, match="cannot publish"):
        published(f"fine\n{left}\n", {})


def test_a_coloured_path_is_found_too() -> None:
    with pytest.raises(NotForPublication):
        published("/ho\x1b[0Kme/ada/x", {})


def test_the_home_is_replaced_by_the_longest_name_first() -> None:
    assert published("/tmp/p/clone/x /tmp/p/y", {"/tmp/p": "~", "/tmp/p/clone": "~/scaleoutd"}) == "~/scaleoutd/x ~/y"


def test_a_session_is_recorded_as_it_was_typed_and_printed() -> None:
    with Desk() as desk:
        hand = Terminal(desk)
        hand.run("clear")
        hand.run("mkdir first-hour; cd first-hour; pwd")
        hand.run("echo one \\\n    two; false", status=1)
        hand.run("echo ready >written")
        hand.type("tail -f written")
        hand.shows("ready", times=2)
        hand.press_ctrl_c()
        hand.ended("tail", status=130)
        picture = svg([desk.pane(hand, "hand")], about="a session", columns=112)
        home, shell = desk.home, hand.pid
    shown = drawn(picture)
    assert "mkdir first-hour; cd first-hour; pwd" in shown and "~/first-hour" in shown and "one two" in shown
    assert not home.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(shell, 0)


def test_a_command_that_fails_makes_no_picture() -> None:
    with Desk() as desk, pytest.raises(WentWrong, match="ended with 3, expected 0"):
        Terminal(desk).run("(exit 3)")


def test_every_picture_is_committed_and_shown() -> None:
    assert {image.stem for image in IMAGES} == set(PICTURES)
    pages = {page: page.read_text() for page in (ROOT / "README.md", ROOT / "docs" / "tutorial.md")}
    for image in IMAGES:
        assert any(os.path.relpath(image, page.parent) in text for page, text in pages.items()), image


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.stem)
def test_a_committed_picture_fits_its_frame_and_names_no_machine(image: Path) -> None:
    picture = image.read_text(encoding="utf-8")
    root = ET.fromstring(picture)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    assert width <= 940, "a page shows it at about this width; a wider one becomes small"
    rows = [text for text in texts(picture) if text.get("textLength")]
    assert len(rows) > 10
    for text in rows:
        content = "".join(text.itertext())
        assert float(text.attrib["textLength"]) == len(content) * COLUMN
        assert float(text.attrib["x"]) + len(content) * COLUMN <= width - MARGIN, content
        assert 0 < float(text.attrib["y"]) < height
    published(drawn(picture), {})
    user = os.environ.get("SUDO_USER") or os.environ.get("USER") or "root"
    for machine in {str(ROOT), str(Path.home()), sys.prefix, socket.gethostname(), f"{user}@"}:
        assert machine not in picture
    assert not re.search(r"\b(?:href|src|script|foreignObject|url\()", picture), "it loads and runs nothing"


def test_the_pictures_show_what_the_product_says() -> None:
    shown = {image.stem: drawn(image.read_text(encoding="utf-8")) for image in IMAGES}
    assert "re-signed, 1 file changed: train.py" in shown["loop"] and "agent: connected to combiner" in shown["loop"]
    assert re.search(r"train\.py:\d+ tried to open a network connection; this sandbox has no network", shown["refused"])
    assert "[output-not-finite]" in shown["refused"]
    assert "the trail verifies" in shown["record"] and "[trail-broken]" in shown["record"]


def test_the_tool_refuses_a_picture_it_does_not_know() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tools.pictures", "nothing"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2 and "nothing" in ended.stderr and "loop" in ended.stderr
