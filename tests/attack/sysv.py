# SPDX-License-Identifier: Apache-2.0
"""A System V shared memory segment of somebody else, open to everybody (shmget(2), shmctl(2)); ended with the arena."""

from __future__ import annotations

import ctypes
import os
import secrets

_IPC_CREAT, _IPC_EXCL, _IPC_RMID = 0o1000, 0o2000, 0


class SharedSegment:
    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.key = secrets.randbits(30) | 1
        self._id = self._libc.shmget(self.key, 4096, _IPC_CREAT | _IPC_EXCL | 0o666)
        if self._id < 0:
            raise OSError(ctypes.get_errno(), f"shmget: {os.strerror(ctypes.get_errno())}")

    def close(self) -> None:
        self._libc.shmctl(self._id, _IPC_RMID, None)
