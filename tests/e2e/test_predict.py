# SPDX-License-Identifier: Apache-2.0
"""predict: alone on the command line, and as `Scaleout_Inference` of a combiner, whose answer is an InferenceResult."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from scaleoutd.agent.dialects.edge import PREDICTIONS
from scaleoutd.devcombiner.server import DevCombiner
from scaleoutd.proto import edge_pb2 as edge
from tests.e2e.site import SEED, Site
from tests.e2e.test_run_alone import control

STEPS = {"train": ("python", "train.py"), "predict": ("python", "predict.py")}
PREDICT = """\
import json, sys
asked = json.load(open(sys.argv[1] + "-metadata"))
size = len(open(sys.argv[1], "rb").read())
json.dump({"risk": [0.25, 0.75], "asked": asked, "secret": "row 17", "model_bytes": size}, open(sys.argv[2], "w"))
"""
EGRESS = {"metrics": ["risk", "asked"]}


@pytest.fixture
def combiner() -> Iterator[DevCombiner]:
    with DevCombiner() as started:
        yield started


def site_of(tmp_path: Path, combiner: DevCombiner, **policy: Any) -> Site:
    site = Site(tmp_path, combiner, egress=EGRESS, **policy)
    (site.project.folder / "predict.py").write_text(PREDICT)
    site.project.sign(version=2, steps=STEPS)
    return site


def predictions(combiner: DevCombiner) -> list[edge.InferenceResult]:
    return [record for record in combiner.board.records if isinstance(record, edge.InferenceResult)]


def test_the_combiner_gets_what_the_policy_lets_leave(tmp_path: Path, combiner: DevCombiner) -> None:
    with site_of(tmp_path, combiner, tasks=["predict"]) as site:
        node = site.start()
        done = site.task("predict", data=json.dumps({"parameters": {"top": 2}}))
        assert done.status == "COMPLETED", node.text
        (found,) = predictions(combiner)
        assert json.loads(found.payload) == {"risk": [0.25, 0.75], "asked": {"top": 2}}
        assert (found.inference_id, found.model_id, found.node_id) == (done.correlation_id, done.model_id, "ward-7")
        assert found.inference_result_id and found.key == "prediction"
        node.wait_for("secret")  # what is withheld is announced by name
        released, sent = site.events("release", "sent")
        assert released["kind"] == sent["kind"].replace("predict", "prediction") == "prediction"
        assert "row 17" not in found.payload


def test_it_is_denied_unless_the_policy_names_it_and_training_goes_on(tmp_path: Path, combiner: DevCombiner) -> None:
    with site_of(tmp_path, combiner) as site:
        site.start()
        done = site.task("predict", data="{}")
        assert (done.status, json.loads(done.response)["code"]) == ("FAILED", "task-type-denied")
        assert not predictions(combiner)
        assert site.task("train").status == "COMPLETED"


def test_an_unknown_fate_is_sent_again_under_the_same_id(tmp_path: Path, combiner: DevCombiner) -> None:
    combiner.faults.answer_rpc("StreamInferenceResult", grpc.StatusCode.UNAVAILABLE)
    with site_of(tmp_path, combiner, tasks=["predict"]) as site:
        node = site.start()
        done = site.task("predict", data="{}")
        assert done.status == "COMPLETED", node.text
        (found,) = predictions(combiner)
        assert found.inference_result_id == str(uuid.uuid5(PREDICTIONS, done.correlation_id))
        assert [event["attempt"] for event in site.events("sending")] == [1, 2]
        assert site.events("delivery-unknown")


def test_alone_on_the_command_line(tmp_path: Path) -> None:
    project = tmp_path / "my-project"
    project.mkdir()
    assert control(project, "init", ".").returncode == 0
    (project / "seed.npz").write_bytes(SEED)
    missing = control(project, "run", "predict", "--in", "seed.npz", "--json")
    assert missing.returncode == 77 and json.loads(missing.stdout)["code"] == "task-type-denied"
    (project / "predict.py").write_text(PREDICT)
    (project / "scaleout.yaml").write_text(
        (project / "scaleout.yaml").read_text() + "  predict:\n    command: python predict.py\n"
    )
    settings = json.dumps({"top": 2})
    run = control(project, "run", "predict", "--in", "seed.npz", "--settings", settings, "--out", "answer.json", "--json")
    assert run.returncode == 0, run.stdout + run.stderr
    told = json.loads(run.stdout)
    assert told["result"]["asked"] == {"top": 2} and told["result"]["model_bytes"] == len(SEED)
    assert json.loads((project / "answer.json").read_text()) == told["result"]


@pytest.mark.parametrize(
    ("settings", "code"), [("{", "settings-denied"), ("[1]", "settings-denied"), ('{"a": NaN}', "settings-denied")]
)
def test_settings_that_are_no_object_are_refused_before_anything_runs(tmp_path: Path, settings: str, code: str) -> None:
    project = tmp_path / "my-project"
    project.mkdir()
    assert control(project, "init", ".").returncode == 0
    (project / "seed.npz").write_bytes(SEED)
    run = control(project, "run", "train", "--in", "seed.npz", "--settings", settings, "--json")
    assert run.returncode != 0 and json.loads(run.stdout)["code"] == code, run.stderr
    assert "training on" not in run.stderr
