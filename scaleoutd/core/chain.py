# SPDX-License-Identifier: Apache-2.0
"""The hash chain of the trail: OCSF 1.9.0 profile record_integrity, object attestation.

The fingerprint of an event is the SHA-256 of its RFC 8785 bytes without the attestation's own `fingerprint` and
`signatures`.  The next event names it in `prev_event`, which is inside its own fingerprint, so no event can be changed,
taken out, put in or moved without the next one telling.

`seal` and `unseal` work on bytes: in canonical form the fingerprint has one place, right after `chain_uid`.  A quotation
mark inside a JSON string is always escaped, so the pattern cannot occur in a value that somebody else chose.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scaleoutd.core import strictjson

SHA256_ID = 3  # OCSF fingerprint.algorithm_id

_OPEN = re.compile(rb',"attestation_list":\[\{"chain_uid":"[^"\\]*"')
_SEALED = re.compile(
    rb'(,"attestation_list":\[\{"chain_uid":"[^"\\]*"),"fingerprint":\{"algorithm_id":3,"value":"([0-9a-f]{64})"\}'
)


@dataclass(frozen=True)
class Tip:
    """An event as the next one refers to it: its id and its fingerprint in hex."""

    uid: str
    fingerprint: str


def attestation(chain_uid: str, previous: Tip | None) -> dict[str, Any]:
    """The attestation of an event that follows `previous`, without its fingerprint."""
    result: dict[str, Any] = {"chain_uid": chain_uid}
    if previous is not None:
        result["prev_event"] = {
            "fingerprint": {"algorithm_id": SHA256_ID, "value": previous.fingerprint},
            "uid": previous.uid,
        }
    return result


def seal(unsealed: bytes) -> tuple[bytes, str]:
    """Canonical bytes without a fingerprint → (the line, its fingerprint)."""
    match = _OPEN.search(unsealed)
    if match is None:
        raise ValueError("an event without an attestation cannot be sealed")
    fingerprint = hashlib.sha256(unsealed).hexdigest()
    cut = match.end()
    mark = b',"fingerprint":{"algorithm_id":3,"value":"' + fingerprint.encode() + b'"}'
    return unsealed[:cut] + mark + unsealed[cut:], fingerprint


def unseal(line: bytes) -> tuple[str, str] | None:
    """(fingerprint that the line claims, fingerprint of its bytes), or None when it carries none in its place."""
    match = _SEALED.search(line)
    if match is None:
        return None
    digest = hashlib.sha256(line[: match.end(1)])
    digest.update(line[match.end() :])
    return match[2].decode(), digest.hexdigest()


def fingerprint_of(event: Mapping[str, Any]) -> str:
    """The fingerprint by the words of the standard, from a parsed event; slower than `unseal`, and its oracle."""
    attestations = [
        {key: value for key, value in item.items() if key not in ("fingerprint", "signatures")}
        for item in event["attestation_list"]
    ]
    return hashlib.sha256(strictjson.canonical({**event, "attestation_list": attestations})).hexdigest()
