# SPDX-License-Identifier: Apache-2.0
"""Dialect edge: Scaleout Edge 1.x over gRPC.  Source: PROTOCOL.md section 1, points 3 to 9.

Rules:
  1. VersionCheck and Connect come before anything else, after every cut again.
  2. Every call has a deadline; the bound of a transfer grows with its size.
  3. gRPC sees a Unix socket (agent/pump.py).  Its buffers are small, its retries are off: who resends decides, not the channel.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc

from scaleoutd.agent.dialects import Arrived, Directive, Report, ResendRule, Result
from scaleoutd.agent.pump import Pump
from scaleoutd.agent.tokens import TokenKeeper
from scaleoutd.core import strictjson
from scaleoutd.core.plan import Task
from scaleoutd.durable import storage_errors, write_all
from scaleoutd.errors import CredentialError, FormatError, LimitExceededError, ScaleoutError, TransportError
from scaleoutd.proto import edge_pb2 as edge
from scaleoutd.proto import methods
from scaleoutd.proto.methods import Method

CHUNK_BYTES = 1024 * 1024
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
MAX_DATA_BYTES, MAX_DATA_VALUES = 8 * 1024 * 1024, 200_000
CALL_TIMEOUT_S = 10.0
HEARTBEAT_TIMEOUT_S = 5.0
TRANSFER_TIMEOUT_S = 120.0
SLOWEST_BYTES_PER_S = 64 * 1024
LONGEST_TRANSFER_S = 6 * 3600.0

TASK_OF_TYPE: dict[str, Task] = {
    "Scaleout_ModelUpdate": "train",
    "Scaleout_Validation": "validate",
    "Scaleout_Inference": "predict",
}
SETTINGS_KEY: dict[Task, str] = {"train": "client_settings", "validate": "client_settings", "predict": "parameters"}
PREDICTION_KEY = "prediction"
# Of the ids of predictions: one task has one, however often it is sent.
PREDICTIONS = uuid.UUID("6f0c6f3a-6a1c-4f57-9d0e-5b7a4c1f2e90")
STOPPING = ("INTERRUPTED", "TIMEOUT")

_NOBODY_KNOWS = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DATA_LOSS,
}


def open_channel(pump: Pump) -> grpc.Channel:
    """A channel that speaks to the pump."""
    return grpc.insecure_channel(
        pump.target,
        options=[
            ("grpc.default_authority", pump.host),
            ("grpc.enable_http_proxy", 0),
            ("grpc.enable_retries", 0),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.http2.bdp_probe", 0),  # else the window, and so the memory, grows with the speed of the link
            ("grpc.http2.lookahead_bytes", 2 * CHUNK_BYTES),
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.min_reconnect_backoff_ms", 10_000),  # also the time for the pump's TLS handshake
            ("grpc.max_reconnect_backoff_ms", 5_000),
        ],
    )


class Edge:
    """One session.  Owns `pump` and the channel over it."""

    name = "edge"
    resend: ResendRule = "same-ids"

    def __init__(
        self,
        pump: Pump,
        tokens: TokenKeeper,
        *,
        client_id: str,
        client_name: str,
        client_version: str,
        check_compatibility: bool = True,
        auth_scheme: str = "Bearer",
        status_reporting: bool = True,
        poll_interval_ms: int = 5000,
        heartbeat_interval_ms: int = 2000,
    ) -> None:
        self._pump, self._tokens = pump, tokens
        self._client_id, self._client_name, self._version = client_id, client_name, client_version
        self._check_compatibility = check_compatibility
        self._auth_scheme, self._status_reporting = auth_scheme, status_reporting
        self._poll_interval_ms, self._heartbeat_interval_ms = poll_interval_ms, heartbeat_interval_ms
        self._connections = 0
        self._told: deque[Any] = deque(maxlen=16)
        self._channel = open_channel(pump)
        self._stubs = {method.name: self._bind(method) for method in methods.METHODS}

    # --- session ----------------------------------------------------------------------------------------------

    def connect(self) -> None:
        if self._check_compatibility:
            self._version_check()
        self._call(methods.ANNOUNCE, edge.ClientAnnounceRequest(client_id=self._client_id, type="Connect"), CALL_TIMEOUT_S)
        self._connections = self._pump.connections

    def was_cut(self) -> bool:
        return self._pump.connections != self._connections

    def disconnect(self) -> None:
        self._call(methods.ANNOUNCE, edge.ClientAnnounceRequest(client_id=self._client_id, type="Disconnect"), 1.0)

    def close(self) -> None:
        self._channel.close()
        self._pump.close()

    def heartbeat(self) -> None:
        beat = edge.Heartbeat(client_id=self._client_id, heartbeat_interval_ms=self._heartbeat_interval_ms)
        self._call(methods.SEND_HEARTBEAT, beat, HEARTBEAT_TIMEOUT_S)

    def _version_check(self) -> None:
        request = edge.ClientAnnounceRequest(
            client_id=self._client_id, type="VersionCheck", parameters=json.dumps({"client-version": self._version})
        )
        answer = self._call(methods.ANNOUNCE, request, CALL_TIMEOUT_S)
        try:
            facts = strictjson.parse(answer.parameters.encode(), max_bytes=64 * 1024, allow_floats=True, what="the version check")
        except FormatError as exc:
            raise TransportError(f"cannot check the version: {exc.message}", code="transport-refused") from exc
        if not isinstance(facts, dict) or facts.get("success") is not True:
            version = facts.get("version", "unknown") if isinstance(facts, dict) else "unknown"
            raise CredentialError(
                f"cannot connect: the combiner (version {str(version)[:32]}) does not accept client version {self._version}",
                code="version-refused",
                hint="Install the scaleoutd that goes with this combiner.",
            )

    # --- tasks ------------------------------------------------------------------------------------------------

    def poll(self, reports: Sequence[Report], *, take_tasks: bool = True) -> list[Directive]:
        request = edge.ClientReport(
            client_id=self._client_id,
            reports=[self._report(report) for report in reports],
            poll_interval_ms=self._poll_interval_ms,
            skip_polling_tasks=not take_tasks,
        )
        answer = self._call(methods.POLL_AND_REPORT, request, CALL_TIMEOUT_S)
        return [directive_of(task) for task in answer.tasks if task.correlation_id]

    def _report(self, report: Report) -> edge.ActivityReport:
        message = edge.ActivityReport(
            node_id=self._client_id,
            correlation_id=report.correlation_id,
            status=report.status,
            done=report.done,
            response=report.response,
        )
        if report.started_ms:
            message.started_at.FromMilliseconds(report.started_ms)
        if report.completed_ms:
            message.completed_at.FromMilliseconds(report.completed_ms)
        return message

    # --- models -----------------------------------------------------------------------------------------------

    def download(self, model_id: str, fd: int, max_bytes: int, on_call: Callable[[Callable[[], object]], None]) -> Arrived:
        deadline_s = _transfer_timeout_s(max_bytes)
        call = self._stubs["Download"](edge.ModelRequest(model_id=model_id), timeout=deadline_s, metadata=self._metadata())
        on_call(call.cancel)
        digest, size = hashlib.sha256(), 0
        with storage_errors("prepare the file for the model"):
            os.ftruncate(fd, 0)
            os.lseek(fd, 0, os.SEEK_SET)
        try:
            for chunk in call:
                size += len(chunk.data)
                if size > max_bytes:
                    raise _too_large(model_id, size, max_bytes)
                digest.update(chunk.data)
                with storage_errors("write the model"):
                    write_all(fd, chunk.data)
            _compare(model_id, call.trailing_metadata(), digest.hexdigest(), size)
        except grpc.RpcError as exc:
            raise self._error("Download", exc) from exc
        finally:
            call.cancel()  # of a call that is over: nothing happens
        return Arrived(size, digest.hexdigest())

    def upload(self, model_update_id: str, fd: int, size_bytes: int, sha256: str) -> None:
        metadata = [*self._metadata(), ("model-id", model_update_id), ("checksum", sha256)]
        try:
            answer = self._stubs["Upload"](_chunks(fd, size_bytes), timeout=_transfer_timeout_s(size_bytes), metadata=metadata)
        except grpc.RpcError as exc:
            raise self._error("Upload", exc) from exc
        if answer.status == edge.FAILED:
            raise TransportError(
                f"cannot deliver the update: the combiner refused the upload: {answer.message[:200]}", code="upload-refused"
            )

    def send_update(self, result: Result) -> None:
        task = result.directive
        meta = {
            "training_metadata": json.loads(result.body),
            "exec_training": result.exec_s,
            "processing_time": result.total_s,
            "upload_model": result.upload_s,
            "fetch_model": result.fetch_s,
            "config": task.data,
        }
        message = edge.ModelUpdate(
            client_id=self._client_id,
            model_id=task.model_id,
            model_update_id=result.model_update_id,
            correlation_id=task.correlation_id,
            round_id=task.round_id,
            session_id=task.session_id,
            meta=json.dumps(meta),
        )
        message.timestamp.GetCurrentTime()
        self._call(methods.SEND_MODEL_UPDATE, message, CALL_TIMEOUT_S)

    def send_validation(self, result: Result) -> None:
        task = result.directive
        message = edge.ModelValidation(
            client_id=self._client_id,
            model_id=task.model_id,
            data=result.body,
            correlation_id=task.correlation_id,
            session_id=task.session_id,
        )
        message.timestamp.GetCurrentTime()
        self._call(methods.SEND_MODEL_VALIDATION, message, CALL_TIMEOUT_S)

    def send_prediction(self, result: Result) -> None:
        """One record on a stream of its own, which stays open until the combiner has acknowledged it."""
        task = result.directive
        record = edge.InferenceResult(
            inference_result_id=str(uuid.uuid5(PREDICTIONS, task.correlation_id)),
            node_id=self._client_id,
            key=PREDICTION_KEY,
            payload=result.body,
            inference_id=task.correlation_id,
            model_id=task.model_id,
        )
        record.timestamp.GetCurrentTime()
        over = threading.Event()
        method = methods.STREAM_INFERENCE_RESULT.name
        try:
            call = self._stubs[method](_then_wait(record, over), timeout=CALL_TIMEOUT_S, metadata=self._metadata())
            for answer in call:
                if record.inference_result_id in answer.record_ids:
                    call.cancel()
                    return
        except grpc.RpcError as exc:
            raise self._error(method, exc) from exc
        except ValueError as exc:
            raise TransportError(f"cannot call {method}: the connection is closed") from exc
        finally:
            over.set()
        raise TransportError("cannot deliver the prediction: the combiner ended the stream without acknowledging it")

    def tell_status(self, text: str, *, audit: bool) -> None:
        if not self._status_reporting:
            return
        level = edge.AUDIT if audit else edge.INFO
        message = edge.Status(client_id=self._client_id, status=text, log_level=level, type="MODEL_UPDATE")
        message.timestamp.GetCurrentTime()
        try:
            # gRPC cancels a call that nobody holds on to.
            self._told.append(self._stubs["SendStatus"].future(message, timeout=CALL_TIMEOUT_S, metadata=self._metadata()))
        except (ScaleoutError, ValueError):
            pass  # no token or a closed channel: the calls that matter say so themselves

    # --- calls ------------------------------------------------------------------------------------------------

    def _bind(self, method: Method) -> Any:
        return getattr(self._channel, method.kind)(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )

    def _call(self, method: Method, request: Any, timeout_s: float) -> Any:
        try:
            return self._stubs[method.name](request, timeout=timeout_s, metadata=self._metadata())
        except grpc.RpcError as exc:
            raise self._error(method.name, exc) from exc
        except ValueError as exc:
            # gRPC's way to say that the channel was closed by another thread.
            raise TransportError(f"cannot call {method.name}: the connection is closed") from exc

    def _metadata(self) -> list[tuple[str, str]]:
        self._token = self._tokens.access_token()
        return [
            ("client", self._client_id),
            ("client-id", self._client_id),
            ("name", self._client_name),
            ("authorization", f"{self._auth_scheme} {self._token}"),
        ]

    def _error(self, what: str, exc: grpc.RpcError) -> ScaleoutError:
        status, details = exc.code(), (exc.details() or "")[:200]
        if status == grpc.StatusCode.UNAVAILABLE and self._pump.last_error is not None:
            return self._pump.last_error
        if status == grpc.StatusCode.UNAUTHENTICATED:
            self._tokens.distrust(self._token)
            # No CredentialError: only the API's word about a token is final.
            text = f"cannot call {what}: the combiner does not take our access token"
            return TransportError(text, code="token-refused", hint="A new one is asked for.")
        text = f"cannot call {what}: {status.name}: {details}"
        return TransportError(text, code="transport-failed" if status in _NOBODY_KNOWS else "transport-refused")


def directive_of(task: edge.TaskRequest) -> Directive:
    """A TaskRequest in the agent's words."""
    kind = TASK_OF_TYPE.get(task.type)
    settings, problem = "", None
    if task.status not in STOPPING:
        if kind is None:
            problem = ("task-unknown", f"cannot do the task: type {task.type[:64]!r} is not known here")
        else:
            try:
                settings = _settings_of(task.data, SETTINGS_KEY[kind])
            except FormatError as exc:
                problem = ("settings-denied", exc.message)
    return Directive(
        correlation_id=task.correlation_id,
        type=task.type,
        task=kind,
        model_id=task.model_id,
        session_id=task.session_id,
        round_id=task.round_id,
        data=task.data,
        settings=settings,
        stop=task.status if task.status in STOPPING else "",
        problem=problem,
    )


def _then_wait(record: edge.InferenceResult, over: threading.Event) -> Iterator[edge.InferenceResult]:
    yield record
    over.wait(CALL_TIMEOUT_S)


def _settings_of(data: str, key: str) -> str:
    """The JSON text of `key`, "" when there are none."""
    if not data:
        return ""
    value = strictjson.parse(
        data.encode(), max_bytes=MAX_DATA_BYTES, allow_floats=True, what="task data", max_values=MAX_DATA_VALUES
    )
    settings = value.get(key) if isinstance(value, dict) else None
    return json.dumps(settings, ensure_ascii=False, sort_keys=True) if settings else ""


def _chunks(fd: int, size_bytes: int) -> Iterator[edge.FileChunk]:
    offset = 0
    while offset < size_bytes:
        data = os.pread(fd, min(CHUNK_BYTES, size_bytes - offset), offset)
        if not data:
            return  # shorter than said: the checksum tells
        offset += len(data)
        yield edge.FileChunk(data=data)


def _compare(model_id: str, trailers: Any, sha256: str, size: int) -> None:
    expected = next((str(value) for key, value in trailers or () if key == "checksum"), "")
    if not size or (expected and expected.lower() != sha256):
        raise TransportError(
            f"cannot use model {model_id[:64]}: {size} bytes arrived with SHA-256 {sha256[:16]}…, expected {expected[:16]}…",
            code="download-corrupt",
        )


def _too_large(model_id: str, size: int, max_bytes: int) -> LimitExceededError:
    return LimitExceededError(
        f"cannot take model {model_id[:64]}: {size} bytes or more, at most {max_bytes} are allowed", code="limit-model"
    )


def _transfer_timeout_s(size_bytes: int) -> float:
    return min(LONGEST_TRANSFER_S, TRANSFER_TIMEOUT_S + size_bytes / SLOWEST_BYTES_PER_S)
