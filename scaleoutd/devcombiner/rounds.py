# SPDX-License-Identifier: Apache-2.0
"""A session: rounds of training on every connected client, averaging, and validation of the new model.

    wait for min_clients -> offer train -> wait for each: update, failure or timeout -> FedAvg -> offer validate -> wait

Rules: a client that reported FAILED or INTERRUPTED is not waited for; one that reported COMPLETED has a few seconds for
the result itself, which travels by another call; a task still open at the round's end is stopped with TIMEOUT.  An update
that cannot be averaged is refused, on record, and the round goes on without it.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from scaleoutd.devcombiner.board import Board
from scaleoutd.devcombiner.container import read_container, write_container
from scaleoutd.devcombiner.fedavg import check_update, fedavg
from scaleoutd.devcombiner.models import ModelStore
from scaleoutd.devcombiner.npz import FlatArray, read_npz, write_npz
from scaleoutd.devcombiner.records import TRAIN, VALIDATE, Offer, RoundRecord, TaskTiming
from scaleoutd.errors import FormatError, OutputError, ScaleoutError, TransportError

# From the report COMPLETED to the result itself.
RESULT_GRACE_S = 3.0


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """What a session does; `client_settings` goes to every train task as it is."""

    rounds: int
    min_clients: int
    round_timeout_s: float
    validate: bool
    client_settings: dict[str, Any]
    deflate: bool = False


@dataclass(slots=True)
class Session:
    """One run of a plan, in a thread of its own; `status` is running, completed, failed or stopped."""

    board: Board
    store: ModelStore
    plan: SessionPlan
    model_id: str
    history: list[RoundRecord]
    session_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    status: str = "running"
    error: ScaleoutError | None = None
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins; returns at once."""
        self._thread = threading.Thread(target=self._run, name="devcombiner-session", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends it before its time and waits."""
        self._stop.set()
        self.board.wake()
        if self._thread is not None:
            self._thread.join()

    def wait(self, timeout_s: float) -> None:
        """Returns when it has ended; TransportError when it has not after `timeout_s`, or the error that ended it."""
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                raise TransportError(f"cannot finish session {self.session_id} in {timeout_s} s: clients are missing or slow")
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            for number in range(1, self.plan.rounds + 1):
                if self._stop.is_set():
                    self.status = "stopped"
                    return
                if self._round(number).status == "no-clients":
                    self.status = "failed"
                    return
            self.status = "completed"
        except ScaleoutError as exc:
            self.status, self.error = "failed", exc

    def _round(self, number: int) -> RoundRecord:
        record = RoundRecord(number, str(uuid.uuid4()), self.session_id, self.model_id, time.monotonic())
        self.history.append(record)
        if not self._enough_clients():
            record.status = "no-clients"
        else:
            record.participants = self.board.connected()
            self._train(record)
            if record.new_model_id and self.plan.validate:
                self._validate(record)
        record.ended_at_s = time.monotonic()
        return record

    def _enough_clients(self) -> bool:
        def there() -> bool:
            return self._stop.is_set() or len(self.board.connected()) >= self.plan.min_clients

        return self.board.wait_until(there, self.plan.round_timeout_s) and not self._stop.is_set()

    def _train(self, record: RoundRecord) -> None:
        data = json.dumps({"client_settings": self.plan.client_settings})
        offers = self._offer_all(record, TRAIN, self.model_id, data)
        self._await_results(offers)
        record.train_timings = _timings(offers)
        correlation_ids = {offer.correlation_id for offer in offers}
        for update in self.board.counted(self.board.updates, correlation_ids):
            record.updates[update.client_id] = update
        for offer in offers:
            if offer.client_id not in record.updates:
                record.failed[offer.client_id] = _why(offer)
        self._aggregate(record)

    def _aggregate(self, record: RoundRecord) -> None:
        reference = self._arrays(self.model_id)
        usable: list[tuple[dict[str, FlatArray], int]] = []
        for client_id, update in record.updates.items():
            try:
                arrays = self._arrays(update.model_update_id)
                check_update(reference, arrays)
            except (FormatError, OutputError) as exc:
                record.refused[client_id] = str(exc)
                continue
            usable.append((arrays, update.num_examples))
        if not usable:
            record.status = "failed"
            return
        record.status = "completed" if len(usable) == len(record.participants) else "partial"
        record.new_model_id = keep_model(self.store, write_npz(fedavg(usable)), deflate=self.plan.deflate)
        self.model_id = record.new_model_id

    def _validate(self, record: RoundRecord) -> None:
        offers = self._offer_all(record, VALIDATE, record.new_model_id, "{}")
        self._await_results(offers)
        record.validate_timings = _timings(offers)
        correlation_ids = {offer.correlation_id for offer in offers}
        for validation in self.board.counted(self.board.validations, correlation_ids):
            record.validations[validation.client_id] = validation.metrics

    def _offer_all(self, record: RoundRecord, task_type: str, model_id: str, data: str) -> list[Offer]:
        return [
            self.board.offer(
                client_id,
                task_type,
                model_id,
                data=data,
                session_id=self.session_id,
                round_id=record.round_id,
            )
            for client_id in record.participants
        ]

    def _await_results(self, offers: list[Offer]) -> None:
        deadline_s = time.monotonic() + self.plan.round_timeout_s
        while not self._stop.is_set():
            # Before anything is looked at: a change after this line must end the wait below.
            changed = self._changed_since(offers)
            now_s = time.monotonic()
            waiting = [_settles_in(offer, now_s) for offer in offers]
            if not any(waiting) or now_s >= deadline_s:
                break
            # Woken by each change of the board, and at the latest when a grace or the round ends.
            pause_s = min(deadline_s - now_s, *(left for left in waiting if left))
            self.board.wait_until(changed, pause_s)
        for offer in offers:
            if not offer.done and offer.result_at_s is None:
                self.board.stop_task(offer.correlation_id, "TIMEOUT")

    def _changed_since(self, offers: list[Offer]) -> Callable[[], bool]:
        before = [(offer.result_at_s, offer.done_at_s) for offer in offers]
        return lambda: self._stop.is_set() or before != [(offer.result_at_s, offer.done_at_s) for offer in offers]

    def _arrays(self, model_id: str) -> dict[str, FlatArray]:
        return read_npz(read_container(self.store.read(model_id)).weights)


def keep_model(store: ModelStore, model: bytes, *, deflate: bool = False) -> str:
    """Stores `model` (a container, or raw weights that get one) and returns the id it was given."""
    container = read_container(model)
    model_id = str(uuid.uuid4()) if container.legacy else container.model_id
    if not container.legacy:
        store.put(model_id, model)
    else:
        store.put(model_id, write_container(model_id, container.weights, deflate=deflate))
    return model_id


def _settles_in(offer: Offer, now_s: float) -> float:
    """0 when there is nothing more to wait for, else seconds until that may change by itself (infinity = it will not)."""
    if offer.result_at_s is not None:
        return 0.0
    if offer.done_at_s is None:
        return float("inf")
    if offer.status != "COMPLETED":
        return 0.0
    return max(0.0, offer.done_at_s + RESULT_GRACE_S - now_s)


def _timings(offers: list[Offer]) -> dict[str, TaskTiming]:
    return {o.client_id: TaskTiming(o.handed_out_at_s, o.result_at_s, o.done_at_s) for o in offers}


def _why(offer: Offer) -> str:
    if offer.handed_out_at_s is None:
        return "never asked for"
    if not offer.done:
        return "timeout"
    return f"{offer.status} {offer.response}".strip()
