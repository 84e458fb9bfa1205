# SPDX-License-Identifier: Apache-2.0
"""The official client in importer mode, its default, completes rounds against the devcombiner: so the comparison is fair."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from scaleoutd.devcombiner.npz import flat, write_npz
from scaleoutd.devcombiner.server import DevCombiner
from tests.e2e.official.client import official_client

SEED = {"0": flat("f4", (2, 2), [0.0, 1.0, 2.0, 3.0]), "1": flat("f8", (1,), [0.5])}
STARTUP = """\
from scaleoututil.helpers.helpers import get_helper
from scaleoututil.utils.model import ScaleoutModel

helper = get_helper("numpyhelper")


def startup(client):
    def train(model, settings):
        client.check_task_abort()
        weights = [part + {delta} * settings["scale"] for part in model.get_training_model(helper)]
        client.log_metric({{"loss": 0.5}}, step=1)
        return ScaleoutModel.from_training_model(weights, helper), {{"training_metadata": {{"num_examples": {examples}}}}}

    def validate(model):
        return {{"mean": float(sum(part.sum() for part in model.get_training_model(helper))) / 5}}

    client.set_train_callback(train)
    client.set_validate_callback(validate)
"""


def write_project(folder: Path, delta: float, examples: int) -> Path:
    client = folder / "client"
    client.mkdir(parents=True)
    (client / "scaleout.yaml").write_text("entry_points:\n  startup: startup.py\n")
    (client / "startup.py").write_text(STARTUP.format(delta=delta, examples=examples))
    return folder


@pytest.mark.timeout(200)
def test_two_official_importer_clients_complete_two_rounds_and_the_average_is_exact(official_bin: Path, tmp_path: Path) -> None:
    with DevCombiner(client_certificate="none") as combiner, ExitStack() as stack:
        for name, delta, examples in (("ward-a", 1.0, 1), ("ward-b", 4.0, 3)):
            stack.enter_context(official_client(official_bin, combiner, write_project(tmp_path / name, delta, examples), name))
        combiner.start_session(write_npz(SEED), rounds=2, min_clients=2, round_timeout_s=60, client_settings={"scale": 2})
        session = combiner.wait_session(150)
        logs = "\n".join(log.read_text(errors="replace")[-4000:] for log in tmp_path.glob("*/client.log"))
        assert session.status == "completed", logs
        assert [record.status for record in combiner.history] == ["completed", "completed"], logs
        # (1 * 1 + 3 * 4) / 4 * 2 = 6.5 a round
        for record, growth in zip(combiner.history, (6.5, 13.0), strict=True):
            average = combiner.arrays(record.new_model_id)
            assert {name: list(array.values) for name, array in average.items()} == {
                name: [value + growth for value in array.values] for name, array in SEED.items()
            }
            assert sorted(update.num_examples for update in record.updates.values()) == [1, 3]
            assert list(record.validations.values()) == [{"mean": pytest.approx(1.3 + growth)}] * 2
        assert combiner.board.duplicates() == []
