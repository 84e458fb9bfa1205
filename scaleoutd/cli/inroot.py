# SPDX-License-Identifier: Apache-2.0
"""Looks at another root folder with that root's own paths and symbolic links, as the node there will see them.

In a forked child after chroot(2): an absolute link in an image must not lead into this host.  Nothing of the image is executed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from scaleoutd.core import strictjson
from scaleoutd.core.strictjson import Json
from scaleoutd.durable import write_all
from scaleoutd.errors import ConfigError, ScaleoutError, from_code

MAX_ANSWER_BYTES = 4 * 1024 * 1024


def in_root(root: Path, look: Callable[[], Json]) -> Json:
    """What `look` returns below `root`; its ScaleoutError is raised here.  What it needs must be imported before."""
    if root == Path("/"):
        return look()
    if os.geteuid() != 0:
        raise ConfigError(f"cannot look into {root}: only root may enter another root (chroot)", hint="Use sudo.")
    strictjson.canonical({"a": 1, "b": 2})  # loads the codec of its sort order, which the other root may not have
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        os._exit(_answer(root, look, write))
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read(MAX_ANSWER_BYTES + 1)
    _, status = os.waitpid(child, 0)
    if status:
        raise ConfigError(f"cannot look into {root}: the child ended with status {status}")
    answer = strictjson.parse(data, max_bytes=MAX_ANSWER_BYTES, what="what was found in the other root")
    if not isinstance(answer, dict) or "found" not in answer:
        failed = answer if isinstance(answer, dict) else {}
        raise from_code(str(failed.get("code")), str(failed.get("message")), str(failed.get("hint")))
    return answer["found"]


def _answer(root: Path, look: Callable[[], Json], fd: int) -> int:
    """In the child: nothing but the pipe and the exit status leaves it."""
    try:
        os.chroot(root)
        os.chdir("/")
        try:
            told: Json = {"found": look()}
        except ScaleoutError as exc:
            told = {"code": exc.code, "message": exc.message, "hint": exc.hint}
        write_all(fd, strictjson.canonical(told))
    except BaseException:  # noqa: BLE001 (a traceback of the child would be printed twice)
        return 1
    return 0
