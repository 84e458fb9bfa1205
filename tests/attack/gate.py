# SPDX-License-Identifier: Apache-2.0
"""Inspector and gate of a real step instance, asked about files."""

from __future__ import annotations

import os
from pathlib import Path

from scaleoutd.core.plan import GateRules, ModelRules
from scaleoutd.errors import ScaleoutError
from tests.attack.hostile_models import MIB, Hostile
from tests.step_client import PYTHON, StepClient, plan_for

RULES = ModelRules(("npz", "safetensors", "torch"), 4 * MIB, max_arrays=100, max_inflated_bytes=4 * MIB)


def inspect(client: StepClient, data: bytes, tmp_path: Path) -> str:
    """ "ok" or the code of the refusal."""
    path = tmp_path / "model"
    path.write_bytes(data)
    with path.open("rb") as file:
        try:
            client.inspect(plan_for(tmp_path / "home/scratch", ["true"]), RULES, file.fileno())
        except ScaleoutError as exc:
            return exc.code
    return "ok"


def gate(client: StepClient, data: bytes, received: bytes, tmp_path: Path) -> str:
    """The same for an update, as a step writes it."""
    scratch = tmp_path / "scratch"
    code = f"w = {data!r}; p = '/scratch/out/model.npz'; open(p, 'wb').write(w)\n"
    code += "open(p + '-metadata', 'w').write('{\"num_examples\": 3}')"
    done = client.execute(plan_for(scratch, [PYTHON, "-c", code]))
    assert done.result.exit_status == 0, done.output
    model = tmp_path / "received"
    model.write_bytes(received)
    with model.open("rb") as file:
        try:
            rules = GateRules("train", 4 * MIB, model=RULES)
            _, weights = client.gate(plan_for(scratch, ["true"]), rules, file.fileno())
        except ScaleoutError as exc:
            return exc.code
    assert weights is not None
    os.close(weights)
    return "ok"


def answer(client: StepClient, row: Hostile, folder: Path) -> str:
    """What is said to a row of hostile_models.py."""
    return gate(client, row.data, row.received, folder) if row.update else inspect(client, row.data, folder)
