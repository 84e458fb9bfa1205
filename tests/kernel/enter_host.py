# SPDX-License-Identifier: Apache-2.0
"""Becomes an ordinary user on a host that gives no namespaces, and runs a command there.  A program of its own:

    python enter_host.py UID FOLDER SHOWN_AT COMMAND …      FOLDER is shown at SHOWN_AT too (root only; the same: nothing is done)

user_namespaces(7): the limit in /proc/sys/user is of the user namespace that reads it, so the machine keeps its own.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
PR_SET_DUMPABLE = 4


def main(uid: int, folder: str, shown_at: str, command: list[str]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)

    def must(result: int, act: str) -> None:
        if result:
            raise OSError(ctypes.get_errno(), f"{act}: {os.strerror(ctypes.get_errno())}")

    if os.geteuid() == 0:
        if folder != shown_at:
            must(libc.unshare(CLONE_NEWNS), "unshare")
            must(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "mount")
            must(libc.mount(folder.encode(), shown_at.encode(), None, MS_BIND, None), "mount")
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    gid = os.getegid()
    libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # or the maps would be root's
    must(libc.unshare(CLONE_NEWUSER), "unshare")
    for name, text in (("setgroups", "deny"), ("gid_map", f"{gid} {gid} 1"), ("uid_map", f"{uid} {uid} 1")):
        Path(f"/proc/self/{name}").write_text(text)
    Path("/proc/sys/user/max_user_namespaces").write_text("0")
    os.execvpe(command[0], command, os.environ)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:])
