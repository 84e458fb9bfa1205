# SPDX-License-Identifier: Apache-2.0
"""The verifier of a trail: lines, checkpoints and public keys in, a verdict out.  Pure, so it works on any copy, offline.

What a verdict proves: the events are exactly those that were recorded, up to the last checkpoint, if somebody else has seen
that checkpoint or its key (DESIGN.md section 5).  Faults are named with the sequence (0-based) of the first event that is wrong:

    edit               an event's bytes do not fit its own fingerprint, or the next event remembers another fingerprint
    insert             an event too many: a copy, or one that nobody after it knows
    delete             events are missing
    reorder            events stand in another order than they were recorded in
    splice             an event or a checkpoint of another trail
    truncate           a signed checkpoint knows more events than there are
    rewrite            the chain fits but not the signed root: history was made again; no sequence below it is wrong
    time-back          the clock went back by more than five minutes and the ledger did not say so
    forged-checkpoint  a checkpoint that does not parse, or whose signature is false
    wrong-key          a checkpoint or epoch key that the trusted key does not vouch for
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from scaleoutd.core import chain, event, strictjson
from scaleoutd.core.checkpoint import Checkpoint, Note, VerifierKey, parse_checkpoint, parse_key, parse_note
from scaleoutd.core.clock import MAX_SET_BACK_MS, utc_text
from scaleoutd.core.merkle import Tree
from scaleoutd.core.strictjson import Json
from scaleoutd.errors import FormatError

FaultKind = Literal[
    "edit", "insert", "delete", "reorder", "splice", "truncate", "rewrite", "time-back", "forged-checkpoint", "wrong-key"
]


# Types of events that change how what follows is judged.
ALONE = frozenset({"epoch-key-made", "clock-set-back"})
LEAF_BYTES = 32


@dataclass(frozen=True)
class Fault:
    """The first thing that is wrong.  `sequence` is that of an event; for checkpoints the size they speak of."""

    kind: FaultKind
    sequence: int
    message: str


@dataclass(frozen=True)
class Verdict:
    """`signed_size` events are under a signature that verifies; the rest only under the chain."""

    fault: Fault | None
    size: int
    signed_size: int
    checkpoints: int
    epochs: int
    origin: str
    root: str
    last_time_ms: int

    @property
    def ok(self) -> bool:
        return self.fault is None


@dataclass(frozen=True)
class Line:
    """What the verifier needs of a line."""

    value: dict[str, Any]
    sequence: int
    time_ms: int
    chain_uid: str
    previous: chain.Tip | None
    tip: chain.Tip

    @property
    def type(self) -> str:
        return str(self.value["metadata"].get("event_code", ""))


@dataclass(frozen=True)
class Batch:
    """Lines that fit each other (trailbatch.py).  `leaves` are their leaf hashes, one after the other."""

    chain_uid: str
    sequence: int  # of the first
    previous: chain.Tip | None  # what the first remembers
    tip: chain.Tip  # after the last
    earliest_ms: int
    latest_ms: int
    leaves: bytes

    def __len__(self) -> int:
        return len(self.leaves) // LEAF_BYTES


class _FaultFound(Exception):
    def __init__(self, kind: FaultKind, sequence: int, message: str) -> None:
        self.fault = Fault(kind, sequence, message)
        super().__init__(message)


def certificate_text(origin: str, epoch: int, key: str) -> bytes:
    """What the key of epoch N signs to certify that of epoch N + 1."""
    return f"scaleoutd epoch key v1\n{origin}\n{epoch}\n{key}\n".encode()


def verify(
    lines: Iterable[bytes], notes: Sequence[bytes], trusted: Sequence[VerifierKey] = (), known: Sequence[VerifierKey] = ()
) -> Verdict:
    """Walks the trail once.

    `lines` are all lines of all segments in order; `notes` the checkpoints, those of witnesses included; `trusted` the keys
    that came another way (none: the first key of the trail is believed); `known` further keys that lie beside the trail.
    """
    walk = Walk(notes, trusted, known)

    def steps() -> None:
        rest = iter(lines)
        for line in rest:
            walk.step(line, rest)

    return walk.judge(steps)


def read_line(line: bytes) -> Line | None:
    """A line with its fingerprint checked and in canonical form; None when anything about its bytes is wrong."""
    try:
        if len(line) > event.MAX_LINE_BYTES:
            return None
        value = _value_of(line)
        seal = chain.unseal(line)
        if seal is None or seal[0] != seal[1]:
            return None
        metadata, (proof,) = value["metadata"], value["attestation_list"]
        previous = proof.get("prev_event")
        if previous is not None:
            previous = chain.Tip(previous["uid"], previous["fingerprint"]["value"])
        sequence, time_ms, uid, chain_uid = metadata["sequence"], value["time"], metadata["uid"], proof["chain_uid"]
        if type(sequence) is not int or type(time_ms) is not int or type(uid) is not str or type(chain_uid) is not str:
            return None
        unmapped = value["unmapped"]
        if type(unmapped["event"]) is not dict or type(unmapped["room"]) is not str:
            return None
        return Line(value, sequence, time_ms, chain_uid, previous, chain.Tip(uid, seal[0]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, FormatError):
        return None


class Walk:
    """The state of a verification: chain, tree, epoch key, checkpoints still ahead."""

    def __init__(self, notes: Sequence[bytes], trusted: Sequence[VerifierKey], known: Sequence[VerifierKey]) -> None:
        self._raw_notes = notes
        self._trusted = list(trusted)
        self._known = [*trusted, *known]
        self._trust_shown = not trusted
        self.tree = Tree()
        self.tip: chain.Tip | None = None
        self.origin = ""
        self.keys: list[VerifierKey] = []  # by epoch, the last is in force
        self._key_since = 0  # sequence of the last epoch-key-made
        self._latest_ms = 0
        self.signed_size = 0
        self.checkpoints = 0
        self._points: dict[int, list[tuple[Note, Checkpoint]]] = {}

    def judge(self, steps: Callable[[], object]) -> Verdict:
        """The verdict on a trail that `steps` takes through `step` and `take`, from its first line to its last."""
        try:
            self._read_notes()
            steps()
            self._end()
        except _FaultFound as found:
            return self._verdict(found.fault)
        return self._verdict(None)

    def _verdict(self, fault: Fault | None) -> Verdict:
        return Verdict(
            fault,
            self.tree.size,
            self.signed_size,
            self.checkpoints,
            len(self.keys),
            self.origin,
            self.tree.root().hex(),
            self._latest_ms,
        )

    def _read_notes(self) -> None:
        for data in self._raw_notes:
            try:
                note = parse_note(data)
                point = parse_checkpoint(note.text)
            except FormatError as exc:
                raise _FaultFound("forged-checkpoint", self.tree.size, exc.message) from exc
            self._points.setdefault(point.size, []).append((note, point))

    def step(self, line: bytes, rest: Iterator[bytes]) -> None:
        """Takes the next line; `rest` is read only to name a fault."""
        found = read_line(line)
        expected = self.tree.size
        if found is None:
            raise _FaultFound("edit", expected, "its bytes do not fit its fingerprint or are not in canonical form")
        if not self.origin:
            self.origin = found.chain_uid
        if found.chain_uid != self.origin:
            raise _FaultFound("splice", expected, f"it belongs to trail {found.chain_uid[:64]}, not to {self.origin[:64]}")
        if found.sequence != expected or found.previous != self.tip:
            raise self._misplaced(found, rest)
        self._check_time(found)
        self.tree.append(line)
        self.tip = found.tip
        if found.type == "epoch-key-made":
            self._take_key(found)
        if self.tree.size in self._points:
            self._check_points(self._points.pop(self.tree.size))

    def take(self, batch: Batch) -> bool:
        """Takes lines that were read elsewhere; False, and nothing is taken, when they do not fit as a whole."""
        if (batch.chain_uid, batch.sequence, batch.previous) != (self.origin, self.tree.size, self.tip):
            return False
        if batch.earliest_ms < self._latest_ms - MAX_SET_BACK_MS:
            return False
        for start in range(0, len(batch.leaves), LEAF_BYTES):
            self.tree.append_hash(batch.leaves[start : start + LEAF_BYTES])
            if self.tree.size in self._points:
                self._check_points(self._points.pop(self.tree.size))
        self.tip, self._latest_ms = batch.tip, max(self._latest_ms, batch.latest_ms)
        return True

    def _end(self) -> None:
        """After the last line: what the checkpoints that are left say."""
        for size in sorted(self._points):
            for note, point in self._points[size]:
                if size == 0:
                    continue
                if not any(key.signed(note) for key in (*self.keys, *self._known)):
                    raise _FaultFound("forged-checkpoint", size, f"nobody known signed the checkpoint of size {size}")
                if point.origin != self.origin and self.origin:
                    raise _FaultFound("splice", size, f"a checkpoint of trail {point.origin} lies with this one")
                raise _FaultFound(
                    "truncate", self.tree.size, f"a signed checkpoint knows {size} events, there are {self.tree.size}"
                )
        if not self._trust_shown:
            raise _FaultFound("wrong-key", 0, "no checkpoint is signed by the trusted key, nor by one that it certified")

    # --- parts --------------------------------------------------------------------------------------------------

    def _misplaced(self, found: Line, rest: Iterator[bytes]) -> _FaultFound:
        expected = self.tree.size
        later = [line for line in map(read_line, rest) if line is not None and line.chain_uid == self.origin]
        if found.sequence > expected:
            if any(line.sequence == expected for line in later):
                return _FaultFound("reorder", expected, f"event {found.sequence} stands in its place")
            return _FaultFound("delete", expected, f"events {expected} to {found.sequence - 1} are missing")
        if found.sequence == expected - 1 and found.tip != self.tip and any(line.previous == found.tip for line in later):
            return _FaultFound("insert", expected - 1, "a second event has this number, and the next one remembers that one")
        if found.sequence < expected:
            return _FaultFound("insert", expected, f"a copy of event {found.sequence} stands after event {expected - 1}")
        if any(line.sequence == expected and line.previous == self.tip for line in later):
            return _FaultFound("insert", expected, "a second event has this number, and it is the one that fits")
        if expected == 0:
            return _FaultFound("delete", 0, "the first event names one before it")
        # The line fits itself but not its predecessor: the predecessor was changed and sealed again.
        return _FaultFound("edit", expected - 1, "the next event remembers another fingerprint of it")

    def _check_time(self, found: Line) -> None:
        if found.type == "clock-set-back":
            self._latest_ms = found.time_ms
        elif found.time_ms < self._latest_ms - MAX_SET_BACK_MS:
            raise _FaultFound(
                "time-back", found.sequence, f"it says {utc_text(found.time_ms)}, after {utc_text(self._latest_ms)} was on record"
            )
        self._latest_ms = max(self._latest_ms, found.time_ms)

    def _take_key(self, found: Line) -> None:
        unmapped = found.value["unmapped"]
        body = unmapped["event"]
        try:
            if type(body["key"]) is not str or type(body["epoch"]) is not int:
                raise ValueError("it is no text, or its epoch is no number")
            key = parse_key(body["key"])
            if unmapped["room"] != "ledger" or key.name != self.origin or body["epoch"] != len(self.keys) + 1:
                raise ValueError("it is not the key of the next epoch of this trail")
            if self.keys:
                text = certificate_text(self.origin, body["epoch"], body["key"])
                if not self.keys[-1].verify(text, base64.b64decode(body["certificate"], validate=True)):
                    raise ValueError("the key before did not certify it")
        except (FormatError, KeyError, TypeError, ValueError, binascii.Error) as exc:
            raise _FaultFound("wrong-key", found.sequence, f"an epoch key is not to be trusted: {exc}") from exc
        self.keys.append(key)
        self._key_since = found.sequence

    def _check_points(self, points: list[tuple[Note, Checkpoint]]) -> None:
        size = self.tree.size
        in_force = self.keys[-1:]
        if size == self._key_since + 1:
            in_force = self.keys[-2:]  # the old key signs the event that brings the new one
        for note, point in points:
            if point.origin != self.origin:
                raise _FaultFound("splice", size, f"a checkpoint of trail {point.origin} lies with this one")
            answers = [(key, key.signed(note)) for key in in_force]
            if any(answer is False for _, answer in answers):
                raise _FaultFound("forged-checkpoint", size, f"the signature of the checkpoint of size {size} is false")
            signers = [key for key, answer in answers if answer]
            if not signers:
                raise _FaultFound("wrong-key", size, f"the checkpoint of size {size} is not signed by the key in force")
            if point.root != self.tree.root():
                raise _FaultFound(
                    "rewrite",
                    self.signed_size,
                    f"events {self.signed_size} to {size - 1} are not those that were signed at size {size}",
                )
            self._trust_shown = self._trust_shown or any(key in self._trusted for key in signers)
            self.checkpoints += 1
        self.signed_size = size


def _no_float(text: str) -> NoReturn:
    raise ValueError(f"{text[:32]} is no integer")


def _integer(text: str) -> int:
    value = int(text) if len(text) < 18 else strictjson.MAX_SAFE_INTEGER + 1
    if not -strictjson.MAX_SAFE_INTEGER <= value <= strictjson.MAX_SAFE_INTEGER:
        raise ValueError(f"integer {text[:24]} is outside ±(2^53 - 1)")
    return value


_decode = json.JSONDecoder(parse_float=_no_float, parse_constant=_no_float, parse_int=_integer).raw_decode
# A third faster than event.encode, and the same for what needs no \u to be ASCII; DEL it escapes too, RFC 8785 does not.
_encode_ascii = json.JSONEncoder(sort_keys=True, separators=(",", ":"), check_circular=False).encode


def _value_of(line: bytes) -> dict[str, Json]:
    """The value of a canonical line.  Duplicate keys, spaces and other forms show in the comparison of the bytes."""
    text = line.decode("utf-8")
    value, end = _decode(text)
    if end != len(text) or not isinstance(value, dict):
        raise ValueError("not one object")
    plain = text.isascii() and "\\u" not in text and "\x7f" not in text
    if (_encode_ascii(value).encode() if plain else event.encode(value)) != line:
        raise ValueError("not in canonical form")
    return value
