# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from scaleoutd.devcombiner.container import read_container
from scaleoutd.devcombiner.npz import flat, write_npz
from scaleoutd.devcombiner.server import DevCombiner
from scaleoutd.proto import edge_pb2 as edge
from scaleoutd.proto import methods
from tests.unit.devcombiner.wire import Wire, access_token, chunks, status_of, wire

MODEL = write_npz({"w": flat("f4", (2,), [1.0, 2.0])})
META = json.dumps({"training_metadata": {"num_examples": 5}})
BIG = 3 * 1024 * 1024 + 17
CUT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)  # the server ends, or cancels what still comes in


@pytest.fixture
def client(combiner: DevCombiner) -> Iterator[Wire]:
    with wire(combiner) as connected:
        yield connected


def poll(client: Wire, *reports: edge.ActivityReport, skip: bool = False) -> list[edge.TaskRequest]:
    request = edge.ClientReport(client_id=client.client_id, reports=reports, skip_polling_tasks=skip)
    return list(client.call(methods.POLL_AND_REPORT, request).tasks)


def upload(client: Wire, model_id: str, data: bytes, checksum: str | None = None) -> edge.ModelResponse:
    digest = hashlib.sha256(data).hexdigest() if checksum is None else checksum
    answer = client.call(methods.UPLOAD, chunks(data), ("model-id", model_id), ("checksum", digest))
    assert isinstance(answer, edge.ModelResponse)
    return answer


def send_update(client: Wire, correlation_id: str, update_id: str, meta: str = META) -> None:
    message = edge.ModelUpdate(client_id=client.client_id, correlation_id=correlation_id, model_update_id=update_id, meta=meta)
    client.call(methods.SEND_MODEL_UPDATE, message)


def refused_with(code: grpc.StatusCode) -> pytest.RaisesExc[grpc.RpcError]:
    return pytest.RaisesExc(grpc.RpcError, check=lambda error: status_of(error) is code)


# -- admission --------------------------------------------------------------------------------------------------------


def test_every_call_is_refused_without_a_good_token(combiner: DevCombiner) -> None:
    for token in ("", "None", combiner.mint_refresh("c1"), combiner.mint_enrollment()):
        with wire(combiner, token=token) as client:
            for method in methods.METHODS:
                request: Any = iter([]) if method.kind.startswith("stream") else method.request()
                with pytest.raises(grpc.RpcError) as caught:
                    answer = client.call(method, request)
                    list(answer)
                assert status_of(caught.value) is grpc.StatusCode.UNAUTHENTICATED, method
    assert combiner.board.clients == {}


def test_a_client_cannot_speak_as_another(combiner: DevCombiner, client: Wire) -> None:
    with wire(combiner, "c2", token=access_token(combiner, "c1")) as other, refused_with(grpc.StatusCode.PERMISSION_DENIED):
        other.call(methods.SEND_HEARTBEAT, edge.Heartbeat(client_id="c2"))
    with refused_with(grpc.StatusCode.PERMISSION_DENIED):
        client.call(methods.SEND_HEARTBEAT, edge.Heartbeat(client_id="c2"))
    with refused_with(grpc.StatusCode.PERMISSION_DENIED):
        poll(client, edge.ActivityReport(node_id="c2"))
    client.call(methods.SEND_HEARTBEAT, edge.Heartbeat(client_id="c1"))
    assert combiner.board.clients["c1"].heartbeats == 1 and "c2" not in combiner.board.clients


def test_announcements(combiner: DevCombiner, client: Wire) -> None:
    version = edge.ClientAnnounceRequest(client_id="c1", type="VersionCheck", parameters="{}")
    assert json.loads(client.call(methods.ANNOUNCE, version).parameters)["success"] is True
    client.call(methods.ANNOUNCE, edge.ClientAnnounceRequest(client_id="c1", type="Connect"))
    assert combiner.board.connected() == ["c1"]
    client.call(methods.ANNOUNCE, edge.ClientAnnounceRequest(client_id="c1", type="Disconnect"))
    assert combiner.board.connected() == []
    with refused_with(grpc.StatusCode.INVALID_ARGUMENT):
        client.call(methods.ANNOUNCE, edge.ClientAnnounceRequest(client_id="c1", type="Else"))
    combiner.faults.refuse_version = combiner.faults.refuse_connect = True
    assert json.loads(client.call(methods.ANNOUNCE, version).parameters)["success"] is False
    with refused_with(grpc.StatusCode.PERMISSION_DENIED):
        client.call(methods.ANNOUNCE, edge.ClientAnnounceRequest(client_id="c1", type="Connect"))


# -- tasks ------------------------------------------------------------------------------------------------------------


def test_a_task_is_handed_out_once_and_to_its_client_only(combiner: DevCombiner, client: Wire) -> None:
    task = combiner.offer_task("c1", "Scaleout_ModelUpdate", "m", client_settings={"lr": 0.1}, round_id="r", session_id="s")
    with wire(combiner, "c2") as other:
        assert poll(other) == []
    assert poll(client, skip=True) == []
    (request,) = poll(client)
    assert (request.correlation_id, request.type, request.model_id) == (task, "Scaleout_ModelUpdate", "m")
    assert (request.round_id, request.session_id) == ("r", "s")
    assert json.loads(request.data) == {"client_settings": {"lr": 0.1}}
    assert poll(client) == []
    combiner.offer_task("c1", "Scaleout_ModelUpdate", "m", correlation_id=task)
    assert [again.correlation_id for again in poll(client)] == [task], "a replayed directive, for tests of run-once"


def test_reports_move_a_task_and_a_stop_is_repeated_until_done(combiner: DevCombiner, client: Wire) -> None:
    task = combiner.offer_task("c1", "Scaleout_ModelUpdate", "m")
    poll(client)
    combiner.stop_task(task, "TIMEOUT")
    running = edge.ActivityReport(node_id="c1", correlation_id=task, status="RUNNING")
    for _ in range(2):
        assert [(t.correlation_id, t.status) for t in poll(client, running)] == [(task, "TIMEOUT")]
    done = edge.ActivityReport(node_id="c1", correlation_id=task, status="INTERRUPTED", done=True, response="{}")
    assert poll(client, done) == []
    offer = combiner.board.offers[task]
    assert (offer.status, offer.done) == ("INTERRUPTED", True)
    assert [report.status for report in combiner.reports] == ["RUNNING", "RUNNING", "INTERRUPTED"]


def test_task_stream_hands_out_a_task_that_comes_later(combiner: DevCombiner, client: Wire) -> None:
    stream = client.call(methods.TASK_STREAM, edge.ClientAvailableMessage(client_id="c1"))
    assert combiner.board.wait_until(lambda: "c1" in combiner.board.clients, 60)
    task = combiner.offer_task("c1", "Scaleout_Validation", "m")
    assert next(stream).correlation_id == task
    stream.cancel()


def test_streamed_records_are_acknowledged_one_by_one(combiner: DevCombiner, client: Wire) -> None:
    for method, record in (
        (methods.STREAM_TELEMETRY_RECORD, edge.TelemetryRecord(telemetry_id="i1", client_id="c1")),
        (methods.STREAM_ATTRIBUTE_RECORD, edge.AttributeRecord(attribute_id="i1", client_id="c1")),
        (methods.STREAM_INFERENCE_RESULT, edge.InferenceResult(inference_result_id="i1", node_id="c1")),
    ):
        acknowledged = [list(ack.record_ids) for ack in client.call(method, iter([record, record]))]
        assert acknowledged == [["i1"], ["i1"]]
    assert len(combiner.board.records) == 6


def test_single_messages_are_kept(combiner: DevCombiner, client: Wire) -> None:
    client.call(methods.SEND_STATUS, edge.Status(client_id="c1", status="hello", type="MODEL_UPDATE"))
    client.call(methods.SEND_MODEL_METRIC, edge.ModelMetric(client_id="c1"))
    client.call(methods.SEND_ATTRIBUTE_MESSAGE, edge.AttributeMessage(client_id="c1"))
    client.call(methods.SEND_TELEMETRY_MESSAGE, edge.TelemetryMessage(client_id="c1"))
    client.call(methods.SEND_BACKLOG_REPORT, edge.BacklogReport(client_id="c1", backlog_total=3))
    assert [status.status for status in combiner.statuses] == ["hello"]
    assert len(combiner.board.metrics) == 1 and len(combiner.board.records) == 3


# -- results ----------------------------------------------------------------------------------------------------------


def test_an_update_counts_once_and_what_comes_again_is_listed(combiner: DevCombiner, client: Wire) -> None:
    task = combiner.offer_task("c1", "Scaleout_ModelUpdate", "m")
    poll(client)
    for update_id in ("u1", "u2"):
        assert upload(client, update_id, MODEL).status == edge.OK
    for update_id in ("u1", "u1", "u2"):
        send_update(client, task, update_id)
    assert [(u.model_update_id, u.counted) for u in combiner.updates] == [("u1", True), ("u1", False), ("u2", False)]
    assert [u.model_update_id for u in combiner.board.duplicates()] == ["u1", "u2"]
    assert combiner.updates[0].num_examples == 5
    offer = combiner.board.offers[task]
    assert offer.handed_out_at_s is not None and offer.result_at_s == combiner.updates[0].arrived_at_s
    assert offer.handed_out_at_s < offer.result_at_s


@pytest.mark.parametrize("examples", [0, -1, None, "5", True])
def test_an_update_without_examples_is_refused(examples: object, combiner: DevCombiner, client: Wire) -> None:
    task = combiner.offer_task("c1", "Scaleout_ModelUpdate", "m")
    upload(client, "u1", MODEL)
    with refused_with(grpc.StatusCode.INVALID_ARGUMENT):
        send_update(client, task, "u1", json.dumps({"training_metadata": {"num_examples": examples}}))
    assert combiner.updates == []


def test_an_update_of_no_task_or_no_upload_is_refused(combiner: DevCombiner, client: Wire) -> None:
    task, others = combiner.offer_task("c1", "Scaleout_ModelUpdate", "m"), combiner.offer_task("c2", "x", "m")
    upload(client, "u1", MODEL)
    for correlation_id, update_id in (("none", "u1"), (others, "u1"), (task, "never uploaded")):
        with refused_with(grpc.StatusCode.NOT_FOUND):
            send_update(client, correlation_id, update_id)
    send_update(client, task, "u1")
    assert len(combiner.updates) == 1


def test_a_validation_counts_once(combiner: DevCombiner, client: Wire) -> None:
    task = combiner.offer_task("c1", "Scaleout_Validation", "m")
    message = edge.ModelValidation(client_id="c1", correlation_id=task, data='{"loss": 0.5}')
    client.call(methods.SEND_MODEL_VALIDATION, message)
    client.call(methods.SEND_MODEL_VALIDATION, message)
    assert [(v.metrics, v.counted) for v in combiner.validations] == [({"loss": 0.5}, True), ({"loss": 0.5}, False)]


# -- models -----------------------------------------------------------------------------------------------------------


def test_download_is_the_container_in_chunks_of_1_mib_with_its_checksum(combiner: DevCombiner, client: Wire) -> None:
    model_id = combiner.put_model(b"w" * BIG)
    call = client.call(methods.DOWNLOAD, edge.ModelRequest(model_id=model_id))
    parts = [chunk.data for chunk in call]
    assert [len(part) for part in parts[:-1]] == [1024 * 1024] * 3
    assert dict(call.trailing_metadata())["checksum"] == hashlib.sha256(b"".join(parts)).hexdigest()
    container = read_container(b"".join(parts))
    assert (container.model_id, container.weights) == (model_id, b"w" * BIG)


def test_download_of_nothing_is_not_found(client: Wire) -> None:
    for model_id in ("", "nothing", "../ca/ca.pem"):
        with refused_with(grpc.StatusCode.NOT_FOUND):
            list(client.call(methods.DOWNLOAD, edge.ModelRequest(model_id=model_id)))


def test_upload_refuses_a_wrong_checksum_a_changed_model_and_a_path(combiner: DevCombiner, client: Wire) -> None:
    assert upload(client, "u1", b"one", "0" * 64).status == edge.FAILED
    assert combiner.store.find("u1") is None
    assert upload(client, "u1", b"one").status == edge.OK
    assert upload(client, "u1", b"one").status == edge.OK, "the same again is no error"
    assert upload(client, "u1", b"two").status == edge.FAILED
    assert combiner.store.read("u1") == b"one"
    assert upload(client, "../u2", b"one").status == edge.FAILED
    with refused_with(grpc.StatusCode.INVALID_ARGUMENT):
        client.call(methods.UPLOAD, chunks(b"x"))
    assert not list((combiner.folder / "models").glob(".incoming-*"))


# -- faults -----------------------------------------------------------------------------------------------------------


def download(client: Wire, model_id: str) -> tuple[bytes, str | None]:
    call = client.call(methods.DOWNLOAD, edge.ModelRequest(model_id=model_id))
    data = b"".join(chunk.data for chunk in call)
    checksum = dict(call.trailing_metadata()).get("checksum")
    return data, str(checksum) if checksum is not None else None


def test_download_faults_happen_once_each(combiner: DevCombiner, client: Wire) -> None:
    model_id = combiner.put_model(b"w" * BIG)
    good, checksum = download(client, model_id)
    combiner.faults.corrupt_downloads = combiner.faults.wrong_checksums = 1
    corrupt, wrong = download(client, model_id)
    assert corrupt != good and len(corrupt) == len(good) and wrong != checksum
    combiner.faults.truncate_download_bytes = 1_500_000
    with refused_with(grpc.StatusCode.UNAVAILABLE):
        download(client, model_id)
    assert download(client, model_id) == (good, checksum)
    combiner.faults.omit_checksum = True
    assert download(client, model_id) == (good, None)
    combiner.faults.omit_checksum, combiner.faults.oversize_download_bytes = False, 10_000_000
    large, checksum = download(client, model_id)
    assert len(large) == 10_000_000 and checksum == hashlib.sha256(large).hexdigest()


def test_upload_faults_leave_nothing_and_then_it_works(combiner: DevCombiner, client: Wire) -> None:
    combiner.faults.abort_upload_bytes = 2
    with refused_with(grpc.StatusCode.UNAVAILABLE):
        upload(client, "u1", b"one")
    assert combiner.store.find("u1") is None
    combiner.faults.refuse_uploads = 1
    assert upload(client, "u1", b"one").status == edge.FAILED
    assert upload(client, "u1", b"one").status == edge.OK


def once_it_is_back(call: Callable[[], Any], within_s: float = 60) -> Any:
    """The answer.  The refusal of a cut upload may arrive before the cut: that the channel is ready is no sign then."""
    end_s = time.monotonic() + within_s
    while True:
        try:
            return call()
        except grpc.RpcError as exc:
            if exc.code() not in CUT or time.monotonic() > end_s:
                raise
            time.sleep(0.02)


def test_a_connection_cut_in_an_upload_comes_back_on_the_same_port(combiner: DevCombiner, client: Wire) -> None:
    port = combiner.grpc_port
    combiner.faults.drop_upload_bytes = 2
    with refused_with(grpc.StatusCode.UNAVAILABLE):
        upload(client, "u1", b"one")
    assert once_it_is_back(lambda: upload(client, "u1", b"one")).status == edge.OK
    assert combiner.grpc_port == port


def test_a_restart_keeps_the_board(combiner: DevCombiner, client: Wire) -> None:
    task = combiner.offer_task("c1", "Scaleout_ModelUpdate", "m")
    poll(client)
    combiner.stop_grpc()
    with refused_with(grpc.StatusCode.UNAVAILABLE):
        poll(client)
    combiner.start_grpc()
    grpc.channel_ready_future(client.channel).result(60)
    upload(client, "u1", MODEL)
    send_update(client, task, "u1")
    assert combiner.board.offers[task].result_at_s is not None


def test_a_status_before_has_no_effect_and_a_status_after_has(combiner: DevCombiner, client: Wire) -> None:
    task = combiner.offer_task("c1", "Scaleout_ModelUpdate", "m")
    upload(client, "u1", MODEL)
    combiner.faults.answer_rpc("SendModelUpdate", grpc.StatusCode.UNAVAILABLE)
    with refused_with(grpc.StatusCode.UNAVAILABLE):
        send_update(client, task, "u1")
    assert combiner.updates == []
    combiner.faults.answer_rpc("SendModelUpdate", grpc.StatusCode.UNAVAILABLE, when="after")
    with refused_with(grpc.StatusCode.UNAVAILABLE):
        send_update(client, task, "u1")
    assert [u.counted for u in combiner.updates] == [True], "taken, though the client cannot know"
    send_update(client, task, "u1")
    assert [u.counted for u in combiner.updates] == [True, False]


def test_a_delayed_call_ends_with_the_server(combiner: DevCombiner, client: Wire) -> None:
    combiner.faults.rpc_delays_s["SendHeartbeat"] = 600
    ended = threading.Event()

    def beat() -> None:
        with refused_with(grpc.StatusCode.UNAVAILABLE):
            client.call(methods.SEND_HEARTBEAT, edge.Heartbeat(), timeout_s=60)
        ended.set()

    thread = threading.Thread(target=beat)
    thread.start()
    assert combiner.board.wait_until(lambda: "c1" in combiner.board.clients, 60)
    combiner.stop_grpc()
    thread.join(60)
    assert ended.is_set()
