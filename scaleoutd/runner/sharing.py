# SPDX-License-Identifier: Apache-2.0
"""Folders of the runner that one slot may enter, and no other: an access control list on the folder (acl(5)).

In the service every step instance sees the whole store and all models under way, so modes must say which is whose; chown would
need a capability, and the runner has none.  The kernel's format (linux/posix_acl_xattr.h): version 2, then entries of tag,
permissions and id, little-endian.  Without Landlock this alone keeps a step from what is another's.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from scaleoutd.core.plan import STEP_UID_BASE
from scaleoutd.durable import storage_errors

_XATTR = "system.posix_acl_access"
_VERSION = struct.pack("<I", 2)
_ENTRY = struct.Struct("<HHI")
_OWNER, _USER, _GROUP, _MASK, _OTHERS = 0x01, 0x02, 0x04, 0x10, 0x20
_ENTER, _NOTHING = 5, 0  # read and execute
_NO_ID = 0xFFFFFFFF


def share_with_slot(folder: Path, slot: int) -> None:
    """`folder` can be entered by its owner and by the user of `slot`; who could before cannot any more."""
    owner = folder.stat().st_mode >> 6 & 7
    entries = (
        (_OWNER, owner, _NO_ID),
        (_USER, _ENTER, STEP_UID_BASE + slot),
        (_GROUP, _NOTHING, _NO_ID),
        (_MASK, _ENTER, _NO_ID),
        (_OTHERS, _NOTHING, _NO_ID),
    )
    with storage_errors(f"let slot {slot} enter {folder}"):
        os.setxattr(folder, _XATTR, _VERSION + b"".join(_ENTRY.pack(*entry) for entry in entries))


def unshare(folder: Path) -> None:
    """Back to the owner alone."""
    with storage_errors(f"close {folder}"):
        os.removexattr(folder, _XATTR)
        folder.chmod(folder.stat().st_mode & 0o700)
