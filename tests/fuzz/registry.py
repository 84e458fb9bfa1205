# SPDX-License-Identifier: Apache-2.0
"""Every target by name."""

from __future__ import annotations

from tests.fuzz.target import Target
from tests.fuzz.targets import documents, models, network, rooms, trails, written

TARGETS: dict[str, Target] = {
    target.name: target for module in (documents, written, models, rooms, trails, network) for target in module.TARGETS
}
