# SPDX-License-Identifier: Apache-2.0
"""What an attacker tries from inside a step.  This package is a program: it runs inside the step and, as the control, outside.

    python3 -c 'from attempts import main; main()' NAME TARGETS-JSON
                                        prints one line of JSON: {"outcome": "allowed" | "denied", "detail": …}

Standard library only; ctypes for calls that Python has no name for.
"""

from __future__ import annotations

import errno
import json
import sys

from . import devices, kernel, mounts, processes, reading, sockets, writing
from .registry import ATTEMPTS

__all__ = ["ATTEMPTS", "PARTS", "main"]
PARTS = (sockets, reading, writing, devices, mounts, processes, kernel)


def main() -> None:
    name, targets = sys.argv[1], json.loads(sys.argv[2])
    try:
        detail = ATTEMPTS[name].act(targets)
        answer = {"outcome": "allowed", "detail": str(detail)[:200]}
    except OSError as exc:
        answer = {"outcome": "denied", "detail": errno.errorcode.get(exc.errno or 0, "") + f" {exc.strerror or exc}"[:200]}
    print(json.dumps(answer), flush=True)
