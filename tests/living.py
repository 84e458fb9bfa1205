# SPDX-License-Identifier: Apache-2.0
"""A look at a tree that others change meanwhile.

Path.rglob of Python 3.11 raises FileNotFoundError when a folder goes while it is walked, also when the caller would have dropped
what is in it.  Every test that looks at the folders of a running room walks them with this.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path


def below(folder: Path, leave_out: Collection[str] = ()) -> Iterator[Path]:
    """Every path below `folder` that is still there when it is looked at; a folder comes before what is in it.

    Links are not followed, and folders of the names `leave_out`, at any depth, are neither told nor entered.  `folder` itself has
    to be there: a name that nobody makes would otherwise pass for an empty folder.
    """
    with os.scandir(folder) as found:
        entries = list(found)
    for entry in entries:
        if entry.name in leave_out:
            continue
        path = Path(entry.path)
        yield path
        if entry.is_dir(follow_symlinks=False):
            try:
                yield from below(path, leave_out)
            except (FileNotFoundError, NotADirectoryError):
                continue


def files_below(folder: Path, leave_out: Collection[str] = ()) -> Iterator[Path]:
    """The regular files of `below`."""
    return (path for path in below(folder, leave_out) if not path.is_symlink() and path.is_file())
