# SPDX-License-Identifier: Apache-2.0
"""Compiles policy/seccomp/*.json to the bytes that the launcher loads (build time only: imports pyseccomp).

    python tools/compile_seccomp.py            writes scaleoutd/step/filters/
    python tools/compile_seccomp.py --check    exit status 1 when what is there differs

The bytes are classic BPF, 8 bytes an instruction, from libseccomp with CTL_OPTIMIZE=2 (a binary tree; the linear form costs
twice as much to load).  A foreign architecture, and x32 on x86_64, kills the process.  `filters.json` has the SHA-256 of
each file and of its source, and the numbers of the calls that are notified, for their names in the result.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyseccomp

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scaleoutd.core.seccomp import Argument, Profile, Rule, complement, parse_profile  # noqa: E402

SOURCES = {"step": ROOT / "policy/seccomp/step.json", "inspect": ROOT / "policy/seccomp/inspect.json"}
OUTPUT = ROOT / "scaleoutd/step/filters"
MACHINES = {
    "x86_64": ("SCMP_ARCH_X86_64", pyseccomp.Arch.X86_64),
    "aarch64": ("SCMP_ARCH_AARCH64", pyseccomp.Arch.AARCH64),
}
OPERATORS = {"SCMP_CMP_EQ": pyseccomp.EQ, "SCMP_CMP_NE": pyseccomp.NE, "SCMP_CMP_MASKED_EQ": pyseccomp.MASKED_EQ}
CTL_OPTIMIZE = 8  # SCMP_FLTATR_CTL_OPTIMIZE of seccomp.h; pyseccomp has no name for it


def compile_profile(profile: Profile, machine: str) -> bytes:
    """BPF bytes of `profile` for one architecture."""
    name, arch = MACHINES[machine]
    if name not in profile.architectures:
        raise SystemExit(f"the profile is not for {machine}")
    out = pyseccomp.SyscallFilter(_action(profile.default_action, profile.default_errno))
    if arch != pyseccomp.system_arch():
        out.add_arch(arch)
        out.remove_arch(pyseccomp.system_arch())
    out.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
    out.set_attr(CTL_OPTIMIZE, 2)
    for call in profile.names():
        number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, call)
        if number < 0 or pyseccomp.resolve_syscall(arch, call) < 0:
            continue  # not on this architecture, or newer than this libseccomp: the default action holds
        for rule in _as_libseccomp_wants(profile.rules_of(call)):
            action = _action(rule.action, rule.errno or 1)
            if action != _action(profile.default_action, profile.default_errno):
                out.add_rule(action, number, *[_argument(argument) for argument in rule.args])
    with tempfile.TemporaryFile() as file:
        out.export_bpf(file)
        file.seek(0)
        return file.read()


def _as_libseccomp_wants(rules: tuple[Rule, ...]) -> list[Rule]:
    """Rule 3 of scaleoutd.core.seccomp: an unconditional ALLOW beside denials becomes the complement of the denials."""
    plain = [rule for rule in rules if not rule.args]
    denied = [rule for rule in rules if rule.args]
    if not plain or not denied:
        return list(rules)
    first = denied[0].args[0]
    values = frozenset(rule.args[0].value_two for rule in denied)
    allowed = [
        Rule(plain[0].names, "SCMP_ACT_ALLOW", None, (Argument(first.index, mask, "SCMP_CMP_MASKED_EQ", value),))
        for mask, value in complement(first.value, values)
    ]
    return [*allowed, *denied]


def _argument(argument: Argument) -> Any:
    return pyseccomp.Arg(argument.index, OPERATORS[argument.op], argument.value, argument.value_two)


def _action(action: str, errno: int) -> int:
    simple = {
        "SCMP_ACT_ALLOW": pyseccomp.ALLOW,
        "SCMP_ACT_NOTIFY": pyseccomp.NOTIFY,
        "SCMP_ACT_KILL_PROCESS": pyseccomp.KILL_PROCESS,
    }
    value: int = simple[action] if action in simple else pyseccomp.ERRNO(errno)
    return value


def build() -> dict[str, bytes]:
    """File name → content of everything below scaleoutd/step/filters."""
    files: dict[str, bytes] = {}
    index: dict[str, Any] = {"filters": {}, "notified": {}}
    for kind, path in SOURCES.items():
        source = path.read_bytes()
        profile = parse_profile(source)
        for machine, (_, arch) in MACHINES.items():
            name = f"{kind}.{machine}.bpf"
            files[name] = compile_profile(profile, machine)
            index["filters"][name] = {
                "sha256": hashlib.sha256(files[name]).hexdigest(),
                "source_sha256": hashlib.sha256(source).hexdigest(),
                "instructions": len(files[name]) // 8,
            }
            if kind == "step":
                numbers = {call: pyseccomp.resolve_syscall(arch, call) for call in profile.notified()}
                index["notified"][machine] = {str(nr): call for call, nr in sorted(numbers.items()) if nr >= 0}
    files["filters.json"] = (json.dumps(index, indent=1, sort_keys=True) + "\n").encode()
    return files


def main() -> int:
    files = build()
    if "--check" in sys.argv[1:]:
        differing = [name for name, data in files.items() if not (OUTPUT / name).exists() or (OUTPUT / name).read_bytes() != data]
        print("differs: " + ", ".join(differing) if differing else "all filters are up to date")
        return 1 if differing else 0
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (OUTPUT / name).write_bytes(data)
        print(f"{name}: {len(data)} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
