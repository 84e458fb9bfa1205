# SPDX-License-Identifier: Apache-2.0
"""A second module that uses the session's machine finds it as it came up."""

from __future__ import annotations

from tests.system.machine import Machine


def test_nothing_of_the_module_before_is_there(machine: Machine) -> None:
    assert machine.run("ls /var/lib/kept /etc/after", check=False).status == 2
    assert machine.run("sysctl -n user.max_user_namespaces").text != "0"
