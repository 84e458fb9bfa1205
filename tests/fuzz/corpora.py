# SPDX-License-Identifier: Apache-2.0
"""The kept corpus: `corpus/TARGET.b64`, one input a line in base64, sorted by size.

It holds what a long run found worth keeping (new edges, minimised) and every input that was ever a finding.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path

from tests.fuzz.target import Target

FOLDER = Path(__file__).parent / "corpus"
MAX_INPUT_BYTES = 2048
MAX_FILE_BYTES = 8 * 1024


def kept(target: Target) -> list[bytes]:
    path = FOLDER / f"{target.name}.b64"
    return [base64.b64decode(line) for line in path.read_text().splitlines()] if path.exists() else []


def keep(target: Target, inputs: Iterable[bytes]) -> int:
    """Writes the smallest of `inputs` that fit; returns how many."""
    lines, size = [], 0
    for data in sorted(set(inputs), key=lambda item: (len(item), item)):
        line = base64.b64encode(data).decode()
        if len(data) > MAX_INPUT_BYTES or size + len(line) + 1 > MAX_FILE_BYTES:
            break
        lines.append(line + "\n")
        size += len(line) + 1
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{target.name}.b64").write_text("".join(lines))
    return len(lines)
