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

OPTIONS = ("--token", "--enrollment-token")  # each has a hidden `…-fd` beside it
MAX_TOKEN_BYTES = 16 * 1024


def take_off_command_line() -> None:
    """Does not return when there was a token on the command line."""
    arguments = list(sys.argv[1:])
    found = False
    index = 0
    while index < len(arguments) and arguments[index] != "--":
        option, mark, token = arguments[index].partition("=")
        length = 1
        if option in OPTIONS and not mark and index + 1 < len(arguments):
            token, length = arguments[index + 1], 2
        if option in OPTIONS and (mark or length == 2):
            arguments[index : index + length] = [f"{option}-fd", str(_in_memory(token))]
            found = True
        index += 1
    if found:
        # Interpreter options and the script, as they were; only the arguments differ.
        before = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv[1:])]
        os.execv(sys.executable, [sys.executable, *before, *arguments])  # noqa: S606  # ourselves, as we were called


def _in_memory(token: str) -> int:
    """A descriptor that the next image inherits."""
    fd = os.memfd_create("scaleoutd-token", 0)
    os.write(fd, token.encode("utf-8", "surrogateescape"))
    os.lseek(fd, 0, os.SEEK_SET)
    os.set_inheritable(fd, True)
    return fd


def read_token(fd: int | None, file: Path | None) -> str:
    """The token from the memory file or from `file` ("-" for standard input); "" when neither is given."""
    if fd is not None:
        try:
            return os.read(fd, MAX_TOKEN_BYTES).decode("ascii", "replace").strip()
        finally:
            os.close(fd)
    if file is None:
        return os.environ.pop("SCALEOUT_AUTH_TOKEN", "").strip()
    if str(file) != "-" and not file.exists():
        raise ConfigError(
            f"cannot read the token file {file}: there is no such file",
            code="config-missing",
            hint="Name the file that holds the token, or - for standard input.",
        )
    with storage_errors(f"read the token file {file}"):
        data = sys.stdin.buffer.read(MAX_TOKEN_BYTES + 1) if str(file) == "-" else file.read_bytes()
    if len(data) > MAX_TOKEN_BYTES:
        raise ConfigError(f"cannot read the token file {file}: it is larger than {MAX_TOKEN_BYTES} bytes")
    return data.decode("ascii", "replace").strip()  # what is no token is refused as such
