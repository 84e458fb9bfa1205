# SPDX-License-Identifier: Apache-2.0
"""The documents a new user follows, followed: an empty home, an empty folder, the commands as they stand, the output compared."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.e2e.walkthrough import Walkthrough, WrongDocument, blocks, match

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = ROOT / "docs" / "tutorial.md"
SIOCSIFFLAGS, IFF_UP, IFF_RUNNING = 0x8914, 0x1, 0x40  # netdevice(7)


@pytest.fixture(autouse=True)
def own_network(request: pytest.FixtureRequest) -> None:
    """The documents name port 8600; in a network of its own nobody else has it.  An ordinary user's port must be free."""
    if os.geteuid() == 0:
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

        def back() -> None:
            libc_setns(here)
            os.close(here)

        unshare_network()
        request.addfinalizer(back)


def unshare_network() -> None:
    import ctypes

    if ctypes.CDLL(None, use_errno=True).unshare(0x40000000):  # CLONE_NEWNET
        raise OSError(ctypes.get_errno(), "unshare")
    with socket.socket() as channel:
        fcntl.ioctl(channel, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP | IFF_RUNNING))


def libc_setns(fd: int) -> None:
    import ctypes

    if ctypes.CDLL(None, use_errno=True).setns(fd, 0x40000000):
        raise OSError(ctypes.get_errno(), "setns")


@pytest.fixture
def new_user(tmp_path: Path) -> Mapping[str, str]:
    """The environment of somebody who has never been here, with the virtual environment active."""
    home = tmp_path / "home"
    home.mkdir()
    programs = Path(sys.prefix) / "bin"
    return {
        "HOME": str(home),
        "PATH": f"{programs}:{os.environ['PATH']}",
        "VIRTUAL_ENV": sys.prefix,
        "LANG": "C.UTF-8",
        "TERM": "xterm-256color",
        "SCALEOUT_CLIENT_TASK_POLLING_INTERVAL": "0.2",  # 5 s for a person; nothing is told about it
    }


@pytest.fixture
def empty_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


def test_the_tutorial_works_and_shows_what_it_says(new_user: Mapping[str, str], empty_folder: Path) -> None:
    with Walkthrough(empty_folder, new_user) as walk:
        walk.run(TUTORIAL.read_text())
    assert len(walk.commands) > 30, "control: it was run"
    first_hour = empty_folder / "first-hour"
    assert (first_hour / "trained.npz").stat().st_size > 400
    assert not (first_hour / "combiner").exists(), "a combiner that ended leaves no token behind"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """This working tree as a clone would have it, set up; what is made in it stays in it."""
    folder = tmp_path / "scaleoutd"
    folder.mkdir()
    for entry in ROOT.iterdir():
        if entry.name != ".git":
            (folder / entry.name).symlink_to(entry)
    return folder


def test_the_readme_gets_from_clone_to_rounds_in_four_commands(new_user: Mapping[str, str], clone: Path) -> None:
    without_venv = {key: value for key, value in new_user.items() if key != "VIRTUAL_ENV"} | {"PATH": os.environ["PATH"]}
    with Walkthrough(clone, without_venv) as walk:
        walk.run((ROOT / "README.md").read_text())
        programs = [line.split()[0].rpartition("/")[2] for line in walk.commands]
        assert programs == ["make", "scaleoutctl", "scaleoutctl", "scaleoutd"]
        assert any("training on 400 samples" in line for line in walk.terminals["node"].shown), "the round ran in the foreground"


MISTAKES: dict[str, Callable[[str], str]] = {
    "a command that does not exist": lambda text: text.replace("scaleoutctl build", "scaleoutctl bake", 1),
    "an option that does not exist": lambda text: text.replace("run train --in", "run train --model", 1),
    "a figure that is another": lambda text: text.replace("loss 0.5319", "loss 0.5318", 1),
    "a line that does not come": lambda text: text.replace("signed hello, version 1", "signed hello, version 2", 1),
    "a line left out": lambda text: text.replace("  │ wrote seed.npz\n", "", 1),
    "a status that is another": lambda text: text.replace(
        "```sh\nscaleoutctl build", "<!-- status: 1 -->\n```sh\nscaleoutctl build", 1
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_document_is_found(name: str, new_user: Mapping[str, str], empty_folder: Path) -> None:
    document = TUTORIAL.read_text().partition("## 2.")[0]
    wrong = MISTAKES[name](document)
    assert wrong != document
    with Walkthrough(empty_folder, new_user) as walk, pytest.raises(WrongDocument):
        walk.run(wrong)


def test_every_block_of_the_tutorial_is_run_or_compared() -> None:
    found = list(blocks(TUTORIAL.read_text()))
    assert {block.language for block in found} == {"sh", "text", ""}
    assert [block.marks["not run"] for block in found if "not run" in block.marks] == [
        "it made the environment in which the test runs the rest"
    ]


def test_shown_lines_are_compared_whole_and_without_gaps() -> None:
    shown = ["first", "", "second 12", "third"]
    assert match(("first", "second …"), shown) == 3
    assert match(("…", "third"), shown) == 4
    assert match(("first", "third"), shown) is None
    assert match(("second",), shown) is None
    assert match(("fir…", "…", "third"), shown) == 4
