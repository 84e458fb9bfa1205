# SPDX-License-Identifier: Apache-2.0
"""The folder that a step may write to: made clean before the run, emptied after it.

The launcher makes the folder itself and gives it to the slot's uid.  What a step left in it is deleted by a child of the
step's uid, so a link planted by a step can only lead to what the step could have deleted itself.
"""

from __future__ import annotations

import os
import stat

from scaleoutd.errors import LaunchError
from scaleoutd.step.confine import Identity

OUTPUT_FOLDER = "out"


def check(path: str) -> None:
    """Refuses a path that no scratch folder can have: emptying it would be a disaster."""
    parts = path.split("/")[1:]
    if len(parts) < 2 or any(part in ("", ".", "..") for part in parts):
        raise LaunchError(f"cannot use {path!r} as scratch: it must be a plain absolute path at least two folders deep")


def make(path: str, identity: Identity) -> bool:
    """Makes the folder, mode 0700, the slot's; an existing one must be a folder of the slot or of the launcher.

    An empty one is made anew: the size of a folder that held many names tells the next run of them (ext4 never shrinks it).
    When nothing is in it the output folder is made at once and True returned; else the caller has it emptied by a child.
    """
    check(path)
    _remove_empty(path, identity)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError as exc:
        raise LaunchError(f"cannot make the scratch folder {path}: {exc.strerror}") from exc
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        info = os.fstat(fd)
        if info.st_uid not in (identity.uid, os.geteuid()):
            raise LaunchError(f"cannot use {path} as scratch: it belongs to uid {info.st_uid}, expected {identity.uid}")
        if identity.change and info.st_uid != identity.uid:
            os.fchown(fd, identity.uid, identity.gid)
        if stat.S_IMODE(info.st_mode) != 0o700:
            os.fchmod(fd, 0o700)
        if os.listdir(fd):
            return False
        os.mkdir(OUTPUT_FOLDER, 0o700, dir_fd=fd)
        if identity.change:
            os.chown(OUTPUT_FOLDER, identity.uid, identity.gid, dir_fd=fd, follow_symlinks=False)
        return True
    finally:
        os.close(fd)


def _remove_empty(path: str, identity: Identity) -> None:
    try:
        if os.lstat(path).st_uid in (identity.uid, os.geteuid()):
            os.rmdir(path)
    except OSError:
        return  # not there, or something is in it: `make` says what is wrong


def empty(path: str) -> None:
    """Deletes everything below `path`, as whoever calls; OSError when something stays."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _empty_folder(fd)
    finally:
        os.close(fd)


def make_output_folder(path: str) -> None:
    os.mkdir(f"{path}/{OUTPUT_FOLDER}", 0o700)


def _empty_folder(top: int) -> None:
    """Without recursion in Python or in descriptors: a deep chain of folders is moved up piece by piece."""
    while True:
        with os.scandir(top) as items:
            names = [(item.name, item.is_dir(follow_symlinks=False)) for _, item in zip(range(4096), items, strict=False)]
        if not names:
            return
        for name, is_folder in names:
            if is_folder:
                _lift(top, name)
            else:
                os.unlink(name, dir_fd=top)


def _lift(top: int, name: str) -> None:
    """Moves the folders inside `name` up into `top`, deletes the rest of it, and then it."""
    os.chmod(name, 0o700, dir_fd=top)
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
    try:
        serial = 0
        while True:
            with os.scandir(fd) as items:
                names = [(item.name, item.is_dir(follow_symlinks=False)) for _, item in zip(range(4096), items, strict=False)]
            if not names:
                break
            for child, is_folder in names:
                if not is_folder:
                    os.unlink(child, dir_fd=fd)
                    continue
                os.chmod(child, 0o700, dir_fd=fd)
                while True:
                    serial += 1
                    lifted = f".lifted-{os.getpid()}-{serial}"
                    try:
                        os.rename(child, lifted, src_dir_fd=fd, dst_dir_fd=top)
                        break
                    except OSError as exc:
                        if exc.errno not in (17, 39):  # EEXIST, ENOTEMPTY: that name is taken
                            raise
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=top)
