# SPDX-License-Identifier: Apache-2.0
"""What a network and a server can do to a node, and that each task ends delivered once or failed by name."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest

from scaleoutd.devcombiner.npz import flat, write_npz
from scaleoutd.devcombiner.server import DevCombiner
from tests.e2e.agent.node import CLIENT, VALIDATE, Node, wait_until

BIG = write_npz({"w": flat("f4", (1_500_000,), [0.5] * 1_500_000)})


def one_update(node: Node, correlation_id: str) -> None:
    """Delivered, counted once, every announcement under the same id."""
    updates = [update for update in node.combiner.updates if update.correlation_id == correlation_id]
    assert [update.counted for update in updates].count(True) == 1
    assert len({update.model_update_id for update in updates}) == 1
    assert node.runner.table[correlation_id].runs == 1


@pytest.mark.parametrize("method", ["Download", "Upload", "SendModelUpdate", "PollAndReportAsync", "SendHeartbeat", "Announce"])
@pytest.mark.parametrize("status", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL])
def test_a_call_that_fails_some_times_is_made_again(
    combiner: DevCombiner, tmp_path: Path, method: str, status: grpc.StatusCode
) -> None:
    combiner.faults.answer_rpc(method, status, times=3)
    with Node(combiner, tmp_path) as node:
        node.wait_connected()
        correlation_id = node.offer()
        assert node.wait_done(correlation_id).status == "COMPLETED"
        one_update(node, correlation_id)


@pytest.mark.parametrize(
    "status",
    [
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.UNAUTHENTICATED,
    ],
)
def test_one_bad_answer_to_a_poll_does_not_end_the_agent(combiner: DevCombiner, tmp_path: Path, status: grpc.StatusCode) -> None:
    with Node(combiner, tmp_path) as node:
        node.wait_connected()
        combiner.faults.answer_rpc("PollAndReportAsync", status, times=2)
        assert node.wait_done(node.offer()).status == "COMPLETED"


def test_an_update_that_was_taken_but_not_acknowledged_is_sent_again_under_the_same_ids(
    combiner: DevCombiner, tmp_path: Path
) -> None:
    combiner.faults.answer_rpc("SendModelUpdate", grpc.StatusCode.UNAVAILABLE, times=2, when="after")
    with Node(combiner, tmp_path) as node:
        node.wait_connected()
        correlation_id = node.offer()
        assert node.wait_done(correlation_id).status == "COMPLETED"
        one_update(node, correlation_id)
        assert len(combiner.updates) == 3
        assert [event["attempt"] for event in node.events("sending")] == [1, 2, 3]
        assert len(node.events("delivery-unknown")) == 2
        assert len({event["model_update_id"] for event in node.events("sending")}) == 1


def test_a_refused_upload_is_reported_and_nothing_is_announced(combiner: DevCombiner, tmp_path: Path) -> None:
    combiner.faults.refuse_uploads = 1
    with Node(combiner, tmp_path) as node:
        node.wait_connected()
        correlation_id = node.offer()
        done = node.wait_done(correlation_id)
        assert (done.status, json.loads(done.response)["code"]) == ("FAILED", "upload-refused")
        assert not combiner.updates
        assert node.runner.table[correlation_id].outcome == "dropped"
        assert node.wait_done(node.offer()).status == "COMPLETED"


@pytest.mark.parametrize("status", [grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED])
def test_a_refused_announcement_is_failed_not_completed(combiner: DevCombiner, tmp_path: Path, status: grpc.StatusCode) -> None:
    combiner.faults.answer_rpc("SendModelUpdate", status)
    with Node(combiner, tmp_path) as node:
        node.wait_connected()
        done = node.wait_done(node.offer())
        assert (done.status, json.loads(done.response)["code"]) == ("FAILED", "upload-refused")


def test_a_validation_that_is_refused_is_failed(combiner: DevCombiner, tmp_path: Path) -> None:
    combiner.faults.answer_rpc("SendModelValidation", grpc.StatusCode.INVALID_ARGUMENT)
    with Node(combiner, tmp_path) as node:
        node.wait_connected()
        assert node.wait_done(node.offer(VALIDATE)).status == "FAILED"
        assert node.wait_done(node.offer(VALIDATE)).status == "COMPLETED"


def test_a_corrupt_download_is_asked_for_again_and_then_given_up(combiner: DevCombiner, tmp_path: Path) -> None:
    combiner.faults.corrupt_downloads = 2
    with Node(combiner, tmp_path) as node:
        node.wait_connected()
        assert node.wait_done(node.offer()).status == "COMPLETED"
        combiner.faults.wrong_checksums = 3
        done = node.wait_done(node.offer())
        assert (done.status, json.loads(done.response)["code"]) == ("FAILED", "download-corrupt")
        assert combiner.faults.wrong_checksums == 0


def test_a_download_without_a_checksum_is_taken(combiner: DevCombiner, tmp_path: Path) -> None:
    combiner.faults.omit_checksum = True
    with Node(combiner, tmp_path) as node:
        node.wait_connected()
        assert node.wait_done(node.offer()).status == "COMPLETED"


def test_a_download_that_is_cut_begins_anew(combiner: DevCombiner, tmp_path: Path) -> None:
    combiner.faults.truncate_download_bytes = 1_000_000
    with Node(combiner, tmp_path) as node:
        node.wait_connected()
        correlation_id = node.offer(model_id=combiner.put_model(BIG))
        assert node.wait_done(correlation_id).status == "COMPLETED"
        one_update(node, correlation_id)


def test_a_model_above_the_limit_is_broken_off(combiner: DevCombiner, tmp_path: Path) -> None:
    combiner.faults.oversize_download_bytes = 512 * 1024 * 1024
    with Node(combiner, tmp_path) as node:
        node.runner.max_bytes = 2 * 1024 * 1024
        node.wait_connected()
        done = node.wait_done(node.offer())
        assert (done.status, json.loads(done.response)["code"]) == ("FAILED", "limit-model")
        combiner.faults.oversize_download_bytes = 0
        assert node.wait_done(node.offer()).status == "COMPLETED"


def test_a_model_that_is_not_there(combiner: DevCombiner, tmp_path: Path) -> None:
    with Node(combiner, tmp_path) as node:
        node.wait_connected()
        done = node.wait_done(node.offer(model_id="no-such-model"))
        assert (done.status, json.loads(done.response)["code"]) == ("FAILED", "transport-refused")


@pytest.mark.parametrize("fault", ["abort_upload_bytes", "drop_upload_bytes"])
def test_an_upload_that_is_cut_is_made_again(combiner: DevCombiner, tmp_path: Path, fault: str) -> None:
    with Node(combiner, tmp_path) as node:
        node.wait_connected()
        setattr(combiner.faults, fault, 2_000_000)
        correlation_id = node.offer(model_id=combiner.put_model(BIG))
        assert node.wait_done(correlation_id).status == "COMPLETED"
        one_update(node, correlation_id)
        assert len(combiner.updates) == 1


def test_the_combiner_restarts_in_the_middle_of_a_step(combiner: DevCombiner, tmp_path: Path) -> None:
    with Node(combiner, tmp_path) as node:
        node.wait_connected()
        node.runner.hold("execute")
        correlation_id = node.offer()
        node.runner.wait_for("execute")
        combiner.restart_grpc(down_s=0.3)
        node.runner.go("execute")
        assert node.wait_done(correlation_id).status == "COMPLETED"
        one_update(node, correlation_id)
        wait_until(lambda: combiner.board.clients[CLIENT].announced.count("Connect") >= 2)


def test_the_runner_crashes_at_every_stage(combiner: DevCombiner, tmp_path: Path) -> None:
    with Node(combiner, tmp_path) as node:
        node.wait_connected()
        for stage in ("offer", "receive", "execute", "released", "delivered"):
            node.runner.crash_at(stage)
            correlation_id = node.offer()
            assert node.wait_done(correlation_id).status == "COMPLETED", stage
            updates = [update for update in combiner.updates if update.correlation_id == correlation_id]
            assert len({update.model_update_id for update in updates}) == 1
            table = node.runner.table
            # The combiner hears it before the runner may forget it; the runner hears it all the same.
            wait_until(lambda: bool(table[correlation_id].outcome), what=node.output.getvalue)
            assert table[correlation_id].outcome == "acknowledged"


def test_unreachable_servers_at_the_start_are_waited_for(combiner: DevCombiner, tmp_path: Path) -> None:
    combiner.faults.answer_rest("/api/v1/clients/enroll", 503, times=1)
    combiner.faults.answer_rest("/api/v1/clients/add", 503, times=3)
    combiner.stop_grpc()
    node = Node(combiner, tmp_path)
    with node:
        # A refused enrollment has a cool-down of 10 s, which the test does not wait for: a token is in place.
        node.wait_event("connection-refused")
    assert node.status == 0
    node.config = node.config.__class__(**{**node.config.__dict__, "state_dir": str(tmp_path / "second")})
    with node:
        wait_until(lambda: "transport-failed" in node.codes())
        combiner.start_grpc()
        node.wait_connected()


def test_a_redirect_is_not_followed_and_the_token_stays_here(combiner: DevCombiner, tmp_path: Path) -> None:
    with DevCombiner() as other:
        combiner.faults.answer_rest("/api/v1/clients/enroll", 307, location=f"{other.api_url}/api/v1/clients/enroll")
        with Node(combiner, tmp_path) as node:
            assert node.wait_event("connection-refused")["code"] == "transport-refused"
        assert not other.board.rest_calls


def test_a_refused_token_ends_the_agent_with_its_own_status(combiner: DevCombiner, tmp_path: Path) -> None:
    with Node(combiner, tmp_path, token=combiner.mint_enrollment(lifetime_s=-10)) as node:
        wait_until(lambda: node.status is not None)
    assert node.status == 77
    assert node.wait_event("token-refused")["code"] == "token-refused"


def test_access_tokens_are_renewed_while_it_runs(tmp_path: Path) -> None:
    with DevCombiner(access_lifetime_s=31) as combiner, Node(combiner, tmp_path) as node:
        node.wait_connected()
        node.wait_event("token-refreshed", times=2)
        assert node.wait_done(node.offer()).status == "COMPLETED"


def test_tasks_above_what_can_run_at_once_wait_their_turn(combiner: DevCombiner, tmp_path: Path) -> None:
    with Node(combiner, tmp_path) as node:
        node.wait_connected()
        model_id = combiner.put_model(write_npz({"w": flat("f4", (1,), [1.0])}))
        ids = [node.offer(model_id=model_id) for _ in range(24)]
        for correlation_id in ids:
            assert node.wait_done(correlation_id).status == "COMPLETED"
        assert [offer.correlation_id for offer in node.runner.offers] == ids
