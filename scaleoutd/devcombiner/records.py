# SPDX-License-Identifier: Apache-2.0
"""What the combiner remembers of clients, tasks, updates and rounds.

Times named `…_at_s` are `time.monotonic()` of this machine: on Linux one clock for all its processes, so a benchmark in
another process may subtract them from its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

TRAIN = "Scaleout_ModelUpdate"
VALIDATE = "Scaleout_Validation"
PREDICT = "Scaleout_Inference"
STOPPING = ("INTERRUPTED", "TIMEOUT")
FINISHED = ("COMPLETED", "FAILED", "INTERRUPTED")


@dataclass(slots=True)
class ClientSession:
    """One client as it was last seen; the certificate's fields are empty without mTLS."""

    client_id: str
    name: str
    certificate_subject: str = ""
    certificate_fingerprint: str = ""
    connected: bool = False
    last_seen_at_s: float = 0.0
    heartbeats: int = 0
    polls: int = 0
    announced: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Offer:
    """One task for one client, from the offer to its last report."""

    correlation_id: str
    client_id: str
    type: str
    model_id: str
    session_id: str
    round_id: str
    data: str
    offered_at_s: float
    handed_out_at_s: float | None = None
    result_at_s: float | None = None
    done_at_s: float | None = None
    status: str = "CREATED"
    response: str = ""
    stop_status: str = ""

    @property
    def done(self) -> bool:
        """The client said that it is through with it."""
        return self.done_at_s is not None


@dataclass(frozen=True, slots=True)
class UpdateRecord:
    """A model update as announced; `counted` is False for a repetition of a correlation id."""

    client_id: str
    correlation_id: str
    model_id: str
    model_update_id: str
    round_id: str
    session_id: str
    num_examples: int
    meta: dict[str, Any]
    arrived_at_s: float
    counted: bool


@dataclass(frozen=True, slots=True)
class ValidationRecord:
    """A validation as announced; `metrics` is what the client's JSON held."""

    client_id: str
    correlation_id: str
    model_id: str
    session_id: str
    metrics: Any
    arrived_at_s: float
    counted: bool


@dataclass(frozen=True, slots=True)
class Stream:
    """A transfer that came to its end: "download" or "upload" of a model, its bytes, from the first word to the last."""

    kind: str
    model_id: str
    size_bytes: int
    began_at_s: float
    ended_at_s: float


@dataclass(frozen=True, slots=True)
class TaskTiming:
    """When a task left and when its result and its last report came; None = never."""

    handed_out_at_s: float | None
    result_at_s: float | None
    done_at_s: float | None


@dataclass(slots=True)
class RoundRecord:
    """One round.  `status`: completed (every participant delivered), partial, failed (no usable update) or no-clients."""

    number: int
    round_id: str
    session_id: str
    model_id: str
    started_at_s: float
    ended_at_s: float = 0.0
    new_model_id: str = ""
    status: str = "running"
    participants: list[str] = field(default_factory=list)
    updates: dict[str, UpdateRecord] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    validations: dict[str, Any] = field(default_factory=dict)
    train_timings: dict[str, TaskTiming] = field(default_factory=dict)
    validate_timings: dict[str, TaskTiming] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RestCall:
    """One answered REST request; `role` is the token's kind, never the token."""

    path: str
    status: int
    certificate_fingerprint: str
    role: str
    client_id: str
