# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.fault.parent POINTS client start …`: scaleoutd with rooms that have fault points, brought back quickly."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from scaleoutd.cli import rooms
from scaleoutd.cli.scaleoutd import main as scaleoutd
from tests.fault import points


def main() -> None:
    folder = sys.argv.pop(1)

    def room_command(room: str, arguments: Sequence[str]) -> list[str]:
        return points.command(folder, room, list(arguments), rooms.PACKAGE_ROOT)

    rooms.room_command = room_command
    rooms.MAX_PAUSE_S = 0.2
    scaleoutd()


if __name__ == "__main__":
    main()
