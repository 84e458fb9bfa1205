# SPDX-License-Identifier: Apache-2.0
"""One line of the doctor: what was looked at, how it is, why, and the exact command or policy key that changes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scaleoutd.core.policy import Policy

Status = Literal["ok", "warn", "fail"]
EXIT: dict[Status, int] = {"ok": 0, "warn": 1, "fail": 2}


@dataclass(frozen=True)
class Finding:
    """`check` is stable.  `fix` is empty when there is nothing to do."""

    check: str
    status: Status
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Subject:
    """What the doctor was asked about.  Without a policy file `policy` is what the development mode would use."""

    state: Path
    policy: Policy
    policy_file: Path | None
    project: Path | None
    certificate: Path | None
    key: Path | None
    root: bool
    environment: Mapping[str, str]
    installed: bool = False  # the node of this host, with units and users of its own

    @property
    def development(self) -> bool:
        return self.policy_file is None

    @property
    def interpreter(self) -> str:
        """The interpreter of the policy's first environment."""
        return next((self.policy.environments[name].python for name in sorted(self.policy.environments)), "")


def ok(check: str, found: str) -> Finding:
    return Finding(check, "ok", found)


def warn(check: str, found: str, fix: str) -> Finding:
    return Finding(check, "warn", found, fix)


def fail(check: str, found: str, fix: str) -> Finding:
    return Finding(check, "fail", found, fix)


def read_text(path: str | Path) -> str | None:
    """A small file of /proc or /sys, stripped; None when it is not there or may not be read."""
    try:
        return Path(path).read_text("utf-8", "replace").strip()
    except OSError:
        return None
