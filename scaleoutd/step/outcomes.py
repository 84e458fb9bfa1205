# SPDX-License-Identifier: Apache-2.0
"""Which stage provides which outcome.  What is proven, and not only applied, is the business of probe.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from scaleoutd.core.plan import OUTCOMES, Enforcement, Outcome

if TYPE_CHECKING:
    from scaleoutd.step.orders import Order


def providers(outcome: Outcome, *, own_namespaces: bool, own_uid: bool, landlock_abi: int, unit: bool = False) -> tuple[str, ...]:
    """Names of what holds `outcome`, strongest first; empty when nothing does.

    `unit`: network, mount view and cgroup are those of a systemd unit, which the backend of that name runs in.
    """
    outside = own_namespaces or unit
    table: dict[str, Sequence[tuple[str, bool]]] = {
        "no-socket-out": (
            ("seccomp", True),
            ("network-namespace", outside),
            ("mount-view", outside),
            ("landlock-tcp", landlock_abi >= 4),
            ("landlock-scope", landlock_abi >= 6),
        ),
        "no-signal-out": (
            ("pid-namespace", own_namespaces),
            ("uid", own_uid),
            ("landlock-scope", landlock_abi >= 6),
        ),
        "no-write-outside": (("mount-view", outside), ("landlock", landlock_abi >= 1), ("uid", own_uid)),
        "no-read-outside": (("mount-view", outside), ("landlock", landlock_abi >= 1), ("uid", own_uid)),
        "no-foreign-device": (("mount-view", outside), ("landlock", landlock_abi >= 1), ("capabilities", True)),
        "no-survivor": (("pid-namespace", own_namespaces), ("unit-cgroup", unit)),
    }
    return tuple(name for name, present in table[outcome] if present)


def as_enforced(order: Order) -> tuple[Enforcement, ...]:
    """The outcomes of a run: applied, each with its providers."""
    result = []
    for outcome in OUTCOMES:
        names = providers(
            outcome,
            own_namespaces=order.own_namespaces,
            own_uid=order.identity.change,
            landlock_abi=order.landlock_abi,
            unit=order.unit,
        )
        held = order.own_namespaces or order.unit
        result.append(Enforcement(outcome, status_without_proof(outcome, names, held), names))
    return tuple(result)


def status_without_proof(outcome: Outcome, names: Sequence[str], held: bool) -> Literal["proven", "enforced", "partial", "open"]:
    """With namespaces, or in a unit, a stage that could not be entered ends the run, so what was applied holds."""
    if held:
        return "enforced"
    if outcome == "no-survivor":
        return "partial"  # descendants are hunted down, no kernel object holds them together
    return "partial" if names else "open"
