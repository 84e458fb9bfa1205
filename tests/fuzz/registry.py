# SPDX-License-Identifier: Apache-2.0
"""Every target by name."""

from __future__ import annotations

from tests.fuzz.target import Target
from tests.fuzz.targets import combiner, documents, issued, kept, models, network, rooms, second, trails, written

TARGETS: dict[str, Target] = {
    target.name: target
    for module in (documents, second, written, models, rooms, kept, trails, network, issued, combiner)
    for target in module.TARGETS
}
