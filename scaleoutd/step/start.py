# SPDX-License-Identifier: Apache-2.0
"""How a launcher is started.  Imports nothing of this room: the supervisor in cli/ uses it.

The program is started with the connection to the runner as descriptor 3, the working folder /, an empty environment and
its standard streams inherited.  One launcher serves one connection, that is one task.
"""

from __future__ import annotations

import os

CONNECTION_FD = 3

_PROGRAM = (
    "import sys; sys.path.insert(0, {root!r}); from scaleoutd.step.lean import trim; trim();"
    " from scaleoutd.step.{module} import main; main()"
)


def launcher_command(python: str) -> list[str]:
    """The argument vector of a launcher: isolated (-I), without site packages (-S), writing no byte code (-B)."""
    return _command(python, "launcher")


def template_command(python: str) -> list[str]:
    """That of a template (template.py), which forks launchers; its descriptor 3 is the connection to its starter."""
    return _command(python, "template")


def _command(python: str, module: str) -> list[str]:
    root = os.path.realpath(__file__).rsplit("/", 3)[0]
    return [python, "-I", "-S", "-B", "-c", _PROGRAM.format(root=root, module=module)]
