# SPDX-License-Identifier: Apache-2.0
"""The tree in a guest: it is where an installed node has it, and its own programs run there on the guest's interpreter."""

from __future__ import annotations

from pathlib import Path

from tests.system.guest import Guest
from tests.system.install import install_deb


def test_the_commands_run(node: Guest) -> None:
    assert "usage" in node.run("scaleoutctl --help").text.lower()
    assert "usage" in node.run("scaleoutd --help").text.lower()


def test_every_file_is_roots_and_nobody_else_may_write(node: Guest) -> None:
    found = node.run("find /usr/lib/scaleoutd /usr/bin/scaleout* ! -type l \\( ! -user root -o -perm /022 \\)").text
    assert found == ""


def test_nothing_is_configured_and_nothing_runs(node: Guest) -> None:
    assert node.run("pgrep -f /usr/lib/scaleoutd", check=False).text == ""


def test_the_package_installs_the_same_files_as_the_tree(node: Guest, deb: Path) -> None:
    """What install_tree makes is what the tests of units and commands stand on."""
    ours = "lib/scaleoutd lib/systemd/system/scaleoutd* lib/*.d/scaleoutd* bin/scaleout*"
    sums = f"cd /usr && find {ours} -path lib/scaleoutd/site -prune -o -type f ! -name '*.pyc' -exec sha256sum {{}} + | sort -k 2"
    by_tree = node.run(sums).text
    libraries = node.run("cd /usr/lib/scaleoutd/site && find -name '*.py' | sort").text
    install_deb(node, deb)
    assert node.run(sums).text == by_tree
    assert node.run("cd /usr/lib/scaleoutd/site && find -name '*.py' | sort").text == libraries
