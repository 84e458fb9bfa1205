# SPDX-License-Identifier: Apache-2.0
"""The node's verifier and tools/verify_manifest.py, which shares no code with it: one verdict, one code, whatever the bytes."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from typing import Any

from scaleoutd.core import strictjson
from scaleoutd.core.clock import Floors
from scaleoutd.core.envelope import (
    STATEMENT_TYPE,
    TRUST_ROOT_TYPE,
    Envelope,
    Signature,
    pae,
    serialise_envelope,
    sign_payload,
)
from scaleoutd.core.manifest import check_paths, parse_manifest, verify_manifest
from scaleoutd.core.trust import RootPin, TrustRoot, parse_trust_root, verify_chain
from scaleoutd.errors import FormatError, ScaleoutError
from tests.fuzz.target import Target, same
from tests.second_verifier import second
from tests.unit.core.authenticator import SshSigner
from tests.unit.core.trust_samples import ALICE, AT_MS, BOB, MALLORY, NOW, ROOT_KEY, make_manifest, make_root, root_bytes, signed

_FLOORS: dict[str, Any] = {"time_ms": AT_MS, "manifest_versions": {"heart": 3}}


@functools.cache
def _root() -> TrustRoot:
    revoked = ("ab" * 32,)
    return make_root({"ml": ([ALICE, BOB], 1), "security": ([MALLORY], 1)}, revoked_manifests=revoked)


@functools.cache
def _their_root() -> Any:
    return second.parse_root(_root().payload())


def _envelope(data: bytes) -> None:
    """An envelope; what is none is taken for a payload and signed, so that the fuzzer comes behind the signatures."""
    payloads = (data, _subject_mended(data))
    for envelope in (data,) if b'"payloadType"' in data else (*map(_signed, payloads), _signed(data, ALICE)):
        found = _told(lambda whole=envelope: verify_manifest(whole, _root(), NOW, Floors(**_FLOORS), project="heart"))
        theirs = _theirs(lambda whole=envelope: second.verify_manifest(whole, _their_root(), AT_MS, _FLOORS, "heart"))
        same(theirs, found, "the second verifier's verdict")
        if found != "accepted":
            raise FormatError("cannot accept it", code=found)


def _chain(data: bytes) -> None:
    """The second document of a chain, signed anew where it is a payload only; pinned to the first, and to itself."""
    document = data if b'"payloadType"' in data else serialise_envelope(sign_payload(data, TRUST_ROOT_TYPE, [ROOT_KEY]))
    for documents in ([document], [root_bytes(make_root()), document]):
        for pin in (None, (1, make_root().digest())):
            ours = _told(lambda all_=documents, one=pin: verify_chain(all_, NOW, pin=RootPin(*one) if one else None))
            theirs = _theirs(lambda all_=documents, one=pin: second.verify_chain(all_, AT_MS, 0, one))
            same(theirs, ours, f"the second verifier's verdict on {len(documents)} roots")
    if ours != "accepted":
        raise FormatError("cannot accept it", code=ours)


def _manifest(data: bytes) -> None:
    """A payload alone: without the second verifier's slow arithmetic a hundred times as many are tried."""
    for payload in (data, _subject_mended(data)):
        ours = _told(lambda one=payload: parse_manifest(one))
        same(_theirs(lambda one=payload: second.parse_manifest(one)), ours, "the second verifier's verdict on a manifest")
        if ours != "accepted":
            raise FormatError("cannot accept it", code=ours)


def _root_document(data: bytes) -> None:
    ours = _told(lambda: parse_trust_root(data).digest())
    theirs = _theirs(lambda: second.parse_root(data))
    same(theirs == "accepted", ours == "accepted", f"the second verifier's verdict, {theirs}, ours is {ours}")
    if ours != "accepted":
        raise FormatError("cannot accept it", code="trust-root-invalid")
    same(second.root_digest(second.parse_root(data)), parse_trust_root(data).digest(), "the root's digest")


def _paths(data: bytes) -> None:
    """Names by line, in order: what the one refuses, the other refuses."""
    names = sorted(set(data.decode("utf-8", "replace").split("\n")))
    ours = _told(lambda: check_paths(names))
    same(_theirs(lambda: second.check_paths(names)), ours, "the second verifier's verdict on names")
    if ours != "accepted":
        raise FormatError("cannot accept it", code=ours)


def _subject_mended(payload: bytes) -> bytes:
    """The payload with the digest of the files that it lists now, so that what is behind that is reached."""
    try:
        value = json.loads(payload)
        value["subject"][0]["name"] = value["predicate"]["project"]
        value["subject"][0]["digest"]["sha256"] = hashlib.sha256(strictjson.canonical(value["predicate"]["files"])).hexdigest()
        return strictjson.canonical(value)
    except (ValueError, RecursionError, LookupError, TypeError, ScaleoutError):
        return payload


def _told(verify: Any) -> str:
    try:
        verify()
    except ScaleoutError as exc:
        return exc.code
    return "accepted"


def _theirs(verify: Any) -> str:
    try:
        verify()
    except second.Refused as exc:
        return str(exc.code)
    return "accepted"


def _signed(payload: bytes, *keys: Any) -> bytes:
    return serialise_envelope(sign_payload(payload, STATEMENT_TYPE, keys or (ALICE, MALLORY)))


def _envelope_seeds() -> list[bytes]:
    whole = signed(make_manifest(), ALICE, MALLORY)
    payload = _payload_of(whole)
    signatures = [SshSigner(key, None).sign(pae(STATEMENT_TYPE, payload)) for key in (BOB, MALLORY)]
    by_ssh = Envelope(payload, STATEMENT_TYPE, tuple(Signature(one) for one in signatures))
    return [whole, signed(make_manifest(), BOB, MALLORY), payload, serialise_envelope(by_ssh)]


def _payload_of(envelope: bytes) -> bytes:
    return base64.b64decode(json.loads(envelope)["payload"])


def _chain_seeds() -> list[bytes]:
    return [
        root_bytes(make_root(version=2)),
        make_root(version=2).payload(),
        make_root({"ml": ([ALICE, BOB], 2)}, version=2).payload(),
    ]


def _manifest_seeds() -> list[bytes]:
    return [_payload_of(signed(make_manifest()))]


_NAMES = (
    "a/b\nc\nlib/é".encode(),
    b"A\nb",
)
_WORDS = (
    b"/", b"..", b"\n", b"\xc3\x89", b"e\xcc\x81", b"\xef\xac\x81", b"\xc3\x9f", b"SS", b"\xc4\xb0", b"\xe2\x84\xaa", b"k",
    b"\xe2\x80\xae", b"\xef\xbb\xbf", b"scaleout.manifest.json", b"a" * 256, b"\xcd\x85", b"\xce\xb9", b"\xcc\xb8",
)  # fmt: skip
_CODES = frozenset(
    {
        "envelope-invalid",
        "signature-threshold",
        "json-invalid",
        "record-invalid",
        "manifest-invalid",
        "file-name",
        "project-mismatch",
        "manifest-revoked",
        "manifest-not-yet-valid",
        "manifest-expired",
        "manifest-replayed",
    }
)

TARGETS = (
    Target("second-envelope", _envelope, _envelope_seeds, _CODES, (b"QR==", b"=", b'"sig"', b"1.0", b"\\u0041"), json=True),
    Target("second-chain", _chain, _chain_seeds, frozenset({"trust-root-invalid"}), (b'"*"', b'"root"', b"\\n"), json=True),
    Target("second-manifest", _manifest, _manifest_seeds, _CODES, (b"../", b"//", b"1.0"), json=True),
    Target("second-root", _root_document, lambda: _chain_seeds()[1:], frozenset({"trust-root-invalid"}), (b'"*"',), json=True),
    Target("second-names", _paths, lambda: list(_NAMES), frozenset({"file-name"}), _WORDS),
)
