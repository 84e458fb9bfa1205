# SPDX-License-Identifier: Apache-2.0
"""What a combiner sees of a node that does its job."""

from __future__ import annotations

import json
from pathlib import Path

from scaleoutd.devcombiner.server import DevCombiner
from tests.e2e.agent.node import CLIENT, SEED, TRAIN, VALIDATE, Node, offer, wait_until


def test_two_rounds_with_validation(combiner: DevCombiner, tmp_path: Path) -> None:
    with Node(combiner, tmp_path) as node:
        session = combiner.start_session(SEED, 2, 1, 90.0)
        combiner.wait_session(120)
        assert [record.status for record in combiner.history] == ["completed", "completed"]
        assert list(combiner.arrays(session.model_id)["w"].values) == [3.0, 4.0, 5.0]
        assert combiner.history[0].validations == {CLIENT: {"accuracy": 1}}
        node.wait_event("task-reported", times=4)
        # A task may come before the one before it is reported: the round goes on with the update.
        types = node.ledger.types()
        order = ["model-downloaded", "sending", "sent"]
        assert [name for name in types if name in order] == order * 4
        places = [[at for at, found in enumerate(types) if found == name] for name in ("task-received", *order, "task-reported")]
        for task in zip(*places, strict=True):
            assert list(task) == sorted(task), types
    assert node.status == 0
    assert combiner.board.clients[CLIENT].announced == ["VersionCheck", "Connect", "Disconnect"]


def test_the_update_says_what_the_protocol_asks_for(combiner: DevCombiner, tmp_path: Path) -> None:
    with Node(combiner, tmp_path) as node:
        node.wait_connected()
        correlation_id = node.offer(client_settings={"epochs": 3, "rate": 0.5})
        assert node.wait_done(correlation_id).status == "COMPLETED"
        update = combiner.updates[0]
        assert (update.session_id, update.round_id, update.num_examples) == ("session-1", "round-1", 10)
        assert update.model_update_id == node.runner.table[correlation_id].released.model_update_id  # type: ignore[union-attr]
        assert update.meta["config"] == combiner.board.offers[correlation_id].data
        assert set(update.meta) == {
            "training_metadata",
            "exec_training",
            "processing_time",
            "upload_model",
            "fetch_model",
            "config",
        }
        assert json.loads(node.runner.offers[0].settings) == {"epochs": 3, "rate": 0.5}
        wait_until(lambda: len(combiner.statuses) == 2)
        assert {status.type for status in combiner.statuses} == {"MODEL_UPDATE"}


def test_validations_go_before_training(combiner: DevCombiner, tmp_path: Path) -> None:
    with Node(combiner, tmp_path) as node:
        node.wait_connected()
        node.runner.hold("execute")
        first = node.offer(TRAIN)
        node.runner.wait_for("execute")
        waiting = [node.offer(TRAIN), node.offer(VALIDATE)]
        wait_until(lambda: len(node.events("task-received")) == 3)
        assert {report.status for report in combiner.reports if report.correlation_id in waiting} <= {"PENDING"}
        node.runner.go("execute")
        for correlation_id in [first, *waiting]:
            node.wait_done(correlation_id)
        assert [offer.task for offer in node.runner.offers] == ["train", "validate", "train"]


def test_the_same_correlation_id_runs_once(combiner: DevCombiner, tmp_path: Path) -> None:
    with Node(combiner, tmp_path) as node:
        node.wait_connected()
        correlation_id = node.offer()
        node.wait_done(correlation_id)
        node.wait_event("task-reported")
        reports = len(combiner.reports)
        node.offer(correlation_id=correlation_id)
        wait_until(lambda: any(report.done for report in combiner.reports[reports:]))
        assert len(node.runner.offers) == 1
        assert len(combiner.updates) == 1
    with node:
        node.wait_connected()
        reports = len(combiner.reports)
        node.offer(correlation_id=correlation_id)
        wait_until(lambda: any(report.done for report in combiner.reports[reports:]))
        assert len(node.runner.offers) == 1


def test_a_task_that_is_not_known_here_fails_by_name(combiner: DevCombiner, tmp_path: Path) -> None:
    with Node(combiner, tmp_path) as node:
        node.wait_connected()
        done = node.wait_done(node.offer("Custom_thing"))
        assert done.status == "FAILED"
        assert json.loads(done.response)["code"] == "task-unknown"
        assert node.wait_event("task-refused")["code"] == "task-unknown"
        control = node.wait_done(node.offer())
        assert control.status == "COMPLETED"


def test_a_refusal_of_the_runner_is_reported_without_folders(combiner: DevCombiner, tmp_path: Path) -> None:
    with Node(combiner, tmp_path) as node:
        node.wait_connected()
        node.runner.refuse("train", "file-changed", "cannot run /srv/secret/place/train.py: its bytes differ")
        done = node.wait_done(node.offer())
        assert done.status == "FAILED"
        assert json.loads(done.response) == {"code": "file-changed", "message": "cannot run train.py: its bytes differ"}
        assert node.wait_done(node.offer(VALIDATE)).status == "COMPLETED"


def test_settings_that_are_too_large_fail_and_do_not_end_the_agent(combiner: DevCombiner, tmp_path: Path) -> None:
    with Node(combiner, tmp_path) as node:
        node.wait_connected()
        done = node.wait_done(node.offer(client_settings={"blob": "x" * 3_000_000}))
        told = json.loads(done.response)
        assert (done.status, told["code"]) == ("FAILED", "settings-denied")
        assert "client_settings are 3000012 bytes, at most 32768" in told["message"]
        broken = node.wait_done(node.offer(data="{not json"))
        assert (broken.status, json.loads(broken.response)["code"]) == ("FAILED", "settings-denied")
        assert node.wait_done(node.offer()).status == "COMPLETED"


def test_a_task_that_is_stopped_is_cancelled_and_reported(combiner: DevCombiner, tmp_path: Path) -> None:
    with Node(combiner, tmp_path) as node:
        node.wait_connected()
        node.runner.hold("execute")
        correlation_id = node.offer()
        node.runner.wait_for("execute")
        combiner.stop_task(correlation_id, "TIMEOUT")
        done = node.wait_done(correlation_id)
        assert (done.status, json.loads(done.response)["code"]) == ("INTERRUPTED", "step-cancelled")
        assert not combiner.updates
        node.runner.go("execute")
        assert node.wait_done(node.offer(VALIDATE)).status == "COMPLETED"


def test_a_task_that_is_stopped_after_its_release_is_dropped_on_record(combiner: DevCombiner, tmp_path: Path) -> None:
    with Node(combiner, tmp_path) as node:
        node.wait_connected()
        node.ledger.fail_on("sending")
        correlation_id = node.offer()
        node.runner.wait_for("released", times=2)
        combiner.stop_task(correlation_id)
        wait_until(lambda: "task-stopped" in [line["event"] for line in node.log_lines()])
        node.ledger.heal()
        assert node.wait_done(correlation_id).status == "INTERRUPTED"
        assert node.runner.table[correlation_id].outcome == "dropped"
        assert node.wait_event("task-dropped")["code"] == "step-cancelled"
        assert not combiner.updates


def test_a_task_that_is_stopped_while_the_runner_is_away_does_not_wait_for_it(combiner: DevCombiner, tmp_path: Path) -> None:
    with Node(combiner, tmp_path) as node:
        node.wait_connected()
        node.runner.crash_at("offer")
        node.runner.hold("offer")
        correlation_id = node.offer()
        node.runner.wait_for("offer")
        node.runner.down = True
        node.runner.go("offer")
        combiner.stop_task(correlation_id)
        assert node.wait_done(correlation_id).status == "INTERRUPTED"
        node.runner.down = False
        assert node.wait_done(node.offer()).status == "COMPLETED"


def test_a_stop_of_a_task_that_never_arrived_is_answered(combiner: DevCombiner, tmp_path: Path) -> None:
    correlation_id = offer(combiner)
    combiner.board.offers[correlation_id].handed_out_at_s = 1.0  # to a client that lost it
    combiner.stop_task(correlation_id)
    with Node(combiner, tmp_path) as node:
        assert node.wait_done(correlation_id).status == "INTERRUPTED"
        assert not node.runner.offers


def test_heartbeats_and_pending_while_the_runner_is_away(combiner: DevCombiner, tmp_path: Path) -> None:
    with Node(combiner, tmp_path) as node:
        node.wait_connected()
        node.runner.down = True
        correlation_id = node.offer()
        beats = combiner.board.clients[CLIENT].heartbeats
        wait_until(lambda: combiner.board.clients[CLIENT].heartbeats > beats + 3)
        wait_until(
            lambda: any(
                report.status == "PENDING" and "peer-closed" in report.response
                for report in combiner.reports
                if report.correlation_id == correlation_id
            )
        )
        node.runner.down = False
        assert node.wait_done(correlation_id).status == "COMPLETED"


def test_nothing_leaves_while_the_ledger_is_away(combiner: DevCombiner, tmp_path: Path) -> None:
    with Node(combiner, tmp_path) as node:
        node.wait_connected()
        node.ledger.fail_on("sending")
        correlation_id = node.offer()
        node.runner.wait_for("released", times=2)
        assert not combiner.updates
        assert not combiner.store.find(node.runner.table[correlation_id].released.model_update_id)  # type: ignore[union-attr]
        node.ledger.heal()
        assert node.wait_done(correlation_id).status == "COMPLETED"
        assert len(combiner.updates) == 1


def test_what_is_withheld_is_named_in_the_log(combiner: DevCombiner, tmp_path: Path) -> None:
    with Node(combiner, tmp_path) as node:
        node.wait_connected()
        node.runner.withheld = ("patients",)
        node.wait_done(node.offer())
        assert any("withheld" in line["message"] and "patients" in line["message"] for line in node.log_lines())
