# SPDX-License-Identifier: Apache-2.0
"""Writes the vectors of strict JSON, DSSE and manifest, for other implementations and against drift of this one.

    python -m tests.vectors.make_trust

All keys are Ed25519 from fixed seeds, so that the same vectors come out every time.  A vector's `code` is the error that a
verifier gives, "accepted" for none.  Bytes are base64 ("…_b64") or text.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from scaleoutd.core import strictjson
from scaleoutd.core.envelope import STATEMENT_TYPE, pae, serialise_envelope, sign_payload
from scaleoutd.core.keys import public_key_of
from tests.unit.core.trust_samples import (
    ALICE,
    AT_MS,
    DAY_MS,
    MALLORY,
    ROOT_KEY,
    keyid,
    make_manifest,
    make_root,
    root_bytes,
    signed,
)
from tests.vectors.json.cases import ACCEPTED, REFUSED

FOLDER = Path(__file__).resolve().parent
CANONICAL: list[Any] = [
    {},
    [],
    {"b": 1, "a": {"d": [None, True, False], "c": "é"}},
    {"\ufb33": 1, "\U0001f600": 2, "\r": 3, "1": 4, "": 5},
    ['\x00\x1f\x7f\u2028"\\/', 9007199254740991, -9007199254740991, 0],
]


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def json_vectors() -> dict[str, Any]:
    return {
        "accepted": [{"name": name, "text_b64": b64(text)} for name, text in ACCEPTED.items()],
        "refused": [{"name": name, "text_b64": b64(text)} for name, text in REFUSED.items()],
        "canonical": [{"value": value, "canonical_b64": b64(strictjson.canonical(value))} for value in CANONICAL],
    }


def dsse_vectors() -> dict[str, Any]:
    payload = b'{"a":1}'
    one = json.loads(serialise_envelope(sign_payload(payload, STATEMENT_TYPE, [ALICE])))
    both = json.loads(serialise_envelope(sign_payload(payload, STATEMENT_TYPE, [ALICE, MALLORY])))
    twice = {**one, "signatures": [one["signatures"][0], {**one["signatures"][0], "keyid": keyid(MALLORY)}]}
    cases = [
        ("one-signature", one, 1, "accepted"),
        ("two-signatures", both, 2, "accepted"),
        ("one-of-two", one, 2, "signature-threshold"),
        ("one-key-under-two-ids", twice, 2, "signature-threshold"),
        ("wrong-key-id-is-only-a-hint", {**one, "signatures": [{**one["signatures"][0], "keyid": "x"}]}, 1, "accepted"),
        ("payload-changed", {**one, "payload": b64(b'{"a":2}')}, 1, "signature-threshold"),
        ("other-type", {**one, "payloadType": "text/plain"}, 1, "envelope-invalid"),
        ("base64-without-padding", {**one, "payload": one["payload"].rstrip("=")}, 1, "envelope-invalid"),
        ("unknown-field", {**one, "x": 1}, 1, "envelope-invalid"),
        ("no-signature", {**one, "signatures": []}, 1, "envelope-invalid"),
    ]
    return {
        "keys": [public_key_of(key).pem for key in (ALICE, MALLORY)],
        "pae_b64": b64(pae(STATEMENT_TYPE, payload)),
        "envelopes": [
            {"name": name, "envelope": envelope, "threshold": threshold, "code": code}
            for name, envelope, threshold, code in cases
        ],
    }


def manifest_vectors() -> dict[str, Any]:
    plain = signed(make_manifest())
    loose = json.dumps(json.loads(base64.b64decode(json.loads(plain)["payload"]))).encode()
    roots = {
        "plain": root_bytes(make_root()),
        "revoked": root_bytes(make_root(revoked_keys=(keyid(ALICE),))),
        "two-rules": root_bytes(make_root({"ml": ([ALICE], 1), "security": ([MALLORY], 1)})),
    }
    cases: list[tuple[str, bytes, str, int, str]] = [
        ("good", plain, "plain", 0, "accepted"),
        ("two-rules", signed(make_manifest(), ALICE, MALLORY), "two-rules", 0, "accepted"),
        ("one-rule-missing", plain, "two-rules", 0, "signature-threshold"),
        ("signed-by-nobody-trusted", signed(make_manifest(), MALLORY), "plain", 0, "signature-threshold"),
        ("signed-by-the-root-key", signed(make_manifest(), ROOT_KEY), "plain", 0, "signature-threshold"),
        ("revoked-key", plain, "revoked", 0, "key-revoked"),
        ("expired", signed(make_manifest(expires_ms=AT_MS)), "plain", 0, "manifest-expired"),
        ("not-yet-valid", signed(make_manifest(not_before_ms=AT_MS + DAY_MS)), "plain", 0, "manifest-not-yet-valid"),
        ("replayed", plain, "plain", 4, "manifest-replayed"),
        ("not-canonical", serialise_envelope(sign_payload(loose, STATEMENT_TYPE, [ALICE])), "plain", 0, "json-invalid"),
    ]
    return {
        "at_ms": AT_MS,
        "trust_roots": {name: json.loads(root) for name, root in roots.items()},
        "manifests": [
            {"name": name, "envelope": json.loads(data), "trust_root": root, "accepted_version": floor, "code": code}
            for name, data, root, floor, code in cases
        ],
    }


def all_vectors() -> dict[str, str]:
    """Path below this folder → text."""
    made = {"json/cases.json": json_vectors(), "dsse/cases.json": dsse_vectors(), "manifest/cases.json": manifest_vectors()}
    return {path: json.dumps(value, indent=1, sort_keys=True) + "\n" for path, value in made.items()}


def main() -> None:
    for path, text in all_vectors().items():
        (FOLDER / path).parent.mkdir(exist_ok=True)
        (FOLDER / path).write_text(text, encoding="ascii")


if __name__ == "__main__":
    main()
