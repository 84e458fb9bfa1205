# SPDX-License-Identifier: Apache-2.0
"""The messages of agent, runner and ledger.

Agent and runner, one connection for each task:
    TaskOffer → ReceiveModel + [write-only file] | Released (+ file) | Refused
    ModelReceived → Stage* … Released (+ [outbox file, read-only] for train) | Refused    (CancelTask may come in between)
    Delivered → Forgotten
A task offered again after a crash is answered from the run-once table: Released when its result is still in the outbox,
the error it ended with, or Refused `run-repeated`.

Anyone and the ledger:
    Append → Recorded        durable; the same event_id is answered with the same sequence
    AskFloors → Floors
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from scaleoutd.core.plan import Task
from scaleoutd.core.records import Count, Name, Natural, Sha256Hex, Text
from scaleoutd.core.strictjson import Json
from scaleoutd.ipc.channel import message

Identifier = Annotated[str, Text(256, r"[^\x00-\x1f\x7f]*")]
JsonText = Annotated[str, Text(32 * 1024)]


@message("task-offer")
@dataclass(frozen=True)
class TaskOffer:
    """A task as the combiner sent it.  `settings` is its client_settings as JSON text ("" for none)."""

    correlation_id: Annotated[str, Text(256, r"[^\x00-\x1f\x7f]+", 1)]
    task: Task
    model_id: Identifier
    session_id: Identifier
    round_id: Identifier
    combiner: Identifier  # host:port that sent it
    settings: JsonText = ""


@message("receive-model")
@dataclass(frozen=True)
class ReceiveModel:
    """The project is proven and the task allowed: stream the model into the descriptor, then close every copy of it."""

    run: Name
    max_bytes: Natural
    max_is_space: bool = False  # it is the free space that bounds it, not the policy


@message("model-received")
@dataclass(frozen=True)
class ModelReceived:
    """The agent closed the file.  Size and digest are its own count; the runner hashes for itself."""

    size_bytes: Natural
    sha256: Sha256Hex


@message("stage")
@dataclass(frozen=True)
class Stage:
    """The runner went on to a stage: inspect, execute, gate or release."""

    name: Name


@message("cancel-task")
@dataclass(frozen=True)
class CancelTask:
    reason: Annotated[str, Text(256)] = ""


@message("released")
@dataclass(frozen=True)
class Released:
    """On record and free to leave.

    `body` is a JSON object: for train the training metadata that may leave (with num_examples), for validate the
    metrics, for predict the prediction.  For train the descriptor is the container, `sha256` and `size_bytes` are its own and
    `model_update_id` is the model id written in it.
    """

    run: Name
    task: Task
    body: JsonText
    size_bytes: Natural
    sha256: Sha256Hex
    exec_ms: Natural
    model_update_id: Identifier = ""
    withheld: tuple[str, ...] = ()  # keys that the egress rules kept back


@message("delivered")
@dataclass(frozen=True)
class Delivered:
    """What became of it: the combiner took it, nobody can know, or it was given up."""

    run: Name
    outcome: Literal["acknowledged", "unknown", "dropped"]


@message("forgotten")
@dataclass(frozen=True)
class Forgotten:
    run: Name


@dataclass(frozen=True)
class Entry:
    """One event to record: its id (the caller's, for idempotence), its type of the catalogue, its attributes."""

    event_id: Annotated[str, Text(32, r"[0-9a-f]{32}")]
    type: Name
    body: Mapping[str, Json] = field(default_factory=dict)


@message("append")
@dataclass(frozen=True)
class Append:
    """Events to make durable, in this order, with one barrier."""

    entries: Annotated[tuple[Entry, ...], Count(1, 64)]


@message("recorded")
@dataclass(frozen=True)
class Recorded:
    """Durable.  `sequences` belong to the entries of the request; `time_ms` is the ledger's clock (Unix, ms)."""

    sequences: tuple[int, ...]
    time_ms: Natural


@message("ask-floors")
@dataclass(frozen=True)
class AskFloors:
    pass


@message("floors")
@dataclass(frozen=True)
class Floors:
    """The highest versions and the latest time that the trail has seen; `root_sha256` is "" where only its version is known."""

    time_ms: Natural
    root_version: Natural
    manifest_versions: Mapping[str, int] = field(default_factory=dict)
    root_sha256: Annotated[str, Text(64, r"([0-9a-f]{64})?")] = ""
