# SPDX-License-Identifier: Apache-2.0
"""Whether a step's own user can read something: tried by that user, not worked out from mode bits (ACLs, groups, NFS count too).

The unit binds an environment or data set into the step's view, so the folders above it do not matter: they were passed by PID 1.
The try therefore begins at a descriptor of the bound path, opened by root, and goes on as the step's uid.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
from collections.abc import Sequence
from pathlib import Path

STEP_USER = "scaleoutd-step-0"
MAX_TOLD_BYTES = 4096


def step_ids() -> tuple[int, int] | None:
    """uid and gid of the first slot; None where the node's users are not made."""
    try:
        found = pwd.getpwnam(STEP_USER)
    except KeyError:
        return None
    return found.pw_uid, found.pw_gid


def unreachable(bind: Path, paths: Sequence[Path], ids: tuple[int, int]) -> tuple[Path, str] | None:
    """The first of `paths`, all at or below `bind`, or a folder on the way to one, that `ids` cannot read; and why.

    Only root can ask.  None when all can be read.
    """
    read, write = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            os.write(write, _try(bind, paths, ids).encode("utf-8", "surrogateescape")[:MAX_TOLD_BYTES])
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        told = pipe.read().decode("utf-8", "surrogateescape")
    os.waitpid(child, 0)
    where, _, why = told.partition("\0")
    return (Path(where), why) if told else None


def _try(bind: Path, paths: Sequence[Path], ids: tuple[int, int]) -> str:
    """In the child: "" or "PATH\\0reason"."""
    try:
        base = os.open(bind, os.O_PATH | os.O_CLOEXEC)
    except OSError as exc:
        return f"{bind}\0{exc.strerror}"
    uid, gid = ids
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    for path in paths:
        for step in (*reversed([folder for folder in path.parents if folder == bind or bind in folder.parents]), path):
            try:
                _read(base, bind, step)
            except OSError as exc:
                return f"{step}\0{exc.strerror}"
    return ""


def _read(base: int, bind: Path, path: Path) -> None:
    """Opens and reads a little.  A folder must be listed and entered, as an interpreter does with where it imports from."""
    bound = os.fstat(base)
    if not stat.S_ISDIR(bound.st_mode):
        # A single file is bound without its folder; nobody can be asked to open a descriptor anew (/proc/self is root's after
        # the change of uid), so here the mode has to do.
        if not bound.st_mode & stat.S_IROTH:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return
    fd = os.open(path.relative_to(bind), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=base)
    try:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            os.stat(".", dir_fd=fd)
        else:
            os.read(fd, 1)
    finally:
        os.close(fd)
