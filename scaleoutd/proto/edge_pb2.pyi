# SPDX-License-Identifier: Apache-2.0
from collections.abc import Iterable as _Iterable
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar

from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf import wrappers_pb2 as _wrappers_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper

AUDIT: LogLevel
DEBUG: LogLevel
DESCRIPTOR: _descriptor.FileDescriptor
ERROR: LogLevel
FAILED: ModelStatus
INFO: LogLevel
IN_PROGRESS: ModelStatus
NONE: LogLevel
OK: ModelStatus
UNKNOWN: ModelStatus
WARNING: LogLevel

class ActivityReport(_message.Message):
    __slots__ = ["command_type", "completed_at", "correlation_id", "done", "node_id", "parameters", "response", "started_at", "status"]
    COMMAND_TYPE_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_AT_FIELD_NUMBER: _ClassVar[int]
    CORRELATION_ID_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    command_type: str
    completed_at: _timestamp_pb2.Timestamp
    correlation_id: str
    done: bool
    node_id: str
    parameters: str
    response: str
    started_at: _timestamp_pb2.Timestamp
    status: str
    def __init__(self, node_id: str | None = ..., correlation_id: str | None = ..., status: str | None = ..., done: bool = ..., response: str | None = ..., command_type: str | None = ..., parameters: str | None = ..., started_at: _timestamp_pb2.Timestamp | _Mapping | None = ..., completed_at: _timestamp_pb2.Timestamp | _Mapping | None = ...) -> None: ...

class AttributeElem(_message.Message):
    __slots__ = ["key", "value"]
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    key: str
    value: str
    def __init__(self, key: str | None = ..., value: str | None = ...) -> None: ...

class AttributeMessage(_message.Message):
    __slots__ = ["attributes", "client_id", "timestamp"]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    attributes: _containers.RepeatedCompositeFieldContainer[AttributeElem]
    client_id: str
    timestamp: _timestamp_pb2.Timestamp
    def __init__(self, client_id: str | None = ..., attributes: _Iterable[AttributeElem | _Mapping] | None = ..., timestamp: _timestamp_pb2.Timestamp | _Mapping | None = ...) -> None: ...

class AttributeRecord(_message.Message):
    __slots__ = ["attribute_id", "client_id", "key", "payload", "timestamp"]
    ATTRIBUTE_ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    attribute_id: str
    client_id: str
    key: str
    payload: str
    timestamp: _timestamp_pb2.Timestamp
    def __init__(self, attribute_id: str | None = ..., client_id: str | None = ..., timestamp: _timestamp_pb2.Timestamp | _Mapping | None = ..., key: str | None = ..., payload: str | None = ...) -> None: ...

class BacklogReport(_message.Message):
    __slots__ = ["backlog_dropped_total", "backlog_oldest_age_ms", "backlog_total", "client_id"]
    BACKLOG_DROPPED_TOTAL_FIELD_NUMBER: _ClassVar[int]
    BACKLOG_OLDEST_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    BACKLOG_TOTAL_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    backlog_dropped_total: int
    backlog_oldest_age_ms: float
    backlog_total: int
    client_id: str
    def __init__(self, client_id: str | None = ..., backlog_total: int | None = ..., backlog_dropped_total: int | None = ..., backlog_oldest_age_ms: float | None = ...) -> None: ...

class ClientAnnounceRequest(_message.Message):
    __slots__ = ["client_id", "parameters", "type"]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    client_id: str
    parameters: str
    type: str
    def __init__(self, client_id: str | None = ..., type: str | None = ..., parameters: str | None = ...) -> None: ...

class ClientAvailableMessage(_message.Message):
    __slots__ = ["client_id", "data", "timestamp"]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    client_id: str
    data: str
    timestamp: str
    def __init__(self, client_id: str | None = ..., data: str | None = ..., timestamp: str | None = ...) -> None: ...

class ClientReport(_message.Message):
    __slots__ = ["client_id", "poll_interval_ms", "reports", "skip_polling_tasks"]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    POLL_INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    SKIP_POLLING_TASKS_FIELD_NUMBER: _ClassVar[int]
    client_id: str
    poll_interval_ms: int
    reports: _containers.RepeatedCompositeFieldContainer[ActivityReport]
    skip_polling_tasks: bool
    def __init__(self, client_id: str | None = ..., reports: _Iterable[ActivityReport | _Mapping] | None = ..., poll_interval_ms: int | None = ..., skip_polling_tasks: bool = ...) -> None: ...

class CombinerDirective(_message.Message):
    __slots__ = ["tasks"]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    tasks: _containers.RepeatedCompositeFieldContainer[TaskRequest]
    def __init__(self, tasks: _Iterable[TaskRequest | _Mapping] | None = ...) -> None: ...

class FileChunk(_message.Message):
    __slots__ = ["data"]
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: bytes | None = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ["client_id", "heartbeat_interval_ms"]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    client_id: str
    heartbeat_interval_ms: int
    def __init__(self, client_id: str | None = ..., heartbeat_interval_ms: int | None = ...) -> None: ...

class InferenceResult(_message.Message):
    __slots__ = ["inference_id", "inference_result_id", "key", "model_id", "node_id", "payload", "timestamp"]
    INFERENCE_ID_FIELD_NUMBER: _ClassVar[int]
    INFERENCE_RESULT_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    inference_id: str
    inference_result_id: str
    key: str
    model_id: str
    node_id: str
    payload: str
    timestamp: _timestamp_pb2.Timestamp
    def __init__(self, inference_result_id: str | None = ..., node_id: str | None = ..., timestamp: _timestamp_pb2.Timestamp | _Mapping | None = ..., key: str | None = ..., payload: str | None = ..., inference_id: str | None = ..., model_id: str | None = ...) -> None: ...

class MetricElem(_message.Message):
    __slots__ = ["key", "value"]
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    key: str
    value: float
    def __init__(self, key: str | None = ..., value: float | None = ...) -> None: ...

class ModelMetric(_message.Message):
    __slots__ = ["client_id", "metrics", "model_id", "round_id", "session_id", "step", "timestamp"]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    client_id: str
    metrics: _containers.RepeatedCompositeFieldContainer[MetricElem]
    model_id: str
    round_id: str
    session_id: str
    step: _wrappers_pb2.UInt32Value
    timestamp: _timestamp_pb2.Timestamp
    def __init__(self, client_id: str | None = ..., metrics: _Iterable[MetricElem | _Mapping] | None = ..., timestamp: _timestamp_pb2.Timestamp | _Mapping | None = ..., step: _wrappers_pb2.UInt32Value | _Mapping | None = ..., model_id: str | None = ..., round_id: str | None = ..., session_id: str | None = ...) -> None: ...

class ModelRequest(_message.Message):
    __slots__ = ["model_id"]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    def __init__(self, model_id: str | None = ...) -> None: ...

class ModelResponse(_message.Message):
    __slots__ = ["message", "status"]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    message: str
    status: ModelStatus
    def __init__(self, status: ModelStatus | str | None = ..., message: str | None = ...) -> None: ...

class ModelUpdate(_message.Message):
    __slots__ = ["client_id", "config", "correlation_id", "meta", "model_id", "model_update_id", "round_id", "session_id", "timestamp"]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    CORRELATION_ID_FIELD_NUMBER: _ClassVar[int]
    META_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_UPDATE_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    client_id: str
    config: str
    correlation_id: str
    meta: str
    model_id: str
    model_update_id: str
    round_id: str
    session_id: str
    timestamp: _timestamp_pb2.Timestamp
    def __init__(self, client_id: str | None = ..., model_id: str | None = ..., model_update_id: str | None = ..., correlation_id: str | None = ..., timestamp: _timestamp_pb2.Timestamp | _Mapping | None = ..., meta: str | None = ..., config: str | None = ..., round_id: str | None = ..., session_id: str | None = ...) -> None: ...

class ModelValidation(_message.Message):
    __slots__ = ["client_id", "correlation_id", "data", "model_id", "session_id", "timestamp"]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    CORRELATION_ID_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    client_id: str
    correlation_id: str
    data: str
    model_id: str
    session_id: str
    timestamp: _timestamp_pb2.Timestamp
    def __init__(self, client_id: str | None = ..., model_id: str | None = ..., data: str | None = ..., correlation_id: str | None = ..., timestamp: _timestamp_pb2.Timestamp | _Mapping | None = ..., session_id: str | None = ...) -> None: ...

class RecordAck(_message.Message):
    __slots__ = ["record_ids"]
    RECORD_IDS_FIELD_NUMBER: _ClassVar[int]
    record_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, record_ids: _Iterable[str] | None = ...) -> None: ...

class Response(_message.Message):
    __slots__ = ["parameters", "response"]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    parameters: str
    response: str
    def __init__(self, response: str | None = ..., parameters: str | None = ...) -> None: ...

class Status(_message.Message):
    __slots__ = ["client_id", "log_level", "status", "timestamp", "type"]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    LOG_LEVEL_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    client_id: str
    log_level: LogLevel
    status: str
    timestamp: _timestamp_pb2.Timestamp
    type: str
    def __init__(self, client_id: str | None = ..., status: str | None = ..., log_level: LogLevel | str | None = ..., timestamp: _timestamp_pb2.Timestamp | _Mapping | None = ..., type: str | None = ...) -> None: ...

class TaskRequest(_message.Message):
    __slots__ = ["client_id", "correlation_id", "data", "model_id", "round_id", "session_id", "status", "timestamp", "type"]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    CORRELATION_ID_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    client_id: str
    correlation_id: str
    data: str
    model_id: str
    round_id: str
    session_id: str
    status: str
    timestamp: str
    type: str
    def __init__(self, client_id: str | None = ..., model_id: str | None = ..., data: str | None = ..., correlation_id: str | None = ..., timestamp: str | None = ..., session_id: str | None = ..., round_id: str | None = ..., type: str | None = ..., status: str | None = ...) -> None: ...

class TelemetryElem(_message.Message):
    __slots__ = ["key", "value"]
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    key: str
    value: float
    def __init__(self, key: str | None = ..., value: float | None = ...) -> None: ...

class TelemetryMessage(_message.Message):
    __slots__ = ["client_id", "record_id", "telemetries", "timestamp"]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    RECORD_ID_FIELD_NUMBER: _ClassVar[int]
    TELEMETRIES_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    client_id: str
    record_id: str
    telemetries: _containers.RepeatedCompositeFieldContainer[TelemetryElem]
    timestamp: _timestamp_pb2.Timestamp
    def __init__(self, client_id: str | None = ..., telemetries: _Iterable[TelemetryElem | _Mapping] | None = ..., timestamp: _timestamp_pb2.Timestamp | _Mapping | None = ..., record_id: str | None = ...) -> None: ...

class TelemetryRecord(_message.Message):
    __slots__ = ["client_id", "key", "payload", "telemetry_id", "timestamp"]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    TELEMETRY_ID_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    client_id: str
    key: str
    payload: str
    telemetry_id: str
    timestamp: _timestamp_pb2.Timestamp
    def __init__(self, telemetry_id: str | None = ..., client_id: str | None = ..., timestamp: _timestamp_pb2.Timestamp | _Mapping | None = ..., key: str | None = ..., payload: str | None = ...) -> None: ...

class LogLevel(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = []

class ModelStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = []
