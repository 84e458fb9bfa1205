# SPDX-License-Identifier: Apache-2.0
"""The inspector: runs in a confined child, reads one model, says what it is.

Everything it imports is loaded by the launcher at start; in the child nothing can be opened any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scaleoutd.core import records
from scaleoutd.core.plan import ModelRules
from scaleoutd.step.model import read_model
from scaleoutd.step.source import FileSource


def inspect_model(rules: ModelRules, size: int, model_fd: int) -> tuple[dict[str, Any], Sequence[int]]:
    """Facts of the model in `model_fd`, as the JSON object of ModelFacts."""
    model = read_model(FileSource(model_fd, size), rules)
    return records.encode(model.facts), ()
