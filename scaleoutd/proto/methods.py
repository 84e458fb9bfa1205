# SPDX-License-Identifier: Apache-2.0
"""Every remote call of dialect "edge" in one table, for client and server alike.

Rules: this is the only place where a method path is written; grpc is not imported here, the caller binds a method with
``getattr(channel, method.kind)(method.path, request_serializer=..., response_deserializer=...)``.
Source: PROTOCOL.md section 1; a test compares the table with the descriptors of edge_pb2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from google.protobuf.message import Message

from scaleoutd.proto import edge_pb2 as edge

Kind = Literal["unary_unary", "unary_stream", "stream_unary", "stream_stream"]

COMBINER = "scaleout.CombinerClient"
MODELS = "scaleout.ModelService"


@dataclass(frozen=True, slots=True)
class Method:
    """One remote call: where it is, what goes in, what comes out, and which side streams."""

    service: str
    name: str
    request: type[Message]
    response: type[Message]
    kind: Kind

    @property
    def path(self) -> str:
        """The HTTP/2 path, ``/scaleout.CombinerClient/Announce``."""
        return f"/{self.service}/{self.name}"


SEND_MODEL_UPDATE = Method(COMBINER, "SendModelUpdate", edge.ModelUpdate, edge.Response, "unary_unary")
SEND_MODEL_VALIDATION = Method(COMBINER, "SendModelValidation", edge.ModelValidation, edge.Response, "unary_unary")
SEND_MODEL_METRIC = Method(COMBINER, "SendModelMetric", edge.ModelMetric, edge.Response, "unary_unary")
SEND_ATTRIBUTE_MESSAGE = Method(COMBINER, "SendAttributeMessage", edge.AttributeMessage, edge.Response, "unary_unary")
SEND_TELEMETRY_MESSAGE = Method(COMBINER, "SendTelemetryMessage", edge.TelemetryMessage, edge.Response, "unary_unary")
STREAM_TELEMETRY_RECORD = Method(COMBINER, "StreamTelemetryRecord", edge.TelemetryRecord, edge.RecordAck, "stream_stream")
STREAM_ATTRIBUTE_RECORD = Method(COMBINER, "StreamAttributeRecord", edge.AttributeRecord, edge.RecordAck, "stream_stream")
STREAM_INFERENCE_RESULT = Method(COMBINER, "StreamInferenceResult", edge.InferenceResult, edge.RecordAck, "stream_stream")
ANNOUNCE = Method(COMBINER, "Announce", edge.ClientAnnounceRequest, edge.Response, "unary_unary")
SEND_BACKLOG_REPORT = Method(COMBINER, "SendBacklogReport", edge.BacklogReport, edge.Response, "unary_unary")
POLL_AND_REPORT = Method(COMBINER, "PollAndReportAsync", edge.ClientReport, edge.CombinerDirective, "unary_unary")
SEND_STATUS = Method(COMBINER, "SendStatus", edge.Status, edge.Response, "unary_unary")
SEND_HEARTBEAT = Method(COMBINER, "SendHeartbeat", edge.Heartbeat, edge.Response, "unary_unary")
TASK_STREAM = Method(COMBINER, "TaskStream", edge.ClientAvailableMessage, edge.TaskRequest, "unary_stream")
UPLOAD = Method(MODELS, "Upload", edge.FileChunk, edge.ModelResponse, "stream_unary")
DOWNLOAD = Method(MODELS, "Download", edge.ModelRequest, edge.FileChunk, "unary_stream")

METHODS: tuple[Method, ...] = (
    SEND_MODEL_UPDATE,
    SEND_MODEL_VALIDATION,
    SEND_MODEL_METRIC,
    SEND_ATTRIBUTE_MESSAGE,
    SEND_TELEMETRY_MESSAGE,
    STREAM_TELEMETRY_RECORD,
    STREAM_ATTRIBUTE_RECORD,
    STREAM_INFERENCE_RESULT,
    ANNOUNCE,
    SEND_BACKLOG_REPORT,
    POLL_AND_REPORT,
    SEND_STATUS,
    SEND_HEARTBEAT,
    TASK_STREAM,
    UPLOAD,
    DOWNLOAD,
)
