# SPDX-License-Identifier: Apache-2.0
"""The seccomp profile as a document: OCI runtime specification, section "Seccomp" (config-linux.md), read strictly.

Only what this project uses is accepted; an unknown key or action is refused.  How rules of one call combine:
  1. A rule without `args` holds for every use of the call.
  2. A rule with `args` holds when all of them match.
  3. Where an unconditional ALLOW and a denying rule with one masked comparison name the same call, the denial wins.
     libseccomp would drop it as the narrower rule, so the compiler writes the complement instead (`complement`).
  4. A call that no rule matches gets `defaultAction`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from scaleoutd.core import records, strictjson
from scaleoutd.core.records import Count, Range, Text
from scaleoutd.errors import FormatError

MAX_PROFILE_BYTES = 256 * 1024

Action = Literal["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_NOTIFY", "SCMP_ACT_KILL_PROCESS"]
Operator = Literal["SCMP_CMP_EQ", "SCMP_CMP_NE", "SCMP_CMP_MASKED_EQ"]
Architecture = Literal["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"]
CallName = Annotated[str, Text(64, r"_?[a-z][a-z0-9_]*")]
Errno = Annotated[int, Range(1, 4095)]


@dataclass(frozen=True)
class Argument:
    """A comparison of one argument; for MASKED_EQ `value` is the mask and `valueTwo` what the masked bits must be."""

    index: Annotated[int, Range(0, 5)]
    value: Annotated[int, Range(0)]
    op: Operator
    value_two: Annotated[int, Range(0)] = field(default=0, metadata={"json": "valueTwo"})


@dataclass(frozen=True)
class Rule:
    names: Annotated[tuple[CallName, ...], Count(1, 512)]
    action: Action
    errno: Errno | None = field(default=None, metadata={"json": "errnoRet"})
    args: Annotated[tuple[Argument, ...], Count(0, 6)] = ()
    comment: str = ""


@dataclass(frozen=True)
class Profile:
    default_action: Literal["SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS"] = field(metadata={"json": "defaultAction"})
    syscalls: Annotated[tuple[Rule, ...], Count(1, 1024)]
    architectures: Annotated[tuple[Architecture, ...], Count(1, 2)]
    default_errno: Errno = field(default=1, metadata={"json": "defaultErrnoRet"})

    def notified(self) -> tuple[str, ...]:
        """Names of the calls that go to the supervisor, sorted."""
        return tuple(sorted({name for rule in self.syscalls if rule.action == "SCMP_ACT_NOTIFY" for name in rule.names}))

    def rules_of(self, name: str) -> tuple[Rule, ...]:
        return tuple(rule for rule in self.syscalls if name in rule.names)

    def names(self) -> tuple[str, ...]:
        """Every call that has a rule, sorted."""
        return tuple(sorted({name for rule in self.syscalls for name in rule.names}))


def parse_profile(data: bytes) -> Profile:
    """The profile in `data`; FormatError when it is not strict JSON, not a profile, or contradicts itself."""
    value = strictjson.parse(data, max_bytes=MAX_PROFILE_BYTES, what="the seccomp profile")
    profile = records.decode(Profile, value, "profile")
    for rule in profile.syscalls:
        if rule.errno is not None and rule.action != "SCMP_ACT_ERRNO":
            raise _refuse(f"{rule.names[0]} has errnoRet with {rule.action}")
        if len(set(rule.names)) != len(rule.names):
            raise _refuse(f"a name stands twice in the rule of {rule.names[0]}")
    for name in profile.names():
        _check_call(name, profile.rules_of(name))
    return profile


def _check_call(name: str, rules: tuple[Rule, ...]) -> None:
    plain = [rule for rule in rules if not rule.args]
    if len(plain) > 1:
        raise _refuse(f"{name} has two unconditional rules")
    if not plain or len(rules) == 1:
        return
    denied = [rule for rule in rules if rule.args]
    if plain[0].action != "SCMP_ACT_ALLOW" or not all(_is_masked_denial(rule) for rule in denied):
        raise _refuse(f"{name} mixes an unconditional rule with conditional ones that are no masked denial")
    if len({(rule.args[0].index, rule.args[0].value) for rule in denied}) != 1:
        raise _refuse(f"{name} is denied by different arguments or masks")


def _is_masked_denial(rule: Rule) -> bool:
    return rule.action == "SCMP_ACT_ERRNO" and len(rule.args) == 1 and rule.args[0].op == "SCMP_CMP_MASKED_EQ"


def complement(mask: int, denied: frozenset[int]) -> tuple[tuple[int, int], ...]:
    """Masked comparisons (mask, value) that together match exactly the values under `mask` that are not `denied`.

    Walks the bits of the mask from the top: where no denied value lies in a branch, the branch as a whole is allowed.
    """
    bits = [1 << bit for bit in range(63, -1, -1) if mask >> bit & 1]
    result: list[tuple[int, int]] = []
    pending: list[tuple[int, int, int]] = [(0, 0, 0)]  # bits done, mask so far, value so far
    while pending:
        done, seen, value = pending.pop()
        if not any(candidate & seen == value for candidate in denied):
            result.append((seen, value))
        elif done < len(bits):
            bit = bits[done]
            pending.append((done + 1, seen | bit, value))
            pending.append((done + 1, seen | bit, value | bit))
    return tuple(sorted(result))


def _refuse(cause: str) -> FormatError:
    return FormatError(
        f"cannot use the seccomp profile: {cause}",
        code="record-invalid",
        hint="Compare with policy/seccomp/step.json; one unconditional rule a call, denials by one masked argument.",
    )
