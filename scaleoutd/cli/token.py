# SPDX-License-Identifier: Apache-2.0
"""A token given on the command line is readable for everyone in /proc/<pid>/cmdline (mode 0444): it is taken off at once.

The process executes itself again, with the same pid, with the token in a memory file in place of the argument.  What stays is
the moment between the two, and the shell's history; `--token-file` has neither.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from scaleoutd.durable import storage_errors
from scaleoutd.errors import ConfigError

FD_OPTION = "--token-fd"
MAX_TOKEN_BYTES = 16 * 1024


def take_off_command_line() -> None:
    """Does not return when there was a token on the command line."""
    arguments = list(sys.argv[1:])
    for index, argument in enumerate(arguments):
        if argument == "--":
            return
        if argument == "--token" and index + 1 < len(arguments):
            token, length = arguments[index + 1], 2
        elif argument.startswith("--token="):
            token, length = argument.removeprefix("--token="), 1
        else:
            continue
        fd = os.memfd_create("scaleoutd-token", 0)
        os.write(fd, token.encode())
        os.lseek(fd, 0, os.SEEK_SET)
        os.set_inheritable(fd, True)
        # Interpreter options and the script, as they were; only the arguments differ.
        before = sys.orig_argv[1 : len(sys.orig_argv) - len(arguments)]
        arguments[index : index + length] = [FD_OPTION, str(fd)]
        os.execv(sys.executable, [sys.executable, *before, *arguments])  # noqa: S606  # ourselves, as we were called


def read_token(fd: int | None, file: Path | None) -> str:
    """The token from the memory file or from `file` ("-" for standard input); "" when neither is given."""
    if fd is not None:
        try:
            return os.read(fd, MAX_TOKEN_BYTES).decode().strip()
        finally:
            os.close(fd)
    if file is None:
        return os.environ.pop("SCALEOUT_AUTH_TOKEN", "").strip()
    with storage_errors(f"read the token file {file}"):
        data = sys.stdin.buffer.read(MAX_TOKEN_BYTES + 1) if str(file) == "-" else file.read_bytes()
    if len(data) > MAX_TOKEN_BYTES:
        raise ConfigError(f"cannot read the token file {file}: it is larger than {MAX_TOKEN_BYTES} bytes")
    return data.decode("ascii", "strict").strip()
