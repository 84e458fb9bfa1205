# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

from scaleoutd.core import chain, event
from tests.unit.core.audit_samples import stamp

VECTORS = Path(__file__).resolve().parents[2] / "vectors" / "audit"


def test_each_changed_byte_is_seen() -> None:
    line, tip = event.build("computed", {"run": "r1"}, stamp())
    for place in range(len(line)):
        changed = line[:place] + bytes([line[place] ^ 1]) + line[place + 1 :]
        found = chain.unseal(changed)
        assert found is None or found[0] != found[1], changed
    assert chain.unseal(line) == (tip.fingerprint, tip.fingerprint)


def test_a_name_that_looks_like_an_attestation_does_not_move_the_seal() -> None:
    name = ',"attestation_list":[{"chain_uid":"x","fingerprint":{"algorithm_id":3,"value":"' + "0" * 64 + '"}'
    line, tip = event.build("run-failed", {"run": name, "code": "c", "message": name}, stamp())
    assert chain.unseal(line) == (tip.fingerprint, tip.fingerprint)
    assert chain.fingerprint_of(json.loads(line)) == tip.fingerprint


def test_what_has_no_attestation_cannot_be_sealed() -> None:
    with pytest.raises(ValueError, match="cannot be sealed"):
        chain.seal(b"{}")
    assert chain.unseal(b"{}") is None


def test_vectors() -> None:
    for case in json.loads((VECTORS / "chain.json").read_text()):
        line = case["line"].encode()
        assert chain.unseal(line) == (case["fingerprint"], case["fingerprint"])
        assert chain.fingerprint_of(json.loads(line)) == case["fingerprint"]
        assert event.parse(line).type == case["type"]
