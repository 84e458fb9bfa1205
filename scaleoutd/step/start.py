# SPDX-License-Identifier: Apache-2.0
"""How a launcher is started.  Imports nothing of this room: the supervisor in cli/ uses it.

The program is started with the connection to the runner as descriptor 3, the working folder /, an empty environment and
its standard streams inherited.  One launcher serves one connection, that is one task.
"""

from __future__ import annotations

import os

CONNECTION_FD = 3

_PROGRAM = "import sys; sys.path.insert(0, {root!r}); from scaleoutd.step.launcher import main; main()"


def launcher_command(python: str) -> list[str]:
    """The argument vector: isolated (-I), without site packages (-S), writing no byte code (-B)."""
    root = os.path.realpath(__file__).rsplit("/", 3)[0]
    return [python, "-I", "-S", "-B", "-c", _PROGRAM.format(root=root)]
