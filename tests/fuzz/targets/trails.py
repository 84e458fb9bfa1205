# SPDX-License-Identifier: Apache-2.0
"""The trail: lines, segments (JSONL), checkpoints, verifier keys, and the verifier over all of it."""

from __future__ import annotations

import base64
import functools
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from scaleoutd.core import chain, event, records, strictjson, trail
from scaleoutd.core.chain import Tip
from scaleoutd.core.checkpoint import (
    ECDSA,
    ED25519,
    Checkpoint,
    Note,
    Signature,
    VerifierKey,
    complete_bytes,
    join_notes,
    parse_checkpoint,
    parse_key,
    parse_note,
    split_notes,
)
from scaleoutd.core.merkle import Tree
from scaleoutd.errors import FormatError
from scaleoutd.ledger.checkpoints import Resume
from scaleoutd.ledger.opening import Standing, take
from tests.fuzz.target import Target, same
from tests.unit.core.audit_samples import stamp

ORIGIN = "scaleoutd/00112233aabbccdd"
_APART = b"\n\n=====\n"
_KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2)]
_CODES = frozenset({"checkpoint-invalid"})


def _event(data: bytes) -> None:
    read = event.parse(data)
    line = trail.read_line(data)
    if line is not None:
        same((line.sequence, line.time_ms, line.tip.uid), (read.sequence, read.time_ms, read.event_id), "the two readers")


def _line(data: bytes) -> None:
    """A line that is sealed again after each change, so that the fuzzer comes behind the fingerprint."""
    for line in (data, _sealed(data)):
        found = trail.read_line(line)
        if found is not None:
            same(event.encode(found.value), line, "the line written again")


def _sealed(data: bytes) -> bytes:
    match = chain._SEALED.search(data)
    unsealed = data if match is None else data[: match.end(1)] + data[match.end() :]
    try:
        return chain.seal(unsealed)[0]
    except ValueError:
        return data


def _trail(data: bytes) -> None:
    """Lines, then checkpoints: any bytes have a verdict, and an honest one only when nothing was changed."""
    lines, _, notes = data.partition(_APART)
    segment = [line for line in lines.split(b"\n") if line]
    for change in (segment, [_sealed(line) for line in segment]):
        verdict = trail.verify(change, list(split_notes(notes)), [_public(0)])
        if verdict.ok and verdict.signed_size == verdict.size:
            same(change[: verdict.size], list(_honest()[0])[: verdict.size], "what was signed")
        trail.verify(change, list(split_notes(notes)))


def _restore(data: bytes) -> None:
    """What a ledger takes up when it starts."""
    standing = Standing()
    for line in data.split(b"\n"):
        take(standing, _rechained(line, standing.tip), ORIGIN, recent=True)


def _rechained(line: bytes, tip: Tip | None) -> bytes:
    """The line as one that follows `tip`, as far as it can be made so."""
    try:
        value = strictjson.parse(line, max_bytes=1 << 16)
        value["attestation_list"] = [chain.attestation(ORIGIN, tip)]
        return chain.seal(event.encode(value))[0]
    except (FormatError, TypeError, ValueError, AttributeError):
        return line


def _note(data: bytes) -> None:
    note = parse_note(data)
    same(note.encode(), data, "the note written again")
    for number in range(2):
        _public(number).signed(note)
    _ecdsa().signed(note)
    point = parse_checkpoint(note.text)
    same(point.text(), note.text, "the checkpoint written again")


def _checkpoint_file(data: bytes) -> None:
    notes = list(split_notes(data))
    same(join_notes(notes), data[: complete_bytes(data)], "the notes joined again")
    for one in notes:
        parse_note(one)


def _key(data: bytes) -> None:
    key = parse_key(data.decode("utf-8", "replace"))
    same(parse_key(key.encode()), key, "the key written and read")
    key.verify(b"x", data[:64])


def _resume(data: bytes) -> None:
    resume = records.decode(Resume, strictjson.parse(data, max_bytes=1 << 16))
    try:
        resume.tree().root()
    except ValueError:
        return


def _public(number: int) -> VerifierKey:
    return VerifierKey(ORIGIN, ED25519, _KEYS[number].public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))


def _ecdsa() -> VerifierKey:
    public = ec.derive_private_key(7, ec.SECP256R1()).public_key()
    return VerifierKey(ORIGIN, ECDSA, public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


@functools.cache
def _honest() -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    lines: list[bytes] = []
    notes: list[bytes] = []
    tip: Tip | None = None

    def add(kind: str, room: str, **body: Any) -> None:
        nonlocal tip
        mark = stamp(len(lines), room, chain_uid=ORIGIN, previous=tip, time_ms=1_790_000_000_000 + 1000 * len(lines))
        line, tip = event.build(kind, body, mark)
        lines.append(line)

    def sign(number: int) -> None:
        tree = Tree()
        for line in lines:
            tree.append(line)
        point = Checkpoint(ORIGIN, tree.size, tree.root())
        value = _KEYS[number].sign(point.text().encode())
        notes.append(Note(point.text(), (Signature(ORIGIN, _public(number).key_id, value),)).encode())

    add("epoch-key-made", "ledger", epoch=1, key=_public(0).encode())
    add("computed", "runner", run="r1", sha256="ab" * 32)
    sign(0)
    text = trail.certificate_text(ORIGIN, 2, _public(1).encode())
    certificate = base64.b64encode(_KEYS[0].sign(text)).decode()
    add("epoch-key-made", "ledger", epoch=2, key=_public(1).encode(), certificate=certificate)
    sign(0)
    add("floors-noted", "ledger", time_ms=5, root_version=1, epoch=2, manifest_versions={"p": 3})
    add("clock-set-back", "ledger", from_ms=5, to_ms=4)
    add("clock-floor-lowered", "ledger", from_ms=5, to_ms=4, reason="r")
    add("manifest-verified", "runner", project="p", manifest_version=3, manifest_sha256="ab" * 32, signers=["a"])
    sign(1)
    return tuple(lines), tuple(notes)


def _resume_seeds() -> list[bytes]:
    resume = Resume(2, 3, ("ab" * 32, "cd" * 32), 1, 5, "u", "ef" * 32, 5, 1, {"p": 2})
    return [strictjson.canonical(records.encode(resume))]


_WORDS = (
    b'"epoch-key-made"',
    b'"event_code":',
    b'"unmapped":',
    b'"chain_uid":',
    b',"fingerprint":{',
    b'"epoch":2',
    b"\n",
    _APART,
)
_NOTE_WORDS = ("— ".encode(), b"\n\n", b"\n", b"+", b"AAAA", b"00")

TARGETS = (
    Target("event", _event, lambda: list(_honest()[0]), frozenset({"event-invalid"}), _WORDS, json=True),
    Target("trail-line", _line, lambda: list(_honest()[0]), frozenset(), _WORDS, json=True),
    Target("trail", _trail, lambda: [b"\n".join(_honest()[0]) + _APART + join_notes(_honest()[1])], frozenset(), _WORDS),
    Target("ledger-restore", _restore, lambda: list(_honest()[0]), frozenset({"trail-broken"}), _WORDS, json=True),
    Target("checkpoint", _note, lambda: list(_honest()[1]), _CODES, _NOTE_WORDS),
    Target("checkpoint-file", _checkpoint_file, lambda: [join_notes(_honest()[1])], _CODES, _NOTE_WORDS),
    Target(
        "verifier-key",
        _key,
        lambda: [_public(0).encode().encode(), _ecdsa().encode().encode()],
        frozenset({"key-invalid"}),
        (b"+", b"=", b"AQ", b"Ag"),
    ),
    Target("ledger-resume", _resume, _resume_seeds, frozenset({"json-invalid", "record-invalid"}), json=True),
)
