# SPDX-License-Identifier: Apache-2.0
"""A machine for the classic BPF that seccomp accepts (linux/filter.h, kernel/seccomp.c): what does a filter answer?"""

from __future__ import annotations

import struct

_INSTRUCTION = struct.Struct("<HBBI")
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOW, ERRNO, NOTIFY, KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x7FC00000, 0x80000000


def evaluate(program: bytes, nr: int, arch: int, args: tuple[int, ...] = ()) -> int:
    """The 32-bit verdict for one call."""
    padded = [*args, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("<iIQ6Q", nr, arch, 0, *[value & (2**64 - 1) for value in padded])
    at = accumulator = 0
    while True:
        code, yes, no, k = _INSTRUCTION.unpack_from(program, at * 8)
        at += 1
        if code == 0x20:  # LD | W | ABS
            (accumulator,) = struct.unpack_from("<I", data, k)
        elif code == 0x06:  # RET | K
            return int(k)
        elif code == 0x05:  # JMP | JA
            at += k
        elif code in (0x15, 0x25, 0x35, 0x45):  # JEQ, JGT, JGE, JSET against K
            taken = {0x15: accumulator == k, 0x25: accumulator > k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)}[code]
            at += yes if taken else no
        elif code == 0x54:  # AND | K
            accumulator &= k
        else:
            raise AssertionError(f"unknown instruction {code:#x}")
