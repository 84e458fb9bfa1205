# SPDX-License-Identifier: Apache-2.0
"""The tree in a guest: it is where an installed node has it, and its own programs run there on the guest's interpreter."""

from __future__ import annotations

from tests.system.guest import Guest


def test_the_commands_run(node: Guest) -> None:
    assert "usage" in node.run("scaleoutctl --help").text.lower()
    assert "usage" in node.run("scaleoutd --help").text.lower()


def test_every_file_is_roots_and_nobody_else_may_write(node: Guest) -> None:
    found = node.run("find /usr/lib/scaleoutd /usr/bin/scaleout* ! -type l \\( ! -user root -o -perm /022 \\)").text
    assert found == ""


def test_nothing_is_configured_and_nothing_runs(node: Guest) -> None:
    assert node.run("pgrep -f /usr/lib/scaleoutd", check=False).text == ""
