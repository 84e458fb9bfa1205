# SPDX-License-Identifier: Apache-2.0
"""Each way to tamper with a trail is named with the sequence of the first wrong event."""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from scaleoutd.core import chain, event, trail
from scaleoutd.core.chain import Tip
from scaleoutd.core.checkpoint import ED25519, Checkpoint, Note, Signature, VerifierKey
from scaleoutd.core.merkle import Tree
from scaleoutd.core.trail import Verdict, certificate_text
from tests.unit.core.audit_samples import stamp

T0 = 1_790_000_000_000
ORIGIN = "scaleoutd/00112233aabbccdd"
OTHER = "scaleoutd/ffffffffffffffff"


class Key:
    def __init__(self, origin: str) -> None:
        self.private = Ed25519PrivateKey.generate()
        self.public = VerifierKey(origin, ED25519, self.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))


class Forge:
    """Makes trails, honest and not: a ledger's format without its honesty."""

    def __init__(self, origin: str = ORIGIN) -> None:
        self.origin, self.keys = origin, [Key(origin)]
        self.lines: list[bytes] = []
        self.notes: list[bytes] = []
        self.tip: Tip | None = None
        self.time_ms = T0
        self.add("epoch-key-made", epoch=1, key=self.keys[0].public.encode())

    def add(self, type_: str, /, room: str = "ledger", **body: Any) -> None:
        mark = stamp(len(self.lines), room, chain_uid=self.origin, previous=self.tip, time_ms=self.time_ms)
        line, self.tip = event.build(type_, body, mark)
        self.lines.append(line)
        self.time_ms += 1000

    def work(self, events: int) -> None:
        for number in range(events):
            self.add("computed", "runner", run=f"r{len(self.lines)}-{number}")

    def sign(self, key: Key | None = None, size: int | None = None) -> None:
        tree = Tree()
        for line in self.lines[:size]:
            tree.append(line)
        self.notes.append(note(key or self.keys[-1], Checkpoint(self.origin, tree.size, tree.root())))

    def rotate(self) -> None:
        old, new = self.keys[-1], Key(self.origin)
        text = certificate_text(self.origin, len(self.keys) + 1, new.public.encode())
        certificate = base64.b64encode(old.private.sign(text)).decode()
        self.add("epoch-key-made", epoch=len(self.keys) + 1, key=new.public.encode(), certificate=certificate)
        self.sign(old)
        self.keys.append(new)

    def verify(self, lines: list[bytes] | None = None, notes: list[bytes] | None = None, **options: Any) -> Verdict:
        options.setdefault("trusted", [self.keys[0].public])
        return trail.verify(self.lines if lines is None else lines, self.notes if notes is None else notes, **options)


def note(key: Key, point: Checkpoint) -> bytes:
    value = key.private.sign(point.text().encode())
    return Note(point.text(), (Signature(key.public.name, key.public.key_id, value),)).encode()


@functools.cache
def honest() -> Forge:
    """30 events, checkpoints at 10, 20, 21 and 30, a new key at 20."""
    forge = Forge()
    forge.work(9)
    forge.sign()
    forge.work(10)
    forge.sign()
    forge.rotate()
    forge.work(9)
    forge.sign()
    return forge


def resealed(line: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """A line changed and sealed again, as somebody would who knows the format."""
    value = json.loads(line)
    change(value)
    del value["attestation_list"][0]["fingerprint"]
    return chain.seal(event.encode(value))[0]


def relinked(lines: list[bytes], start: int) -> list[bytes]:
    """The whole chain made again from `start`: numbers, previous events, fingerprints."""
    result = lines[:start]
    for number, line in enumerate(lines[start:], start):
        found = trail.read_line(result[-1]) if result else None

        def change(value: dict[str, Any], number: int = number, found: trail.Line | None = found) -> None:
            value["metadata"]["sequence"] = number
            value["attestation_list"] = [chain.attestation(ORIGIN, found.tip if found else None)]
            value["attestation_list"][0]["fingerprint"] = {}

        result.append(resealed(line, change))
    return result


def test_the_honest_trail_verifies() -> None:
    verdict = honest().verify()
    assert verdict.ok
    assert (verdict.size, verdict.signed_size, verdict.checkpoints, verdict.epochs) == (30, 30, 4, 2)
    assert verdict.origin == ORIGIN


def test_one_flipped_bit_anywhere_is_named() -> None:
    forge = honest()
    for sequence in range(0, 30, 3):
        line = forge.lines[sequence]
        for place in range(5, len(line), 97):
            changed = line[:place] + bytes([line[place] ^ 1]) + line[place + 1 :]
            verdict = forge.verify([*forge.lines[:sequence], changed, *forge.lines[sequence + 1 :]])
            assert verdict.fault is not None
            assert (verdict.fault.kind, verdict.fault.sequence) == ("edit", sequence)


def test_an_event_changed_and_sealed_again_is_named() -> None:
    forge = honest()
    changed = resealed(forge.lines[13], lambda value: value["unmapped"]["event"].update(run="other"))
    verdict = forge.verify([*forge.lines[:13], changed, *forge.lines[14:]])
    assert verdict.fault is not None and (verdict.fault.kind, verdict.fault.sequence) == ("edit", 13)


def splice_line(forge: Forge) -> list[bytes]:
    other = Forge(OTHER)
    other.work(20)
    return [*forge.lines[:7], other.lines[7], *forge.lines[8:]]


def inserted(forge: Forge) -> list[bytes]:
    extra = resealed(forge.lines[8], lambda value: value["unmapped"]["event"].update(run="never"))
    return [*forge.lines[:8], extra, *forge.lines[8:]]


LINE_ATTACKS: dict[str, tuple[Callable[[Forge], list[bytes]], str, int]] = {
    "one deleted": (lambda forge: [*forge.lines[:7], *forge.lines[8:]], "delete", 7),
    "the first deleted": (lambda forge: forge.lines[1:], "delete", 0),
    "a segment in the middle deleted": (lambda forge: [*forge.lines[:10], *forge.lines[20:]], "delete", 10),
    "two swapped": (lambda forge: [*forge.lines[:7], forge.lines[8], forge.lines[7], *forge.lines[9:]], "reorder", 7),
    "a copy put in": (lambda forge: [*forge.lines[:9], forge.lines[4], *forge.lines[9:]], "insert", 9),
    "the same twice": (lambda forge: [*forge.lines[:9], forge.lines[8], *forge.lines[9:]], "insert", 9),
    "a new one put in": (inserted, "insert", 8),
    "one of another trail": (splice_line, "splice", 7),
    "the end cut off": (lambda forge: forge.lines[:25], "truncate", 25),
    "all but the first cut off": (lambda forge: forge.lines[:1], "truncate", 1),
    "everything cut off": (lambda forge: [], "truncate", 0),
    "history made again without one": (lambda forge: relinked([*forge.lines[:12], *forge.lines[13:]], 12), "rewrite", 10),
    "the last made again": (
        lambda forge: [*forge.lines[:29], resealed(forge.lines[29], lambda value: value["unmapped"].update(uid=0))],
        "rewrite",
        21,
    ),
    "a space put in": (lambda forge: [*forge.lines[:3], forge.lines[3].replace(b":", b": ", 1), *forge.lines[4:]], "edit", 3),
    "a key doubled": (
        lambda forge: [*forge.lines[:3], forge.lines[3].replace(b"{", b'{"activity_id":9,', 1), *forge.lines[4:]],
        "edit",
        3,
    ),
    "a line of nonsense": (lambda forge: [*forge.lines[:3], b"[[[[", *forge.lines[3:]], "edit", 3),
}


@pytest.mark.parametrize("name", LINE_ATTACKS)
def test_an_attack_on_the_lines_is_named_with_its_sequence(name: str) -> None:
    attack, kind, sequence = LINE_ATTACKS[name]
    fault = honest().verify(attack(honest())).fault
    assert fault is not None
    assert (fault.kind, fault.sequence) == (kind, sequence), fault.message


def wrong_root(forge: Forge) -> list[bytes]:
    return [*forge.notes[:3], note(forge.keys[1], Checkpoint(ORIGIN, 30, bytes(32)))]


def changed_size(forge: Forge) -> list[bytes]:
    return [forge.notes[0].replace(b"\n10\n", b"\n11\n"), *forge.notes[1:]]


NOTE_ATTACKS: dict[str, tuple[Callable[[Forge], list[bytes]], str, int]] = {
    "size changed": (changed_size, "forged-checkpoint", 11),
    "a larger one made up": (
        lambda forge: [*forge.notes, note(Key(ORIGIN), Checkpoint(ORIGIN, 99, bytes(32)))],
        "forged-checkpoint",
        99,
    ),
    "nonsense": (lambda forge: [*forge.notes, b"nonsense"], "forged-checkpoint", 0),
    "signed by a stranger": (lambda forge: [note(Key(ORIGIN), Checkpoint(ORIGIN, 10, bytes(32)))], "wrong-key", 10),
    "signed by the destroyed key": (
        lambda forge: [*forge.notes[:3], note(forge.keys[0], Checkpoint(ORIGIN, 30, bytes(32)))],
        "wrong-key",
        30,
    ),
    "signed ahead by the next key": (lambda forge: [note(forge.keys[1], Checkpoint(ORIGIN, 10, bytes(32)))], "wrong-key", 10),
    "another root, signed": (wrong_root, "rewrite", 21),
    "of another trail": (lambda forge: [note(forge.keys[0], Checkpoint(OTHER, 10, bytes(32)))], "splice", 10),
    "none left": (lambda forge: [], "wrong-key", 0),
}


@pytest.mark.parametrize("name", NOTE_ATTACKS)
def test_an_attack_on_the_checkpoints_is_named(name: str) -> None:
    attack, kind, sequence = NOTE_ATTACKS[name]
    fault = honest().verify(notes=attack(honest())).fault
    assert fault is not None
    assert (fault.kind, fault.sequence) == (kind, sequence), fault.message


def test_a_whole_trail_made_again_with_other_keys_is_not_that_of_the_trusted_key() -> None:
    forged = Forge()
    forged.work(20)
    forged.sign()
    assert forged.verify().ok
    fault = forged.verify(trusted=[honest().keys[0].public]).fault
    assert fault is not None and fault.kind == "wrong-key"


def test_a_forged_trail_that_only_names_the_trusted_key_is_refused() -> None:
    forged = Forge()
    forged.work(5)
    forged.sign()
    stolen = honest().keys[0].public.encode()
    text = certificate_text(ORIGIN, 2, stolen)
    forged.add("epoch-key-made", epoch=2, key=stolen, certificate=base64.b64encode(forged.keys[0].private.sign(text)).decode())
    forged.sign()
    fault = forged.verify(trusted=[honest().keys[0].public]).fault
    assert fault is not None and fault.kind == "wrong-key"


def test_an_epoch_key_that_was_not_certified_is_refused() -> None:
    forge = Forge()
    forge.work(3)
    new = Key(ORIGIN)
    forge.add("epoch-key-made", epoch=2, key=new.public.encode(), certificate=base64.b64encode(bytes(64)).decode())
    fault = forge.verify(notes=[]).fault
    assert fault is not None and (fault.kind, fault.sequence) == ("wrong-key", 4)


def test_a_later_epoch_key_is_enough_to_trust_all_before_it() -> None:
    assert honest().verify(trusted=[honest().keys[1].public]).ok


def test_a_trail_put_back_to_yesterday_is_seen_with_a_checkpoint_from_elsewhere() -> None:
    forge = honest()
    yesterday = forge.verify(forge.lines[:20], forge.notes[:2])
    assert yesterday.ok  # nothing in the folder can tell
    fault = forge.verify(forge.lines[:20], [*forge.notes[:2], forge.notes[3]], known=[forge.keys[1].public]).fault
    assert fault is not None and (fault.kind, fault.sequence) == ("truncate", 20)


def test_a_clock_that_goes_back_unsaid_is_named_and_said_is_not() -> None:
    forge = Forge()
    forge.work(5)
    forge.time_ms -= 4 * 60 * 1000
    forge.work(1)
    forge.sign()
    assert forge.verify().ok
    forge.time_ms -= 10 * 60 * 1000
    forge.work(1)
    fault = forge.verify().fault
    assert fault is not None and (fault.kind, fault.sequence) == ("time-back", 7)
    said = Forge()
    said.work(5)
    said.time_ms -= 10 * 60 * 1000
    said.add("clock-set-back", from_ms=T0, to_ms=T0 - 600_000)
    said.work(3)
    said.sign()
    assert said.verify().ok


def test_events_behind_the_last_checkpoint_are_reported_as_not_signed() -> None:
    forge = Forge()
    forge.work(5)
    forge.sign()
    forge.work(5)
    verdict = forge.verify()
    assert verdict.ok and (verdict.signed_size, verdict.size) == (6, 11)


@pytest.mark.parametrize(
    ("text", "kept"),
    [("plain", True), ("caf\u00e9 \u2713", True), ("\x7f", True), ("\x01\n\t\"\\", True), ("\\u0041", True),
     ("A", False), ("\u00e9", False), ("/", False)],
)  # fmt: skip
def test_a_line_has_one_form_of_each_text(text: str, kept: bool) -> None:
    """RFC 8785: `kept` texts stand in their one form; the others as an escape that another reader would take as well."""
    forge = Forge()
    forge.add("computed", "runner", run="r1", kind=text)
    line = forge.lines[-1]
    if not kept:
        escaped = "\\/" if text == "/" else f"\\u{ord(text):04x}"
        before = f'"kind":"{text}"'.encode()
        assert before in line
        unsealed = chain._SEALED.sub(rb"\1", line).replace(before, f'"kind":"{escaped}"'.encode())
        line = chain.seal(unsealed)[0]
        assert chain.unseal(line) is not None and len({*(chain.unseal(line) or ())}) == 1  # control: the fingerprint fits
    assert (trail.read_line(line) is not None) == kept


@pytest.mark.parametrize(("number", "kept"), [(2**53 - 1, True), (2**53, False), (10**17, False), (10**40, False)])
def test_an_integer_that_readers_would_round_is_no_event(number: int, kept: bool) -> None:
    forge = Forge()
    forge.add("computed", "runner", run="r1", size_bytes=7)
    unsealed = chain._SEALED.sub(rb"\1", forge.lines[-1])
    line = chain.seal(unsealed.replace(b'"size_bytes":7', b'"size_bytes":%d' % number))[0]
    assert (trail.read_line(line) is not None) == kept
