# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from scaleoutd.core import checkpoint
from scaleoutd.core.checkpoint import ECDSA, ED25519, Checkpoint, Note, Signature, VerifierKey
from scaleoutd.errors import FormatError

VECTORS = Path(__file__).resolve().parents[2] / "vectors" / "audit"
NAME = "scaleoutd/00112233aabbccdd"
POINT = Checkpoint(NAME, 20852163, bytes(range(32)))


def signed(kind: int, point: Checkpoint = POINT) -> tuple[VerifierKey, Note]:
    message = point.text().encode()
    if kind == ED25519:
        private = ed25519.Ed25519PrivateKey.generate()
        key = VerifierKey(NAME, ED25519, private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))
        value = private.sign(message)
    else:
        curve = ec.generate_private_key(ec.SECP256R1())
        key = VerifierKey(NAME, ECDSA, curve.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
        value = curve.sign(message, ec.ECDSA(hashes.SHA256()))
    return key, Note(point.text(), (Signature(NAME, key.key_id, value),))


@pytest.mark.parametrize("kind", [ED25519, ECDSA])
def test_a_note_and_its_key_are_read_back_and_verify(kind: int) -> None:
    key, note = signed(kind)
    assert checkpoint.parse_key(key.encode()) == key
    back = checkpoint.parse_note(note.encode())
    assert back == note
    assert key.signed(back) is True
    assert checkpoint.parse_checkpoint(back.text) == POINT


@pytest.mark.parametrize("kind", [ED25519, ECDSA])
def test_another_text_signature_or_key_does_not_verify(kind: int) -> None:
    key, note = signed(kind)
    other, _ = signed(kind)
    assert key.signed(Note(note.text.replace("20852163", "20852164"), note.signatures)) is False
    only = note.signatures[0]
    broken = Signature(only.name, only.key_id, only.value[:-1] + bytes([only.value[-1] ^ 1]))
    assert key.signed(Note(note.text, (broken,))) is False
    assert key.signed(Note(note.text, (only, broken))) is False
    assert other.signed(note) is None


def test_the_example_of_the_standard_has_the_form_we_read() -> None:
    text = (
        "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
        "— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/"
        "Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
    )
    note = checkpoint.parse_note(text.encode())
    assert note.encode() == text.encode()
    assert checkpoint.parse_checkpoint(note.text).size == 20852163
    assert note.signatures[0].key_id.hex() == "033de0ae"


ROOT = base64.b64encode(bytes(32)).decode()


@pytest.mark.parametrize(
    "text",
    [
        f"a\n01\n{ROOT}\n",
        f"a\n-1\n{ROOT}\n",
        f"a\n1\n{ROOT[:-4]}\n",
        f"a\n1\n{ROOT}\nextension\n",
        f"a\n1\n{ROOT}",
        f"\n1\n{ROOT}\n",
        f"a b\n1\n{ROOT}\n",
        f"a+b\n1\n{ROOT}\n",
        f"a\n99999999999999999\n{ROOT}\n",
        f"a\n1\n{ROOT[:-2]}B=\n",
    ],
)
def test_a_checkpoint_that_is_not_exact_is_refused(text: str) -> None:
    checkpoint.parse_checkpoint(f"a\n1\n{ROOT}\n")
    with pytest.raises(FormatError):
        checkpoint.parse_checkpoint(text)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text\n",
        b"text\n\n",
        b"text\n\n- name AAAAAAAA\n",
        "text\n\n— name AAAAAAAA".encode(),
        "text\n\n— na me AAAAAAAA\n".encode(),
        "text\n\n— name AAAA\n".encode(),
        "text\n\n— name AAA*AAAA\n".encode(),
        "te\rxt\n\n— name AAAAAAAA\n".encode(),
        b"te\xffxt\n\n- name AAAAAAAA\n",
        b"text\n\n" + "— name AAAAAAAA\n".encode() * 65,
        b"x" * 70_000,
    ],
)
def test_a_note_that_is_not_exact_is_refused(data: bytes) -> None:
    checkpoint.parse_note("text\n\n— name AAAAAAAA\n".encode())
    with pytest.raises(FormatError):
        checkpoint.parse_note(data)


def changed(text: str, part: int, value: Any) -> str:
    parts = text.split("+", 2)
    parts[part] = value
    return "+".join(parts)


@pytest.mark.parametrize("kind", [ED25519, ECDSA])
def test_a_key_that_is_not_exact_is_refused(kind: int) -> None:
    text = signed(kind)[0].encode()
    for bad in (
        "",
        "name",
        changed(text, 0, "na me"),
        changed(text, 1, "00000000"),
        changed(text, 2, "!!!!"),
        changed(text, 2, base64.b64encode(b"\x09" + bytes(32)).decode()),
        changed(text, 2, base64.b64encode(bytes([kind]) + bytes(5)).decode()),
    ):
        with pytest.raises(FormatError):
            checkpoint.parse_key(bad)


def test_a_file_of_notes_is_split_and_its_torn_end_found() -> None:
    _, one = signed(ED25519)
    _, two = signed(ECDSA)
    data = checkpoint.join_notes([one.encode(), two.encode()])
    assert [checkpoint.parse_note(note) for note in checkpoint.split_notes(data)] == [one, two]
    assert checkpoint.complete_bytes(data) == len(data)
    first = len(one.encode()) + 1
    for cut in range(first, len(data)):
        assert checkpoint.complete_bytes(data[:cut]) == first
        assert len(list(checkpoint.split_notes(data[:cut]))) == 1


def test_vectors() -> None:
    for case in json.loads((VECTORS / "checkpoint.json").read_text()):
        key = checkpoint.parse_key(case["key"])
        note = checkpoint.parse_note(case["note"].encode())
        assert key.signed(note) is case["verifies"]
        point = checkpoint.parse_checkpoint(note.text)
        assert (point.origin, point.size, point.root.hex()) == (case["origin"], case["size"], case["root"])
