# SPDX-License-Identifier: Apache-2.0
"""What a dialect is: everything the rest of the agent knows about a combiner.

Errors of every call: TransportError `transport-failed` when nobody can know what the other side did, `transport-refused`
when it answered no, the codes of agent/tls.py when there is no connection, `token-refused` when it did not
take our access token.  Every call has a deadline.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from scaleoutd.core.plan import Task

# same-ids: an update whose fate is unknown is sent again under the same model and update id, the combiner counts it once.
# open-round: only while the round is open, else it is dropped, on record.
ResendRule = Literal["same-ids", "open-round"]
Status = Literal["PENDING", "RUNNING", "COMPLETED", "FAILED", "INTERRUPTED"]


@dataclass(frozen=True)
class Directive:
    """What the combiner wants.  `task` is None for a type that this client cannot do (`type` is the combiner's name of it).

    `stop` is the reason to stop a task, "" for a task to do.  `data` is what came with it, verbatim; `settings` the JSON
    text of its client_settings or parameters.  `problem` is (code, message) when the task cannot be read.
    """

    correlation_id: str
    type: str
    task: Task | None
    model_id: str = ""
    session_id: str = ""
    round_id: str = ""
    data: str = ""
    settings: str = ""
    stop: str = ""
    problem: tuple[str, str] | None = None


@dataclass(frozen=True)
class Report:
    """The state of one task, as the combiner hears it.  `response` is JSON text or ""."""

    correlation_id: str
    status: Status
    done: bool = False
    response: str = ""
    started_ms: int = 0
    completed_ms: int = 0


@dataclass(frozen=True)
class Arrived:
    """A model that was downloaded whole; digest in lower-case hex."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Result:
    """What a run gave, with all that the combiner wants to hear of it.  `body` is a JSON object; times in seconds."""

    directive: Directive
    body: str
    model_update_id: str = ""
    exec_s: float = 0.0
    fetch_s: float = 0.0
    upload_s: float = 0.0
    total_s: float = 0.0


class Dialect(Protocol):
    """One open session with a combiner.  Safe for several threads."""

    @property
    def name(self) -> str: ...

    @property
    def resend(self) -> ResendRule: ...

    def connect(self) -> None:
        """Compatibility and announcement: comes before any other call, and again after the connection was cut."""

    def was_cut(self) -> bool:
        """True when the connection is another one than at the last `connect`."""

    def heartbeat(self) -> None: ...

    def poll(self, reports: Sequence[Report], *, take_tasks: bool = True) -> list[Directive]:
        """Tells the state of tasks, hears what to do.  When it returns, the reports have arrived."""

    def download(self, model_id: str, fd: int, max_bytes: int, on_call: Callable[[Callable[[], object]], None]) -> Arrived:
        """Writes a model from offset 0 of `fd`.  `on_call` gets a function that breaks the download off."""

    def upload(self, model_update_id: str, fd: int, size_bytes: int, sha256: str) -> None: ...

    def send_update(self, result: Result) -> None: ...

    def send_validation(self, result: Result) -> None: ...

    def send_prediction(self, result: Result) -> None: ...

    def tell_status(self, text: str, *, audit: bool) -> None:
        """A line for the people who watch the combiner.  Nothing waits for it, nothing depends on it."""

    def disconnect(self) -> None: ...

    def close(self) -> None: ...
