# SPDX-License-Identifier: Apache-2.0
"""The compiled filters: they are what the profile says, on both architectures, and the bytes in the tree are current."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from scaleoutd.core.seccomp import complement, parse_profile
from scaleoutd.errors import FormatError, LaunchError
from scaleoutd.step import seccomp
from tests.unit.step.bpf import ALLOW, AUDIT_ARCH, ERRNO, KILL_PROCESS, NOTIFY, evaluate

ROOT = Path(__file__).resolve().parents[3]
FILTERS = ROOT / "scaleoutd/step/filters"
X86 = (FILTERS / "step.x86_64.bpf").read_bytes()
ARCH = AUDIT_ARCH["x86_64"]
EPERM, ENOSYS = ERRNO | 1, ERRNO | 38


def verdict(nr: int, *args: int) -> int:
    return evaluate(X86, nr, ARCH, args)


@pytest.mark.parametrize(
    ("nr", "args", "expected"),
    [
        (0, (), ALLOW),  # read
        (59, (), ALLOW),  # execve
        (101, (), NOTIFY),  # ptrace
        (321, (), NOTIFY),  # bpf
        (425, (), NOTIFY),  # io_uring_setup
        (29, (), EPERM),  # shmget
        (322, (), EPERM),  # execveat
        (435, (), ENOSYS),  # clone3
        (462, (), ENOSYS),  # mseal: newer than the list
        (999, (), ENOSYS),
        (56, (0x3D0F00,), ALLOW),  # clone as glibc makes a thread
        (56, (0x10000011,), NOTIFY),  # clone, CLONE_NEWUSER
        (56, (0x20011,), NOTIFY),  # clone, CLONE_NEWNS
        (41, (1, 1), ALLOW),  # socket AF_UNIX stream
        (41, (1, 0x80801), ALLOW),  # with CLOEXEC and NONBLOCK
        (41, (1, 2), NOTIFY),
        (41, (1, 5), NOTIFY),
        (41, (2, 1), NOTIFY),
        (41, (40, 1), NOTIFY),  # AF_VSOCK
        (41, (0x1_0000_0001, 1), NOTIFY),  # high bits do not fool it
        (41, (0x1_0000_0002, 1), NOTIFY),
        (16, (0, 0x5401), ALLOW),  # ioctl TCGETS
        (16, (0, 0x5412), EPERM),  # TIOCSTI
        (16, (0, 0x541C), EPERM),  # TIOCLINUX
        (16, (0, 0xFFFFFFFF_00005412), EPERM),
        (16, (0, 0x1_0000541C), EPERM),
        (135, (0,), ALLOW),  # personality
        (135, (0x40000,), ENOSYS),  # ADDR_NO_RANDOMIZE
        (302, (0,), ALLOW),  # prlimit64 of itself
        (302, (1,), EPERM),
    ],
)
def test_verdict_on_x86_64(nr: int, args: tuple[int, ...], expected: int) -> None:
    assert verdict(nr, *args) == expected


def test_every_ioctl_next_to_the_denied_ones_is_allowed() -> None:
    for command in range(0x5400, 0x5500):
        assert verdict(16, 0, command) == (EPERM if command in (0x5412, 0x541C) else ALLOW), hex(command)


@pytest.mark.parametrize("arch", [0x40000003, AUDIT_ARCH["aarch64"], 0])
def test_foreign_architecture_kills(arch: int) -> None:
    assert evaluate(X86, 0, arch) == KILL_PROCESS


def test_x32_kills() -> None:
    assert verdict(0x40000000 | 39) == KILL_PROCESS


def test_the_inspector_may_only_compute() -> None:
    program = (FILTERS / "inspect.x86_64.bpf").read_bytes()
    allowed = [nr for nr in range(470) if evaluate(program, nr, ARCH) == ALLOW]
    forbidden = {2, 257, 437, 4, 6, 262, 41, 42, 46, 56, 57, 58, 59, 62, 101, 10, 435, 319, 322, 72, 32, 16}
    assert not forbidden & set(allowed)
    assert evaluate(program, 9, ARCH, (0, 0, 3)) == ALLOW  # mmap read and write
    assert evaluate(program, 9, ARCH, (0, 0, 7)) == EPERM  # mmap executable
    assert len(allowed) < 40


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_bytes_in_the_tree_are_what_the_profile_compiles_to(machine: str) -> None:
    """Identical with the libseccomp they were made with; another version must give the same verdicts."""
    pytest.importorskip("pyseccomp", reason="pyseccomp is not installed, so the filters cannot be compiled here")
    from tools import compile_seccomp  # it imports pyseccomp

    for kind in ("step", "inspect"):
        profile = parse_profile((ROOT / f"policy/seccomp/{kind}.json").read_bytes())
        made, kept = compile_seccomp.compile_profile(profile, machine), (FILTERS / f"{kind}.{machine}.bpf").read_bytes()
        if made == kept:
            continue
        arch = AUDIT_ARCH[machine]
        for nr in range(512):
            for first in (0, 1, 2, 0x20000, 0x10000011, 0x40000):
                for second in (0, 1, 2, 5, 0x5401, 0x5412, 0x541C):
                    args = (first, second, second)
                    assert evaluate(made, nr, arch, args) == evaluate(kept, nr, arch, args), (kind, nr, args)


def test_digests_of_sources_and_bytes_are_recorded() -> None:
    index = json.loads((FILTERS / "filters.json").read_text())
    for name, entry in index["filters"].items():
        source = ROOT / "policy/seccomp" / f"{name.split('.')[0]}.json"
        assert entry["sha256"] == hashlib.sha256((FILTERS / name).read_bytes()).hexdigest()
        assert entry["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()


def test_altered_bytes_are_not_loaded(tmp_path: Path) -> None:
    for path in FILTERS.iterdir():
        data = path.read_bytes()
        (tmp_path / path.name).write_bytes(data[:-8] + bytes(8) if path.name.startswith("step.") else data)
    with pytest.raises(LaunchError, match="SHA-256"):
        seccomp.load(str(tmp_path))


def test_complement_matches_all_but_the_denied() -> None:
    mask, denied = 0xFF, frozenset({0x12, 0x1C, 0xFF})
    rules = complement(mask, denied)
    for value in range(256):
        assert any(value & seen == wanted for seen, wanted in rules) == (value not in denied)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"defaultAction": "SCMP_ACT_ALLOW"}, "must be one of"),
        ({"surprise": 1}, "is unknown"),
        ({"syscalls": [{"names": ["read"], "action": "SCMP_ACT_LOG"}]}, "must be one of"),
        ({"syscalls": [{"names": ["read", "read"], "action": "SCMP_ACT_ALLOW"}]}, "twice"),
        ({"syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}] * 2}, "two unconditional"),
        ({"syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "errnoRet": 1}]}, "errnoRet"),
        ({"syscalls": []}, "items"),
    ],
)
def test_profile_that_says_something_else_is_refused(change: dict[str, object], cause: str) -> None:
    profile = json.loads((ROOT / "policy/seccomp/step.json").read_text())
    with pytest.raises(FormatError, match=cause):
        parse_profile(json.dumps({**profile, **change}).encode())
