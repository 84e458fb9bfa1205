# SPDX-License-Identifier: Apache-2.0
"""The launcher of a step unit, started as on another host: `unit_host HOST --service` in the place of `room step --service`.

What tests/attack/hosts.py does to a launcher of the foreground before its exec is done here before its main: the filter is
inherited by all that it starts, and with the unit's own filter the stricter answer counts.
"""

from __future__ import annotations

import sys
from typing import cast

from tests.attack import hosts


def main() -> None:
    host = cast(hosts.Host, sys.argv.pop(1))
    hosts.install(hosts.filter_of(host))
    exec(hosts.PRELUDE.get(host, ""), {})
    from scaleoutd.step.launcher import main as start

    start()
