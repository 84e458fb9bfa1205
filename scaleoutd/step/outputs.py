# SPDX-License-Identifier: Apache-2.0
"""Opening what a step wrote: by a child of the step's uid, from the scratch folder downwards, following nothing.

Nothing of the run lives any more, so what is checked stays what it is.  O_NONBLOCK keeps a FIFO from stopping the reader;
one link only, because a second name could lie outside (open(2), link(2)).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from typing import Any

from scaleoutd.errors import LaunchError, OutputError


def open_outputs(names: Sequence[str], limits: Sequence[int]) -> Sequence[int]:
    """Descriptors of the files `names`, relative to the working folder, each of at most its limit's bytes."""
    return [_open(name, most) for name, most in zip(names, limits, strict=True)]


def check_all(names: Sequence[str], limits: Sequence[int], opened: list[int]) -> None:
    """The same in the launcher, which believes no child: the descriptors become the caller's or are closed by it."""
    if len(opened) != len(names):
        raise LaunchError("cannot take the outputs: the child that opens them answered with other descriptors")
    for fd, name, most in zip(opened, names, limits, strict=True):
        check(fd, name, most)


def open_only(folders: Sequence[str], most: int) -> tuple[dict[str, Any], Sequence[int]]:
    """A descriptor of the one file that lies in `folders`, and its name; OutputError when there is none or more."""
    found = [
        (f"{folder}/{name}", name) for folder in folders for name in sorted(os.listdir(folder)) if not _is_folder(folder, name)
    ]
    if not found:
        raise OutputError(
            "cannot take the seed model: the step wrote no file",
            code="output-missing",
            hint="It must write one file, to its working folder or to $SCALEOUT_BUILD_OUTPUT_DIR.",
        )
    if len(found) > 1:
        names = ", ".join(name[:64] for _, name in found[:5])
        raise _unsafe(names, f"the step wrote {len(found)} files, expected one: the seed model")
    path, name = found[0]
    return {"name": name}, [_open(path.removeprefix("./"), most)]


def _is_folder(folder: str, name: str) -> bool:
    return stat.S_ISDIR(os.lstat(f"{folder}/{name}").st_mode)


def check(fd: int, name: str, most: int) -> int:
    """The size of what `fd` is open on; OutputError unless it is a regular file with one name, open for reading."""
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        raise _unsafe(name, "it is no regular file")
    if info.st_nlink != 1:
        raise _unsafe(name, f"it has {info.st_nlink} names")
    if info.st_size > most:
        raise OutputError(
            f"cannot take the output {name}: it has {info.st_size} bytes, at most {most} are read",
            code="limit-output",
            hint="Raise output_bytes in the policy, or write less.",
        )
    return info.st_size


def _open(name: str, most: int) -> int:
    folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    *folders, last = name.split("/")
    try:
        for part in folders:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            os.close(folder)
            folder = below
        fd = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError as exc:
        raise OutputError(
            f"cannot take the output {name}: the step did not write it",
            code="output-missing",
            hint="The step is called with the paths of its input and its output; it must write to the second.",
        ) from exc
    except OSError as exc:
        if exc.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.ENODEV):
            raise _unsafe(name, "it, or a folder above it, is a link or a special file") from exc
        raise _unsafe(name, exc.strerror or str(exc)) from exc
    finally:
        os.close(folder)
    check(fd, name, most)
    return fd


def _unsafe(name: str, cause: str) -> OutputError:
    return OutputError(
        f"cannot take the output {name}: {cause}", code="output-unsafe", hint="The step must write a plain file of its own."
    )
