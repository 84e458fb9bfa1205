# SPDX-License-Identifier: Apache-2.0
"""Turns requests into durable events: stamps them, links them, writes them with one barrier, signs checkpoints over them.

Rules:
  1. Nothing changes in memory before the lines are durable; a failed write leaves the recorder as it was.
  2. A request is answered after its lines are durable, a `release` after a signed checkpoint over it is, too.
  3. A known (room, event id) is answered with its old sequence, also across a restart.
  4. A request with a wrong event is refused as a whole, and the refusal is an event.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scaleoutd import __version__
from scaleoutd.core import catalogue, event
from scaleoutd.core.chain import Tip
from scaleoutd.core.checkpoint import Checkpoint
from scaleoutd.core.clock import Now
from scaleoutd.errors import FormatError, LedgerError, ScaleoutError, StorageError
from scaleoutd.ipc import messages
from scaleoutd.ipc.messages import Entry, Recorded
from scaleoutd.ledger.checkpoints import CheckpointFile, Resume, write_resume
from scaleoutd.ledger.config import LedgerConfig
from scaleoutd.ledger.floors import Floors
from scaleoutd.ledger.journal import Journal
from scaleoutd.ledger.opening import Standing, restore
from scaleoutd.ledger.signer import Signer

LOG = logging.getLogger("scaleoutd.ledger")

Clock = Callable[[], Now]
MAX_REASON_CHARS = 200
LOWER_FLOOR = "lower-clock-floor"
PAUSE_MS = 1000  # between attempts at what failed and nobody waits for


@dataclass(frozen=True)
class Request:
    """An Append with who sent it, as the connection says."""

    room: str
    uid: int
    entries: Sequence[Entry]


@dataclass(frozen=True)
class _Draft:
    """An event that is to be written."""

    type: str
    body: Mapping[str, Any]
    room: str
    uid: int
    event_id: str


class Recorder:
    """The ledger without its sockets.  One at a time may have the folder open (service.py holds the lock)."""

    def __init__(self, config: LedgerConfig, clock: Clock, own_uid: int) -> None:
        self._config, self._clock, self._own_uid = config, clock, own_uid
        folder = config.folder
        new = not any(folder.glob("keys/*.vkey")) and not any(folder.glob("*.jsonl"))
        self._signer = Signer.create(folder, config.algorithm) if new else Signer.open(folder)
        self._journal = Journal(folder)
        self._checkpoints = CheckpointFile(folder)
        standing = restore(self._journal, self._checkpoints, folder, self._signer.origin)
        self._tree, self._tip, self._ids = standing.tree, standing.tip, standing.ids
        self.floors: Floors = standing.floors
        self._last_type = standing.last_type
        self._segment_first = standing.segment_first
        self._event_at_ms = self._checkpoint_at_ms = clock().monotonic_ms
        self._pause_until_ms = 0
        self.trouble = ""  # why the last write was none
        self._begin(standing)

    @property
    def size(self) -> int:
        return self._tree.size

    @property
    def signed(self) -> int:
        """Events under the last checkpoint."""
        return self._checkpoints.size

    @property
    def _closing(self) -> bool:
        """The certificate of the next key is the last event of a segment: nothing more may go into it."""
        return self._last_type == "epoch-key-made" and self._tree.size > 1

    @property
    def failed(self) -> bool:
        """The disk cannot be trusted any more: the process must end and read again."""
        return self._journal.failed or self._checkpoints.failed

    def commit(self, requests: Sequence[Request]) -> list[Recorded | ScaleoutError]:
        """Answers in the order of `requests`; never raises for a request's or the disk's sake."""
        answers: list[Recorded | ScaleoutError | None] = [None] * len(requests)
        drafts: list[_Draft] = []
        wanted: list[list[tuple[str, str]]] = []
        for index, request in enumerate(requests):
            wanted.append([(request.room, entry.event_id) for entry in request.entries])
            try:
                drafts += self._drafts(request)
            except FormatError as exc:
                answers[index] = exc
                drafts.append(self._refusal(request, exc))
        failure = self._write(drafts)
        if failure is not None:
            self._pause_until_ms = self._clock().monotonic_ms + PAUSE_MS
        if drafts:
            self.trouble = failure.message if failure is not None else ""
        now_ms = self._clock().wall_ms
        for index, request in enumerate(requests):
            if answers[index] is None:
                answers[index] = self._answer(request, wanted[index], failure, now_ms)
        return [answer if answer is not None else LedgerError("cannot record: no answer") for answer in answers]

    def settle(self) -> None:
        """After the answers: a due checkpoint, a full segment, a heartbeat.  Failures are logged and tried again."""
        now_ms = self._clock().monotonic_ms
        if now_ms < self._pause_until_ms:
            return
        try:
            # After a write that failed an event of its own shows whether the disk takes one again, though nobody asks.
            if self.trouble or now_ms - self._event_at_ms >= self._config.heartbeat_s * 1000:
                self._own([("ledger-alive", {})])
            unsigned = self._tree.size - self._checkpoints.size
            overdue = now_ms - self._checkpoint_at_ms >= self._config.checkpoint_s * 1000
            if unsigned >= self._config.checkpoint_events or (unsigned and overdue):
                self._checkpoint()
            if self._journal.size_bytes >= self._config.segment_bytes:
                self._rotate()
            self.trouble = ""
        except StorageError as exc:
            if self.trouble != exc.message:  # said once, not with each attempt
                LOG.error("%s", exc, extra={"code": exc.code})
            self.trouble = exc.message
            self._pause_until_ms = now_ms + PAUSE_MS

    def idle_s(self) -> float:
        """Seconds until `settle` has something to do without a request."""
        now_ms = self._clock().monotonic_ms
        waits = [self._event_at_ms + self._config.heartbeat_s * 1000 - now_ms]
        if self.trouble:
            waits.append(0)
        if self._tree.size > self._checkpoints.size:
            waits.append(self._checkpoint_at_ms + self._config.checkpoint_s * 1000 - now_ms)
        return max(0.05, min(waits) / 1000, (self._pause_until_ms - now_ms) / 1000)

    def answer_floors(self) -> messages.Floors:
        return messages.Floors(
            self.floors.time_ms, self.floors.root_version, dict(self.floors.manifest_versions), self.floors.root_sha256
        )

    def close(self, reason: str) -> None:
        """Orderly end: `ledger-stopped` under a checkpoint."""
        try:
            if not self.failed:
                self._own([("ledger-stopped", {"reason": reason})])
                self._checkpoint()
        finally:
            self._journal.close()
            self._checkpoints.close()

    # --- start --------------------------------------------------------------------------------------------------

    def _begin(self, standing: Standing) -> None:
        found = self._tree.size
        following = self._signer.next
        if following is not None and standing.epoch_key != following.public.encode():
            self._signer.withdraw()
        if self._tree.size == 0:
            self._own([("epoch-key-made", {"epoch": 1, "key": self._signer.current.public.encode()})])
        if self._closing:
            self._rotate()
        torn = [torn for torn in (self._journal.torn, self._checkpoints.torn) if torn is not None]
        started: dict[str, Any] = {
            "size": found,
            "version": __version__,
            "clean": not torn and standing.last_type in ("", "ledger-stopped"),
            "checkpoint_size": self._checkpoints.size,
            "epoch": self._signer.current.epoch,
            "key": self._signer.current.public.encode(),
            "clock_synchronised": self._clock().synchronised,
        }
        cut = [("tail-cut", {"file": item.file, "torn_bytes": item.size_bytes, "sha256": item.sha256}) for item in torn]
        self._own([*cut, ("ledger-started", started)])
        self._checkpoint()

    # --- requests -----------------------------------------------------------------------------------------------

    def _drafts(self, request: Request) -> list[_Draft]:
        drafts = []
        for entry in request.entries:
            if (request.room, entry.event_id) in self._ids:
                continue
            body = catalogue.normalise(entry.type, entry.body, request.room)
            drafts.append(_Draft(entry.type, body, request.room, request.uid, entry.event_id))
            if entry.type == "operator-command" and body["command"] == LOWER_FLOOR and request.room == "cli":
                drafts.append(self._lowered(str(body.get("reason", ""))))
        return drafts

    def _refusal(self, request: Request, error: FormatError) -> _Draft:
        wrong = next((entry for entry in request.entries if _is_wrong(entry, request.room)), request.entries[0])
        body = {
            "room": request.room,
            "type": wrong.type,
            "reason": error.message[:MAX_REASON_CHARS],
            "peer_uid": request.uid,
        }
        return self._draft("event-refused", body)

    def _answer(
        self, request: Request, wanted: Iterable[tuple[str, str]], failure: StorageError | None, now_ms: int
    ) -> Recorded | ScaleoutError:
        sequences = [self._ids.get(key) for key in wanted]
        known = tuple(sequence for sequence in sequences if sequence is not None)
        if len(known) < len(sequences):
            cause = failure.message if failure is not None else "it was not written"
            return LedgerError(f"cannot record: {cause}", hint="Nothing runs and nothing leaves without a record.")
        releases = [seq for seq, entry in zip(known, request.entries, strict=True) if entry.type == "release"]
        if releases and max(releases) >= self._checkpoints.size:
            try:
                self._checkpoint()
            except StorageError as exc:
                self.trouble = exc.message
                return LedgerError(f"cannot sign a checkpoint over a release: {exc.message}", hint=exc.hint)
        return Recorded(known, now_ms)

    # --- writing ------------------------------------------------------------------------------------------------

    def _draft(self, type_: str, body: Mapping[str, Any]) -> _Draft:
        return _Draft(type_, body, "ledger", self._own_uid, secrets.token_hex(16))

    def _own(self, events: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """Records the ledger's own events; StorageError when they are not durable."""
        failure = self._write([self._draft(type_, body) for type_, body in events])
        if failure is not None:
            raise failure

    def _lowered(self, reason: str) -> _Draft:
        now_ms = min(self._clock().wall_ms, self.floors.time_ms)
        return self._draft("clock-floor-lowered", {"from_ms": self.floors.time_ms, "to_ms": now_ms, "reason": reason})

    def _write(self, drafts: Sequence[_Draft]) -> StorageError | None:
        """Makes `drafts` durable with one barrier; returns why not."""
        if not drafts:
            return None
        now = self._clock()
        if self._closing:
            try:
                self._rotate()
            except StorageError as exc:
                return exc
        drafts = [*self._clock_events(now), *drafts]
        lines: list[bytes] = []
        written: list[tuple[_Draft, int]] = []
        seen: set[tuple[str, str]] = set()
        tip = self._tip
        for draft in drafts:
            key = (draft.room, draft.event_id)
            if key in seen:
                continue  # two connections retry the same id in one round
            seen.add(key)
            line, tip = self._line(draft, self._tree.size + len(lines), now.wall_ms, tip)
            written.append((draft, self._tree.size + len(lines)))
            lines.append(line)
        try:
            self._journal.append(lines)
        except StorageError as exc:
            return exc
        for line, (draft, sequence) in zip(lines, written, strict=True):
            self._tree.append(line)
            self._ids[draft.room, draft.event_id] = sequence
            self.floors.apply(draft.type, draft.body, now.wall_ms)
        self._tip = tip
        self._last_type = written[-1][0].type
        self._event_at_ms = now.monotonic_ms
        return None

    def _line(self, draft: _Draft, sequence: int, time_ms: int, previous: Tip | None) -> tuple[bytes, Tip]:
        stamp = event.Stamp(
            sequence,
            time_ms,
            draft.room,
            draft.uid,
            draft.event_id,
            self._signer.origin,
            previous,
            self._config.host,
            __version__,
        )
        return event.build(draft.type, draft.body, stamp)

    def _clock_events(self, now: Now) -> list[_Draft]:
        if self.floors.is_set_back(now.wall_ms):
            return [self._draft("clock-set-back", {"from_ms": self.floors.reference_ms, "to_ms": now.wall_ms})]
        if self.floors.is_jump(now.wall_ms) and (now.synchronised or not self.floors.is_jump(self.floors.reference_ms)):
            body = {"from_ms": self.floors.time_ms, "to_ms": now.wall_ms, "clock_synchronised": now.synchronised}
            return [self._draft("clock-jumped", body)]
        return []

    def _checkpoint(self) -> None:
        """Signs what is there, if that is more than the last checkpoint has."""
        if self._tree.size > self._checkpoints.size:
            self._checkpoints.append(self._signer.sign(Checkpoint(self._signer.origin, self._tree.size, self._tree.root())))
        self._checkpoint_at_ms = self._clock().monotonic_ms

    def _rotate(self) -> None:
        """Closes the segment and its epoch, begins the next; each step can be taken up again after a crash."""
        if not self._closing:
            closed = {
                "segment": self._journal.path.name,
                "events": self._tree.size - self._segment_first + 2,
                "first_sequence": self._segment_first,
                "size_bytes": self._journal.size_bytes,
            }
            self._own([("segment-closed", closed), ("epoch-key-made", self._signer.prepare())])
        self._checkpoint()
        self._signer.complete()
        resume = Resume(
            segment=self._journal.number + (0 if self._journal.size_bytes == 0 else 1),
            size=self._tree.size,
            frontier=tuple(digest.hex() for digest in self._tree.frontier),
            epoch=self._signer.current.epoch,
            reference_ms=self.floors.reference_ms,
            tip_uid=self._tip.uid if self._tip else None,
            tip_fingerprint=self._tip.fingerprint if self._tip else None,
            time_ms=self.floors.time_ms,
            root_version=self.floors.root_version,
            manifest_versions=dict(self.floors.manifest_versions),
            root_sha256=self.floors.root_sha256 or None,
        )
        if self._journal.size_bytes:
            self._journal.next_segment()
        recent = self._segment_first
        self._segment_first = self._tree.size
        self._ids = {key: sequence for key, sequence in self._ids.items() if sequence >= recent}
        self._last_type = ""
        self._own([("floors-noted", body) for body in self.floors.notes(self._signer.current.epoch)])
        write_resume(self._config.folder, resume)


def _is_wrong(entry: Entry, room: str) -> bool:
    try:
        catalogue.normalise(entry.type, entry.body, room)
    except FormatError:
        return True
    return False
