# SPDX-License-Identifier: Apache-2.0
"""The kept corpus: `corpus/TARGET.b64`, one input a line in base64, sorted by size.

It holds a part of what a run found worth keeping, for new edges.  Inputs that were a finding are in test_findings.py.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path

from tests.fuzz.target import Target

FOLDER = Path(__file__).parent / "corpus"
MAX_INPUT_BYTES = 1024
MAX_FILE_BYTES = 5 * 1024


def kept(target: Target) -> list[bytes]:
    path = FOLDER / f"{target.name}.b64"
    return [base64.b64decode(line) for line in path.read_text().splitlines()] if path.exists() else []


def keep(target: Target, inputs: Iterable[bytes]) -> int:
    """Writes as many of `inputs` as fit, of all sizes; returns how many."""
    found = sorted({data for data in inputs if 0 < len(data) <= MAX_INPUT_BYTES}, key=lambda item: (len(item), item))
    step = 1
    while sum(len(base64.b64encode(data)) + 1 for data in found[::step]) > MAX_FILE_BYTES:
        step += 1
    FOLDER.mkdir(exist_ok=True)
    lines = [base64.b64encode(data).decode() + "\n" for data in found[::step]]
    (FOLDER / f"{target.name}.b64").write_text("".join(lines))
    return len(lines)
