# SPDX-License-Identifier: Apache-2.0
"""The drop-in for `devices: [nvidia]` beside every line of the shipped step unit: what systemd makes of it.

The nodes are fakes in the guest's /dev with zero's numbers, which a container may make; no guest has a card.
"""

from __future__ import annotations

import json

import pytest

from scaleoutd.core.policy import Policy, ProjectRule
from scaleoutd.core.render import STEP, Facts, render
from tests.system.guest import Guest
from tests.system.image import SYSTEMD
from tests.system.test_units_hardening import NOT_COPIED, directives

SUITES = tuple(SYSTEMD)
GRANTED = ("/dev/nvidia-caps/nvidia-cap3", "/dev/nvidia-uvm", "/dev/nvidia0", "/dev/nvidiactl")
CLOSED = ("/dev/nvidia-modeset", "/dev/nvidia-uvm-tools", "/dev/nvidia-caps/nvidia-cap1")
PLAIN = ("/dev/null", "/dev/zero", "/dev/full", "/dev/urandom")
LOOK = f"""
import errno, json, os
def act(path):
    try:
        return len(os.read(os.open(path, os.O_RDONLY), 8))
    except OSError as exc:
        return errno.errorcode[exc.errno]
try:
    os.mknod("/dev/scaleoutd-new", 0o20666, os.makedev(1, 3))
    made = "made"
except OSError as exc:
    made = errno.errorcode[exc.errno]
print(json.dumps({{"made": made}} | {{path: act(path) for path in {(*GRANTED, *CLOSED, *PLAIN)!r}}}))
"""
NODES = f"""
mkdir -p /dev/nvidia-caps
for path in {" ".join((*GRANTED, *CLOSED))}; do mknod -m 666 $path c 1 5; done
"""


def drop_in(*words: str) -> str:
    policy = Policy(1, ProjectRule("heart", "/srv/heart"), "/etc/scaleoutd/trust", devices=tuple(words))  # type: ignore[arg-type]
    return render(policy, Facts(nodes=GRANTED if words else ())).files[STEP].decode()


def seen_by_a_unit(guest: Guest, more: str) -> dict[str, object]:
    """What a program sees in a unit with every line of the shipped one but its program, and a drop-in."""
    lines = [line for line in directives("scaleoutd-step@", hardening=False) if line.partition("=")[0] not in NOT_COPIED]
    start = 'ExecStart=/usr/bin/python3 -I -c "import sys; exec(sys.stdin.read())"'
    text = "\n".join(
        ["[Service]", "Type=oneshot", start, "StandardInput=file:/srv/look.py", "StandardOutput=truncate:/srv/shown"]
    )
    guest.write("/srv/look.py", LOOK)
    guest.write("/run/systemd/system/shown.service", "\n".join([text, *lines]) + "\n")
    guest.write("/run/systemd/system/shown.service.d/50-policy.conf", more)
    guest.run("systemctl daemon-reload && systemctl start shown.service", timeout_s=90)
    return dict(json.loads(guest.read("/srv/shown")))


@pytest.fixture(scope="module")
def host(node: Guest) -> Guest:
    node.script(NODES)
    for path in (*GRANTED, *CLOSED):  # the control: outside each can be read
        assert node.run(f"head -c 8 {path} | wc -c").text == "8"
    return node


def test_the_nodes_are_in_the_units_dev_and_nothing_else_of_the_driver(host: Guest) -> None:
    found = seen_by_a_unit(host, drop_in("nvidia"))
    assert {path: found[path] for path in GRANTED} == dict.fromkeys(GRANTED, 8)
    assert {found[path] for path in CLOSED} == {"ENOENT"}
    assert found["made"] != "made"
    assert [found[path] for path in PLAIN] == [0, 8, 8, 8]
    shown = host.run("systemctl show -p DevicePolicy -p PrivateDevices -p DeviceAllow shown.service").text
    assert "DevicePolicy=closed" in shown and "PrivateDevices=yes" in shown and "DeviceAllow=/dev/nvidia0 rw" in shown


def test_without_the_word_the_unit_has_none(host: Guest) -> None:
    found = seen_by_a_unit(host, drop_in())
    assert {found[path] for path in (*GRANTED, *CLOSED)} == {"ENOENT"}
    assert [found[path] for path in PLAIN] == [0, 8, 8, 8]


def test_where_a_card_is_gone_the_unit_starts_and_its_launcher_sees_it(host: Guest) -> None:
    host.run("rm /dev/nvidia-uvm")
    found = seen_by_a_unit(host, drop_in("nvidia"))
    assert (found["/dev/nvidia-uvm"], found["/dev/nvidia0"]) == ("ENOENT", 8)
