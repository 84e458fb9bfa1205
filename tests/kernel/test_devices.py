# SPDX-License-Identifier: Apache-2.0
"""Devices by one word: what the word stands for can be used, its driver's other nodes cannot, and what is absent is a refusal.

The nodes are fakes in a private /dev of the launcher (zero's numbers, so that reading shows something); this machine has no card.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scaleoutd.ipc.step import Execute
from scaleoutd.step import syscalls
from tests.attack.arena import USER
from tests.attack.hosts import show_devices
from tests.step_client import PYTHON, StepClient, plan_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make device nodes (mknod)")

GRANTED = ("nvidiactl", "nvidia-uvm", "nvidia0", "nvidia7", "nvidia-caps/nvidia-cap3")
CLOSED = ("nvidia-modeset", "nvidia-uvm-tools", "nvidia-caps/nvidia-cap1", "nvidia-caps/nvidia-cap2", "nvidia0x", "vda", "kfd")
IOCTL = 0x4600  # of nobody: ENOTTY from a device, EACCES from Landlock
CODE = f"""
import errno, fcntl, json, os
def act(name):
    try:
        fd = os.open("/dev/" + name, os.O_RDONLY if "caps" in name else os.O_RDWR)
    except OSError as exc:
        return errno.errorcode[exc.errno]
    try:
        fcntl.ioctl(fd, {IOCTL})
    except OSError as exc:
        return [len(os.read(fd, 8)), errno.errorcode[exc.errno]]
print(json.dumps({{name: act(name) for name in {(*GRANTED, *CLOSED, "zero")!r}}}))
"""

Change = Callable[[Path], None]


def private_dev(folder: Path, change: Change) -> Callable[[], None]:
    """For the launcher's start, as root: its own /dev with all fakes, each shown to open; then `change` of it."""

    def prepare() -> None:
        show_devices(folder)
        dev = Path("/dev")
        (dev / "nvidia-caps").mkdir()
        for name in (*GRANTED, *CLOSED):
            (dev / name).unlink(missing_ok=True)
            os.mknod(dev / name, stat.S_IFCHR, os.makedev(1, 5))
            (dev / name).chmod(0o444 if "caps" in name else 0o666)
            os.close(os.open(dev / name, os.O_RDONLY))  # the control: from outside it opens
        change(dev)

    return prepare


class Place:
    def __init__(self, folder: Path, uid: int | None, change: Change) -> None:
        home = folder / "home"
        home.mkdir()
        if uid is not None:
            os.chown(home, uid, uid)
        self.scratch = home / "scratch"
        self.client = StepClient(uid=uid, before_exec=private_dev(folder / "dev", change))

    def act(self, **changes: Any) -> dict[str, Any]:
        done = self.client.execute(plan_for(self.scratch, [PYTHON, "-c", CODE], **changes))
        assert done.result.exit_status == 0, done
        found: dict[str, Any] = json.loads(done.output)
        return found


@pytest.fixture
def place() -> Iterator[Callable[..., Place]]:
    folder = Path("/tmp") / f"scaleoutd-devices-{secrets.token_hex(8)}"
    folder.mkdir(mode=0o755)
    made: list[Place] = []

    def make(uid: int | None = None, change: Change = lambda _: None) -> Place:
        made.append(Place(folder, uid, change))
        return made[-1]

    yield make
    for found in made:
        found.client.close()
    for path in (folder / "home/scratch", folder / "home", folder / "dev", folder):
        if path.exists():
            path.rmdir()


@pytest.mark.parametrize("uid", [None, USER], ids=["root", "user"])
def test_the_word_opens_its_nodes_and_no_other(place: Callable[..., Place], uid: int | None) -> None:
    found = place(uid).act(devices=("nvidia",))
    assert {name: found[name] for name in GRANTED} == {name: [8, "ENOTTY"] for name in GRANTED}
    assert {found[name] for name in CLOSED} == {"ENOENT"}
    assert found["zero"] == [8, "EACCES" if syscalls.landlock_abi() >= 5 else "ENOTTY"]  # a plain device takes no ioctl


@pytest.mark.parametrize("uid", [None, USER], ids=["root", "user"])
def test_without_the_word_there_is_none(place: Callable[..., Place], uid: int | None) -> None:
    found = place(uid).act()
    assert {found[name] for name in (*GRANTED, *CLOSED)} == {"ENOENT"}


def test_without_a_view_landlock_knows_the_nodes(place: Callable[..., Place]) -> None:
    if syscalls.landlock_abi() < 1:
        pytest.skip("this kernel has no Landlock, which alone holds the backend inner")
    found = place(USER)
    given: dict[str, Any] = {"backend": "inner", "outcomes": (), "cwd": str(found.scratch), "links": ()}
    answers = found.act(devices=("nvidia",), **given)
    assert {name: answers[name] for name in GRANTED} == {name: [8, "ENOTTY"] for name in GRANTED}
    assert {answers[name] for name in CLOSED} == {"EACCES"}
    assert {found.act(**given)[name] for name in GRANTED} == {"EACCES"}


@pytest.mark.parametrize("devices", [(), ("nvidia",)], ids=["none", "nvidia"])
def test_no_foreign_device_is_proven_with_cards_on_the_host(place: Callable[..., Place], devices: tuple[str, ...]) -> None:
    found = place()
    probed = found.client.probe(plan_for(found.scratch, [PYTHON], devices=devices))
    assert {item.name: item.status for item in probed.outcomes}["no-foreign-device"] == "proven"


def link(dev: Path) -> None:
    (dev / "nvidiactl").unlink()
    (dev / "nvidiactl").symlink_to("vda")


def file(dev: Path) -> None:
    (dev / "nvidiactl").unlink()
    (dev / "nvidiactl").touch(0o666)


def no_card(dev: Path) -> None:
    for name in ("nvidia0", "nvidia7"):
        (dev / name).unlink()


ABSENT: dict[str, tuple[Change, str]] = {
    "node-absent": (lambda dev: (dev / "nvidia-uvm").unlink(), "expected /dev/nvidia-uvm as"),
    "no-card": (no_card, "expected /dev/nvidia0 or another number as"),
    "closed-to-users": (lambda dev: (dev / "nvidiactl").chmod(0o660), "expected /dev/nvidiactl as"),
    "link-to-a-disk": (link, "expected /dev/nvidiactl as"),
    "regular-file": (file, "expected /dev/nvidiactl as"),
}


@pytest.mark.parametrize("case", ABSENT)
def test_what_is_absent_refuses_the_run(place: Callable[..., Place], case: str) -> None:
    change, expected = ABSENT[case]
    found = place(change=change)
    plan = plan_for(found.scratch, [PYTHON, "-c", "print('ran')"], devices=("nvidia",))
    with open(os.memfd_create("log"), "rb") as log:
        found.client.channel.tell(Execute(plan), [log.fileno()])
        refused = found.client.refused()
        assert log.read() == b""  # nothing ran
    assert refused.code == "device-missing" and expected in refused.message
    # The control: the same node goes on with what needs no device; and its start was not refused.
    assert found.act()["zero"][0] == 8
    assert {item.status for item in found.client.probe(plan).outcomes} == {"proven"}


def test_a_card_that_vanishes_is_a_refusal_and_not_a_run_without_it(place: Callable[..., Place]) -> None:
    found = place()
    assert found.act(devices=("nvidia",))["nvidia0"] == [8, "ENOTTY"]
    os.unlink(f"/proc/{found.client.process.pid}/root/dev/nvidia-uvm")
    plan = plan_for(found.scratch, [PYTHON, "-c", "print('ran')"], devices=("nvidia",))
    with open(os.memfd_create("log"), "rb") as log:
        found.client.channel.tell(Execute(plan), [log.fileno()])
        assert found.client.refused().code == "device-missing"
