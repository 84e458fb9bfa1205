# SPDX-License-Identifier: Apache-2.0
"""Every row of hostile_models.py against the inspector and the gate of a real step instance; with its control."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attack.gate import answer, gate, inspect
from tests.attack.hostile_models import HONEST, MODELS, RAN, SIX, Hostile
from tests.step_client import StepClient


@pytest.fixture(scope="module")
def client() -> Iterator[StepClient]:
    with StepClient() as found:
        yield found


@pytest.mark.parametrize("row", MODELS, ids=lambda row: row.attack.replace(" ", "-"))
def test_a_hostile_model_is_refused_and_runs_nothing(client: StepClient, tmp_path: Path, row: Hostile) -> None:
    assert row.naive(row.data), "the control: a careless reader is not taken in, so this row shows nothing"
    RAN.clear()
    assert answer(client, row, tmp_path) == row.code
    assert not RAN


@pytest.mark.parametrize("kind", [kind for kind in HONEST if kind != "update"])
def test_control_an_honest_model_is_taken(client: StepClient, tmp_path: Path, kind: str) -> None:
    assert inspect(client, HONEST[kind], tmp_path) == "ok"


def test_control_an_honest_update_leaves(client: StepClient, tmp_path: Path) -> None:
    assert gate(client, HONEST["update"], SIX, tmp_path) == "ok"


def test_control_honest_updates_of_the_other_kinds_leave(client: StepClient, tmp_path: Path) -> None:
    for kind in ("torch", "safetensors", "npz, deflated"):
        folder = tmp_path / kind
        folder.mkdir()
        assert gate(client, HONEST[kind], HONEST[kind], folder) == "ok"
