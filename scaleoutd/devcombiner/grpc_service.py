# SPDX-License-Identifier: Apache-2.0
"""CombinerClient and ModelService of dialect edge, every method of scaleoutd.proto.methods.

Rules: each call is admitted (admission.py), then the faults that are due are shown, then it takes effect.  Nothing of a
call that is refused reaches the board.
Source: PROTOCOL.md section 1.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from google.protobuf.message import Message

from scaleoutd import __version__
from scaleoutd.core.strictjson import MAX_SAFE_INTEGER
from scaleoutd.devcombiner.admission import Admission, Caller
from scaleoutd.devcombiner.board import Board
from scaleoutd.devcombiner.faults import Faults, RpcAnswer, When
from scaleoutd.devcombiner.models import ModelStore
from scaleoutd.devcombiner.records import Offer
from scaleoutd.devcombiner.transfer import Transfer
from scaleoutd.proto import edge_pb2 as edge
from scaleoutd.proto.methods import METHODS, Method

Behaviour = Callable[[Any, grpc.ServicerContext, Caller], Any]

# How long a TaskStream sleeps at most before it looks whether its client is still there.
STREAM_CHECK_S = 0.5


class EdgeService:
    """The behaviour of both services.  `closing` is set when the server stops, so that no call outlives it."""

    def __init__(self, board: Board, store: ModelStore, faults: Faults, admission: Admission, cut: Callable[[], None]) -> None:
        self._board = board
        self._store = store
        self._faults = faults
        self._admission = admission
        self._transfer = Transfer(store, faults, cut)
        self.streams = self._transfer.streams

    def handlers(self, closing: threading.Event) -> list[grpc.GenericRpcHandler[Any, Any]]:
        """What `grpc.Server.add_generic_rpc_handlers` takes."""
        services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
        for method in METHODS:
            services.setdefault(method.service, {})[method.name] = self._handler(method, closing)
        return [grpc.method_handlers_generic_handler(name, table) for name, table in services.items()]

    def _handler(self, method: Method, closing: threading.Event) -> grpc.RpcMethodHandler[Any, Any]:
        behaviour = self._behaviours()[method.name]
        streams_out = method.kind.endswith("_stream")
        guarded = self._guarded_stream if streams_out else self._guarded

        def serve(request: Any, context: grpc.ServicerContext) -> Any:
            return guarded(method, behaviour, closing, request, context)

        factory: Callable[..., grpc.RpcMethodHandler[Any, Any]] = getattr(grpc, f"{method.kind}_rpc_method_handler")
        return factory(
            serve,
            request_deserializer=method.request.FromString,
            response_serializer=method.response.SerializeToString,
        )

    def _guarded(
        self, method: Method, behaviour: Behaviour, closing: threading.Event, request: Any, context: grpc.ServicerContext
    ) -> Any:
        caller = self._enter(method, closing, request, context)
        answer = behaviour(request, context, caller)
        self._show(method, "after", context)
        return answer

    def _guarded_stream(
        self, method: Method, behaviour: Behaviour, closing: threading.Event, request: Any, context: grpc.ServicerContext
    ) -> Iterator[Any]:
        caller = self._enter(method, closing, request, context)
        for answer in behaviour(request, context, caller):
            yield answer
            if closing.is_set():
                return
        self._show(method, "after", context)

    def _enter(self, method: Method, closing: threading.Event, request: Any, context: grpc.ServicerContext) -> Caller:
        caller = self._admission.admit(context)
        if isinstance(request, Message):
            self._admission.check_message(caller, request, context)
        delay_s = self._faults.rpc_delays_s.get(method.name, 0.0)
        if delay_s and closing.wait(delay_s):
            context.abort(grpc.StatusCode.UNAVAILABLE, "the combiner stops")  # or it would take effect while stopping
        self._show(method, "before", context)
        return caller

    def _show(self, method: Method, when: When, context: grpc.ServicerContext) -> None:
        due: RpcAnswer | None = self._faults.next_rpc(method.name, when)
        if due is not None:
            context.abort(due.status, due.details)

    def _behaviours(self) -> dict[str, Behaviour]:
        board = self._board
        return {
            "SendModelUpdate": self._model_update,
            "SendModelValidation": self._model_validation,
            "SendModelMetric": lambda request, context, caller: self._kept(board.metrics, request),
            "SendAttributeMessage": lambda request, context, caller: self._kept(board.records, request),
            "SendTelemetryMessage": lambda request, context, caller: self._kept(board.records, request),
            "StreamTelemetryRecord": self._acknowledge("telemetry_id"),
            "StreamAttributeRecord": self._acknowledge("attribute_id"),
            "StreamInferenceResult": self._acknowledge("inference_result_id"),
            "Announce": self._announce,
            "SendBacklogReport": lambda request, context, caller: self._kept(board.records, request),
            "PollAndReportAsync": self._poll,
            "SendStatus": lambda request, context, caller: self._kept(board.statuses, request),
            "SendHeartbeat": self._heartbeat,
            "TaskStream": self._task_stream,
            "Upload": lambda request, context, caller: self._transfer.upload(request, context),
            "Download": lambda request, context, caller: self._transfer.download(request, context),
        }

    def _kept(self, kept: list[Any], message: Message) -> edge.Response:
        self._board.append(kept, message)
        return edge.Response(response="OK")

    def _acknowledge(self, id_field: str) -> Behaviour:
        def serve(records: Iterator[Any], context: grpc.ServicerContext, caller: Caller) -> Iterator[edge.RecordAck]:
            for record in records:
                self._admission.check_message(caller, record, context)
                self._board.append(self._board.records, record)
                yield edge.RecordAck(record_ids=[getattr(record, id_field)])

        return serve

    def _announce(self, request: edge.ClientAnnounceRequest, context: grpc.ServicerContext, caller: Caller) -> edge.Response:
        if request.type == "VersionCheck":
            accepted = not self._faults.refuse_version
            parameters = json.dumps({"success": accepted, "version": __version__})
            self._board.announce(caller.client_id, request.type)
            return edge.Response(response="" if accepted else "fault: version refused", parameters=parameters)
        if request.type == "Connect" and self._faults.refuse_connect:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "fault: connect refused")
        if request.type not in ("Connect", "Disconnect"):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"unknown announcement {request.type!r}")
        self._board.announce(caller.client_id, request.type)
        return edge.Response(response="OK")

    def _heartbeat(self, request: edge.Heartbeat, context: grpc.ServicerContext, caller: Caller) -> edge.Response:
        self._board.heartbeat(caller.client_id)
        return edge.Response(response="OK")

    def _poll(self, request: edge.ClientReport, context: grpc.ServicerContext, caller: Caller) -> edge.CombinerDirective:
        for report in request.reports:
            self._admission.check_message(caller, report, context)
            self._board.report(caller.client_id, report)
        self._board.polled(caller.client_id)
        stopped = [_task(offer, offer.stop_status) for offer in self._board.to_stop(caller.client_id)]
        fresh = [] if request.skip_polling_tasks else self._board.hand_out(caller.client_id)
        return edge.CombinerDirective(tasks=stopped + [_task(offer, "PENDING") for offer in fresh])

    def _task_stream(
        self, request: edge.ClientAvailableMessage, context: grpc.ServicerContext, caller: Caller
    ) -> Iterator[edge.TaskRequest]:
        while context.is_active():
            waiting = self._board.hand_out(caller.client_id)
            yield from (_task(offer, "PENDING") for offer in waiting)
            self._board.wait_until(lambda: self._board.has_fresh(caller.client_id), STREAM_CHECK_S)

    def _model_update(self, request: edge.ModelUpdate, context: grpc.ServicerContext, caller: Caller) -> edge.Response:
        at_s = time.monotonic()
        self._check_offer(request.correlation_id, caller, context)
        if self._store.find(request.model_update_id) is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"model {request.model_update_id!r} was never uploaded")
        meta = _json_object(request.meta, context)
        self._board.add_update(request, examples_of(meta, context), meta, at_s)
        return edge.Response(response="OK")

    def _model_validation(self, request: edge.ModelValidation, context: grpc.ServicerContext, caller: Caller) -> edge.Response:
        at_s = time.monotonic()
        self._check_offer(request.correlation_id, caller, context)
        self._board.add_validation(request, _json_object(request.data, context), at_s)
        return edge.Response(response="OK")

    def _check_offer(self, correlation_id: str, caller: Caller, context: grpc.ServicerContext) -> None:
        offer = self._board.offers.get(correlation_id)
        if offer is None or offer.client_id != caller.client_id:
            context.abort(grpc.StatusCode.NOT_FOUND, f"client {caller.client_id} has no task {correlation_id!r}")


def _task(offer: Offer, status: str) -> edge.TaskRequest:
    return edge.TaskRequest(
        client_id=offer.client_id,
        model_id=offer.model_id,
        data=offer.data,
        correlation_id=offer.correlation_id,
        timestamp=str(time.time()),
        session_id=offer.session_id,
        round_id=offer.round_id,
        type=offer.type,
        status=status,
    )


def examples_of(meta: dict[str, Any], context: grpc.ServicerContext) -> int:
    """How many examples an update stands for, 1 or more; the call ends for anything else."""
    training = meta.get("training_metadata")
    examples = training.get("num_examples") if isinstance(training, dict) else None
    if isinstance(examples, bool) or not isinstance(examples, int | float) or not 1 <= examples <= MAX_SAFE_INTEGER:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"num_examples must be 1 or more, found {str(examples)[:80]!r}")
    return int(examples)


def _json_object(text: str, context: grpc.ServicerContext) -> dict[str, Any]:
    # Not strictjson: a combiner takes what Python's json writes, NaN and large integers among it.
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as exc:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"no JSON: {str(exc)[:400]}")
    if not isinstance(value, dict):
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "JSON object expected")
    return value
