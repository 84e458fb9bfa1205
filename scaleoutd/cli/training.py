# SPDX-License-Identifier: Apache-2.0
"""Rounds of the development combiner as a person asks for them and sees them: who came, what each round gave, what failed."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scaleoutd.core.strictjson import MAX_SAFE_INTEGER
from scaleoutd.devcombiner.container import read_container
from scaleoutd.devcombiner.records import RoundRecord
from scaleoutd.devcombiner.server import DevCombiner
from scaleoutd.durable import replace_file, storage_errors
from scaleoutd.errors import ConfigError, TransportError

LOOK_S = 3600.0  # the board wakes whoever waits at each change; this is only an upper bound
TOLD_METRICS = 4


@dataclass(frozen=True)
class Order:
    """What is asked for: `seed` a file or "" to go on from the last model; `timeout_s` for one half of a round."""

    rounds: int
    nodes: int
    seed: str
    settings: Mapping[str, Any]
    timeout_s: float
    out: str = ""

    @classmethod
    def of(cls, asked: Mapping[str, Any]) -> Order:
        """KeyError or TypeError when a field is missing or unknown."""
        return cls(**asked)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Training:
    """One order after the other; `last_model` is where the next one goes on."""

    def __init__(self, combiner: DevCombiner) -> None:
        self._combiner = combiner
        self._turn = threading.Lock()
        self.last_model = ""

    def rounds(self, order: Order) -> Iterator[tuple[str, bool]]:
        """A line for each round when it is over; False with one that brought no new model."""
        with self._turn:
            seed = self._seed(order)
            board, before = self._combiner.board, len(self._combiner.history)
            if len(board.connected()) < order.nodes:
                yield f"waiting for {_counted(order.nodes, 'node')}, {len(board.connected())} connected", True
            if not board.wait_until(lambda: len(board.connected()) >= order.nodes, order.timeout_s):
                raise TransportError(
                    f"cannot start the round: expected {_counted(order.nodes, 'node')}, found {len(board.connected())} connected"
                    f" after {order.timeout_s:.0f} s",
                    hint="Start one with the command that the combiner printed, or ask for fewer with --nodes.",
                )
            session = self._combiner.start_session(
                seed, order.rounds, order.nodes, order.timeout_s, client_settings=dict(order.settings)
            )
            for number in range(order.rounds):
                record = self._round(before + number, order, lambda: session.status != "running")
                if record is None:
                    break
                self.last_model = record.new_model_id or self.last_model
                yield self._told(before + number + 1, record), bool(record.new_model_id)
            self._combiner.wait_session(2 * order.timeout_s)

    def write_model(self, path: Path) -> str:
        """The last model's weights, as an npz file that numpy reads; what to say about it."""
        weights = read_container(self._combiner.store.read(self.last_model)).weights
        with storage_errors(f"write {path}"):
            replace_file(path, weights)
        return f"wrote the trained model to {path.name} ({len(weights)} bytes)"

    def _seed(self, order: Order) -> bytes:
        if order.seed:
            with storage_errors(f"read the model {order.seed}"):
                return Path(order.seed).read_bytes()
        if not self.last_model:
            raise ConfigError(
                "cannot start the first round: no model to begin with is named",
                code="config-missing",
                hint="Name the project with --project DIR, or a model with --seed FILE.",
            )
        return self._combiner.store.read(self.last_model)

    def _round(self, index: int, order: Order, session_is_over: Callable[[], bool]) -> RoundRecord | None:
        history = self._combiner.history

        def is_over() -> bool:
            return len(history) > index and history[index].ended_at_s > 0

        # A round's end itself does not wake the board; what came last did, a moment before.
        while not is_over():
            if session_is_over():
                return history[index] if is_over() else None
            self._combiner.board.wait_until(is_over, 0.2)
        return history[index]

    def _told(self, number: int, record: RoundRecord) -> str:
        names = {client.client_id: client.name for client in self._combiner.board.clients.values()}
        missing = [f"{names.get(client, client)}: {failure_in_words(why)}" for client, why in record.failed.items()]
        missing += [f"{names.get(client, client)}: {why}" for client, why in record.refused.items()]
        if not record.new_model_id:
            return f"round {number} failed, no new model: " + "; ".join(missing or [record.status])
        examples = sum(update.num_examples for update in record.updates.values())
        means = metrics_in_words(list(record.validations.values()))
        parts = [
            f"{_counted(len(record.updates), 'update')} from {examples} examples",
            *means,
        ]
        return f"round {number}: {', '.join(parts)}" + (f"; without {'; '.join(missing)}" if missing else "")


def watch(combiner: DevCombiner, say: Callable[[str], None], ended: threading.Event) -> None:
    """Tells who comes and who goes, until `ended`."""
    board = combiner.board
    known: set[str] = set()
    while not ended.is_set():
        board.wait_until(lambda before=known: set(board.connected()) != before or ended.is_set(), LOOK_S)  # type: ignore[misc]
        now = set(board.connected())
        for client in sorted(now ^ known):
            say(f"node {board.clients[client].name} {'is connected' if client in now else 'has left'}")
        known = now


def failure_in_words(told: str) -> str:
    """What a node reported: `FAILED {"code": …, "message": …}` as words and code."""
    status, _, detail = told.partition(" ")
    try:
        found = json.loads(detail)
        return f"{found['message']} [{found['code']}]" if found.get("message") else f"{status.lower()} [{found['code']}]"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return told


def metrics_in_words(validations: Sequence[Any]) -> list[str]:
    """The mean of each number that the nodes' validations agree on."""
    found = [metrics for metrics in validations if isinstance(metrics, dict)]
    if not found:
        return []
    shared = [key for key in found[0] if all(_is_number(metrics.get(key)) for metrics in found)]
    means = {key: sum(metrics[key] for metrics in found) / len(found) for key in shared[:TOLD_METRICS]}
    return [f"{key} {value:.4f}" for key, value in means.items()]


def _is_number(value: Any) -> bool:
    """An integer of a node's may be too large for any float."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) <= MAX_SAFE_INTEGER)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
