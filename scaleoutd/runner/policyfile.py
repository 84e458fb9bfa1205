# SPDX-License-Identifier: Apache-2.0
"""Reads the policy in force.  It is read for each task, after the request: a change counts from the next task on."""

from __future__ import annotations

import functools
from pathlib import Path

from scaleoutd.core.policy import MAX_POLICY_BYTES, Policy, parse_policy
from scaleoutd.errors import ConfigError


def read_policy(path: Path) -> Policy:
    """The policy in its canonical form (`policy.lock`)."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_POLICY_BYTES + 1)
    except OSError as exc:
        raise ConfigError(
            f"cannot read the policy {path}: {exc.strerror}",
            code="config-missing",
            hint="See its path, owner and mode.",
        ) from exc
    if len(data) > MAX_POLICY_BYTES:
        raise ConfigError(f"cannot read the policy {path}: it is larger than {MAX_POLICY_BYTES} bytes")
    return _parsed(data)


_parsed = functools.lru_cache(maxsize=2)(parse_policy)  # a function of the bytes, which are read every time
