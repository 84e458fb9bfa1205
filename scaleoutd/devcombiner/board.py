# SPDX-License-Identifier: Apache-2.0
"""The combiner's memory: who is there, what was offered, what came back.  One lock, one condition.

Rules: a correlation id counts once, whatever arrives again; a task is handed out once; everything that arrives is kept
for the test that asks.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from scaleoutd.devcombiner.records import STOPPING, ClientSession, Offer, RestCall, UpdateRecord, ValidationRecord
from scaleoutd.errors import FormatError
from scaleoutd.proto import edge_pb2 as edge

Record = TypeVar("Record", UpdateRecord, ValidationRecord)


class Board:
    """Thread safe; the lists may be read at any time and are only ever appended to."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.clients: dict[str, ClientSession] = {}
        self.offers: dict[str, Offer] = {}
        self.updates: list[UpdateRecord] = []
        self.validations: list[ValidationRecord] = []
        self.reports: list[edge.ActivityReport] = []
        self.statuses: list[edge.Status] = []
        self.metrics: list[edge.ModelMetric] = []
        self.records: list[Any] = []  # telemetry, attributes, inference results, backlog: as they came
        self.rest_calls: list[RestCall] = []
        self.tls_failures: list[str] = []

    def wait_until(self, predicate: Callable[[], bool], timeout_s: float) -> bool:
        """True as soon as `predicate` holds (asked under the lock after each change), False after `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(predicate, timeout_s)

    def wake(self) -> None:
        """Lets everyone who waits look again."""
        with self._changed:
            self._changed.notify_all()

    def append(self, kept: list[Any], item: Any) -> None:
        """Adds to one of the lists above and wakes who waits for it."""
        with self._changed:
            kept.append(item)
            self._changed.notify_all()

    def see_client(self, client_id: str, name: str, subject: str, fingerprint: str) -> ClientSession:
        """Any call of this client."""
        with self._changed:
            client = self.clients.setdefault(client_id, ClientSession(client_id, name))
            client.name, client.last_seen_at_s = name, time.monotonic()
            client.certificate_subject, client.certificate_fingerprint = subject, fingerprint
            self._changed.notify_all()
            return client

    def announce(self, client_id: str, kind: str) -> None:
        """Connect, Disconnect or VersionCheck."""
        with self._changed:
            client = self.clients[client_id]
            client.announced.append(kind)
            if kind in ("Connect", "Disconnect"):
                client.connected = kind == "Connect"
            self._changed.notify_all()

    def heartbeat(self, client_id: str) -> None:
        """One more sign of life."""
        with self._changed:
            self.clients[client_id].heartbeats += 1
            self._changed.notify_all()

    def connected(self) -> list[str]:
        """Ids of the clients that are there, in the order of their first call."""
        with self._changed:
            return [client.client_id for client in self.clients.values() if client.connected]

    def offer(
        self,
        client_id: str,
        task_type: str,
        model_id: str,
        *,
        data: str,
        session_id: str = "",
        round_id: str = "",
        correlation_id: str = "",
    ) -> Offer:
        """A task for the client's next poll.  A known correlation id is handed out once more and stays one task."""
        with self._changed:
            if correlation_id in self.offers:
                self.offers[correlation_id].handed_out_at_s = None
                self._changed.notify_all()
                return self.offers[correlation_id]
            offer = Offer(
                correlation_id=correlation_id or str(uuid.uuid4()),
                client_id=client_id,
                type=task_type,
                model_id=model_id,
                session_id=session_id,
                round_id=round_id,
                data=data,
                offered_at_s=time.monotonic(),
            )
            self.offers[offer.correlation_id] = offer
            self._changed.notify_all()
            return offer

    def stop_task(self, correlation_id: str, status: str) -> None:
        """Every poll of its client says `status` (INTERRUPTED or TIMEOUT) until the client reports it done."""
        if status not in STOPPING:
            raise FormatError(f"cannot stop a task: its status must be one of {STOPPING}, found {status!r}")
        with self._changed:
            self.offers[correlation_id].stop_status = status
            self._changed.notify_all()

    def hand_out(self, client_id: str) -> list[Offer]:
        """What the client has not been given yet; it counts as given now."""
        with self._changed:
            fresh = [o for o in self.offers.values() if o.client_id == client_id and o.handed_out_at_s is None]
            for offer in fresh:
                offer.handed_out_at_s = time.monotonic()
            if fresh:
                self._changed.notify_all()
            return fresh

    def has_fresh(self, client_id: str) -> bool:
        """Something waits to be handed out to this client."""
        with self._changed:
            return any(o.client_id == client_id and o.handed_out_at_s is None for o in self.offers.values())

    def to_stop(self, client_id: str) -> list[Offer]:
        """Tasks of this client that shall stop and have not."""
        with self._changed:
            return [
                offer
                for offer in self.offers.values()
                if offer.client_id == client_id and offer.stop_status and offer.handed_out_at_s and not offer.done
            ]

    def report(self, client_id: str, report: edge.ActivityReport) -> None:
        """One report; of a task that this client does not have it is only kept."""
        with self._changed:
            self.reports.append(report)
            offer = self.offers.get(report.correlation_id)
            if offer is not None and offer.client_id == client_id and not offer.done:
                offer.status, offer.response = report.status, report.response
                if report.done:
                    offer.done_at_s = time.monotonic()
            self._changed.notify_all()

    def polled(self, client_id: str) -> None:
        """One more poll of this client, after its reports were taken."""
        with self._changed:
            self.clients[client_id].polls += 1
            self._changed.notify_all()

    def add_update(self, message: edge.ModelUpdate, num_examples: int, meta: dict[str, Any], at_s: float) -> UpdateRecord:
        """Keeps an update; it counts when it is the first of its correlation id."""
        with self._changed:
            record = UpdateRecord(
                client_id=message.client_id,
                correlation_id=message.correlation_id,
                model_id=message.model_id,
                model_update_id=message.model_update_id,
                round_id=message.round_id,
                session_id=message.session_id,
                num_examples=num_examples,
                meta=meta,
                arrived_at_s=at_s,
                counted=self._counts(message.correlation_id, at_s),
            )
            self.updates.append(record)
            self._changed.notify_all()
            return record

    def add_validation(self, message: edge.ModelValidation, metrics: Any, at_s: float) -> ValidationRecord:
        """Keeps a validation; it counts when it is the first of its correlation id."""
        with self._changed:
            record = ValidationRecord(
                client_id=message.client_id,
                correlation_id=message.correlation_id,
                model_id=message.model_id,
                session_id=message.session_id,
                metrics=metrics,
                arrived_at_s=at_s,
                counted=self._counts(message.correlation_id, at_s),
            )
            self.validations.append(record)
            self._changed.notify_all()
            return record

    def counted(self, records: list[Record], correlation_ids: Collection[str]) -> list[Record]:
        """Those of these tasks that count.  Under the lock: an offer shows its result a moment before the list has it."""
        with self._changed:
            return [record for record in records if record.counted and record.correlation_id in correlation_ids]

    def _counts(self, correlation_id: str, at_s: float) -> bool:
        """Whether this is the first result of its task, which it is from now on."""
        offer = self.offers[correlation_id]
        if offer.result_at_s is not None:
            return False
        offer.result_at_s = at_s
        return True

    def duplicates(self) -> list[UpdateRecord]:
        """Updates that came again under a correlation id that had counted."""
        with self._changed:
            return [update for update in self.updates if not update.counted]
