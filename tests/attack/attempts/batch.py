# SPDX-License-Identifier: Apache-2.0
"""Many attempts in one step, each in a process of its own: `run(FOLDER, FILE)`, FILE holds {"names": …, "targets": …}.

Prints a line of JSON for each: [name, exit status (negative: a signal), what it printed].
"""

from __future__ import annotations

import json
import subprocess
import sys


def run(folder: str, file: str) -> None:
    """`folder` is that of the package `attempts`."""
    with open(file) as opened:
        given = json.load(opened)
    for name in given["names"]:
        command = program(sys.executable, folder, name, json.dumps(given["targets"]))
        # What came from the launcher and was left open goes on to the attempt, which looks for it.
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, close_fds=False)
        print(json.dumps([name, done.returncode, done.stdout[-400:]]), flush=True)


def program(python: str, folder: str, name: str, targets: str) -> list[str]:
    """The command of one attempt."""
    return [python, "-B", "-c", f"import sys; sys.path.insert(0, {folder!r}); from attempts import main; main()", name, targets]


def batch(python: str, folder: str, file: str) -> list[str]:
    """The command of a batch."""
    load = f"import sys; sys.path.insert(0, {folder!r}); from attempts.batch import run; run(*sys.argv[1:])"
    return [python, "-B", "-c", load, folder, file]
