# SPDX-License-Identifier: Apache-2.0
"""Writes tests/vectors/trust/cases.json: envelopes and chains of trust roots with the verdict that every verifier must reach.

    python -m tests.vectors.make_corpus

All keys come from fixed seeds.  A case says what the node knows (time, floors, pin, name of the project) and the one rule that it
breaks; `code` is that of docs/manifest-format.md, "accepted" for none.  ECDSA signatures differ each time they are made, so the
file changes with each run; the verdicts do not.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from scaleoutd.core import strictjson
from scaleoutd.core.envelope import STATEMENT_TYPE, TRUST_ROOT_TYPE, Envelope, Signature, pae, serialise_envelope, sign_payload
from scaleoutd.core.keys import sign
from scaleoutd.core.manifest import CHUNK_BYTES, MANIFEST_NAME, Expected, FileEntry, manifest_payload
from scaleoutd.core.trust import Role, TrustRoot
from tests.unit.core.authenticator import TOUCHED, VERIFIED, SshSigner
from tests.unit.core.trust_samples import (
    ALICE,
    AT_MS,
    BOB,
    MALLORY,
    ROOT_KEY,
    entry,
    keyid,
    make_manifest,
    make_root,
    root_bytes,
    signed,
)

PATH = Path(__file__).resolve().parent / "trust/cases.json"
MINUTES_5 = 5 * 60 * 1000
CAROL = Ed25519PrivateKey.from_private_bytes(b"c" * 32)
PLAIN = make_root()
ODD = ("-rf", "..a", "a b", "é.py", "日本/語.txt")
TWO = make_root({"ml": ([ALICE], 1), "security": ([BOB], 1)})
Case = tuple[str, str, list[bytes], bytes, dict[str, Any]]


def with_keys(root: TrustRoot, **changes: Any) -> TrustRoot:
    """Every key of `root` but ROOT_KEY with other fields."""
    keys = {name: key if name == keyid(ROOT_KEY) else replace(key, **changes) for name, key in root.keys.items()}
    return replace(root, keys=keys)


def raw(payload: bytes, *signatures: bytes, kind: str = STATEMENT_TYPE) -> bytes:
    return serialise_envelope(Envelope(payload, kind, tuple(Signature(sig) for sig in signatures)))


def bent(change: Callable[[dict[str, Any]], object]) -> bytes:
    """A statement that is not what `sign` writes, signed by a trusted key in canonical form."""
    value = json.loads(manifest_payload(make_manifest()))
    change(value)
    return serialise_envelope(sign_payload(strictjson.canonical(value), STATEMENT_TYPE, [ALICE]))


def with_paths(*paths: str) -> bytes:
    def change(value: dict[str, Any]) -> None:
        value["predicate"]["files"] = [{**value["predicate"]["files"][0], "path": path} for path in paths]

    return bent(change)


def bent_root(change: Callable[[dict[str, Any]], object], root: TrustRoot = PLAIN) -> bytes:
    value = json.loads(root.payload())
    change(value)
    return serialise_envelope(sign_payload(strictjson.canonical(value), TRUST_ROOT_TYPE, [ROOT_KEY]))


def by(signer: SshSigner) -> bytes:
    payload = manifest_payload(make_manifest())
    return raw(payload, signer.sign(pae(STATEMENT_TYPE, payload)))


def accepted() -> Iterator[Case]:
    root, good = [root_bytes(PLAIN)], signed(make_manifest())
    yield "ed25519", "accepted", root, good, {"project": "heart"}
    yield "p256", "accepted", [root_bytes(make_root({"ml": ([BOB], 1)}))], signed(make_manifest(), BOB), {}
    yield "two rules", "accepted", [root_bytes(TWO)], signed(make_manifest(), ALICE, BOB), {}
    yield (
        "two of three",
        "accepted",
        [root_bytes(make_root({"ml": ([ALICE, BOB, CAROL], 2)}))],
        signed(make_manifest(), CAROL, BOB),
        {},
    )
    yield "a stranger signed too", "accepted", root, signed(make_manifest(), MALLORY, ALICE), {}
    hinted = json.loads(good)
    hinted["signatures"][0]["keyid"] = keyid(MALLORY)
    yield "a wrong key id is a hint only", "accepted", root, json.dumps(hinted).encode(), {}
    yield "pattern fits", "accepted", [root_bytes(make_root(projects={keyid(ALICE): ("lung", "h*t")}))], good, {}
    yield "last millisecond", "accepted", root, signed(make_manifest(expires_ms=AT_MS + 1)), {}
    yield "first millisecond", "accepted", root, signed(make_manifest(not_before_ms=AT_MS)), {}
    yield "the version accepted before", "accepted", root, good, {"manifest_versions": {"heart": 3, "lung": 9}}
    yield "five minutes back", "accepted", root, good, {"time_ms": AT_MS + MINUTES_5}
    yield "every optional field", "accepted", root, signed(full()), {}
    yield "chunks", "accepted", root, signed(make_manifest(files=(large(2),))), {}
    yield "names that look odd and are good", "accepted", root, signed(make_manifest(files=tuple(map(entry, ODD)))), {}
    yield "development", "accepted", [root_bytes(make_root(development=True))], signed(make_manifest(development=True)), {}
    yield "revocations of others", "accepted", [
        root_bytes(make_root(revoked_keys=(keyid(MALLORY),), revoked_manifests=("0" * 64,)))
    ], good, {}  # fmt: skip
    yield "three roots", "accepted", chain(3), good, {"root_version": 3}
    yield "pinned root in the chain", "accepted", chain(3), good, {"pin": [2, root_of(2).digest()]}
    yield "an expired root that was followed", "accepted", [
        root_bytes(replace(PLAIN, expires_ms=1)), root_bytes(root_of(2))
    ], good, {}  # fmt: skip
    yield "root key rotated", "accepted", [
        root_bytes(PLAIN), root_bytes(make_root(version=2, root_key=CAROL), ROOT_KEY, CAROL)
    ], good, {}  # fmt: skip
    for signer, name in ((SshSigner(ALICE, None), "ssh ed25519"), (SshSigner(BOB, None), "ssh p256"),
                         (SshSigner(ALICE), "sk ed25519"), (SshSigner(BOB), "sk p256")):  # fmt: skip
        made = with_keys(make_root({"ml": ([signer.key], 1)}), application=signer.application)
        yield name, "accepted", [root_bytes(made)], by(signer), {}
    yield "ssh sha256", "accepted", root, by(SshSigner(ALICE, None, hash_name="sha256")), {}
    asks = with_keys(PLAIN, application="ssh:", verify_required=True)
    yield "sk verified", "accepted", [root_bytes(asks)], by(SshSigner(ALICE, flags=TOUCHED | VERIFIED)), {}


def refused_signatures() -> Iterator[Case]:
    code, root, good = "signature-threshold", [root_bytes(PLAIN)], signed(make_manifest())
    payload = manifest_payload(make_manifest())
    data = pae(STATEMENT_TYPE, payload)
    yield "nobody who is trusted", code, root, signed(make_manifest(), MALLORY), {}
    yield "a root key signs no project", code, root, signed(make_manifest(), ROOT_KEY), {}
    yield "one of two", code, [root_bytes(make_root({"ml": ([ALICE, BOB], 2)}))], good, {}
    yield "one rule of two", code, [root_bytes(TWO)], good, {}
    twice = raw(payload, sign(ALICE, data), sign(ALICE, data))
    yield "one signature twice", code, [root_bytes(make_root({"ml": ([ALICE, BOB], 2)}))], twice, {}
    both = raw(payload, sign(ALICE, data), SshSigner(ALICE, None).sign(data))
    yield "one key in two forms", code, [root_bytes(make_root({"ml": ([ALICE, BOB], 2)}))], both, {}
    other = raw(payload, sign(BOB, data), sign(BOB, data))
    yield "two signatures of one p256 key", code, [root_bytes(make_root({"ml": ([ALICE, BOB], 2)}))], other, {}
    yield "pattern of another project", code, [root_bytes(make_root(projects={keyid(ALICE): ("lung", "hear")}))], good, {}
    yield "payload changed", code, root, raw(manifest_payload(make_manifest(version=4)), sign(ALICE, data)), {}
    yield "signed as another type", code, root, raw(payload, sign(ALICE, pae(TRUST_ROOT_TYPE, payload))), {}
    yield "signed without encoding", code, root, raw(payload, sign(ALICE, payload)), {}
    yield "ed25519 with s + L", code, root, raw(payload, plus_order(sign(ALICE, data))), {}
    yield "ed25519 of 63 bytes", code, root, raw(payload, sign(ALICE, data)[:-1]), {}
    p256 = [root_bytes(make_root({"ml": ([BOB], 1)}))]
    yield "p256 with a byte after it", code, p256, raw(payload, sign(BOB, data) + b"\0"), {}
    yield "p256 with a long length", code, p256, raw(payload, long_length(sign(BOB, data))), {}
    yield "development under production", code, root, signed(make_manifest(development=True)), {}
    yield "production under development", code, [root_bytes(make_root(development=True))], good, {}
    token = [root_bytes(with_keys(PLAIN, application="ssh:"))]
    yield "sk key, plain signature", code, token, good, {}
    yield "sk key, ssh signature without it", code, token, by(SshSigner(ALICE, None)), {}
    yield "plain key, sk signature", code, root, by(SshSigner(ALICE)), {}
    for name, bent_signer in {
        "sk not touched": SshSigner(ALICE, flags=0),
        "sk another application": SshSigner(ALICE, "web:"),
        "sk signed for another application": SshSigner(ALICE, signs="web:"),
        "ssh another namespace": SshSigner(ALICE, namespace="git"),
        "ssh reserved": SshSigner(ALICE, reserved=b"x"),
        "ssh version 2": SshSigner(ALICE, version=2),
        "ssh sha1": SshSigner(ALICE, hash_name="sha1"),
        "ssh something follows": SshSigner(ALICE, tail=b"x"),
        "ssh another key": SshSigner(MALLORY),
    }.items():
        yield name, code, token, by(bent_signer), {}
    asks = [root_bytes(with_keys(PLAIN, application="ssh:", verify_required=True))]
    yield "sk touched and not verified", code, asks, by(SshSigner(ALICE)), {}
    revoked = root_bytes(make_root({"ml": ([ALICE, BOB], 1)}, revoked_keys=(keyid(ALICE),)))
    yield "revoked key", "key-revoked", [revoked], good, {}


def refused_forms() -> Iterator[Case]:
    root, good = [root_bytes(PLAIN)], signed(make_manifest())
    envelope = json.loads(good)
    for name, changed in {
        "no json": b"{",
        "no signature": {**envelope, "signatures": []},
        "33 signatures": {**envelope, "signatures": envelope["signatures"] * 33},
        "unknown field": {**envelope, "x": 1},
        "another type": {**envelope, "payloadType": "text/plain"},
        "base64 without padding": {**envelope, "payload": envelope["payload"].rstrip("=") + "AA"[: -len(envelope["payload"]) % 4]
                                   if not envelope["payload"].endswith("=") else envelope["payload"].rstrip("=")},
        "base64 with a line break": {**envelope, "payload": envelope["payload"][:8] + "\n" + envelope["payload"][8:]},
        "base64 of the web": {**envelope, "payload": "-_" + envelope["payload"][2:]},
        "a key twice": good.replace(b'{"payload":', b'{"payload":"","payload":', 1),
        "byte-order mark": b"\xef\xbb\xbf" + good,
    }.items():  # fmt: skip
        if name == "base64 without padding":
            changed = {**envelope, "signatures": [{"sig": envelope["signatures"][0]["sig"].rstrip("=")}]}
        yield name, "envelope-invalid", root, changed if isinstance(changed, bytes) else json.dumps(changed).encode(), {}
    loose = json.dumps(json.loads(manifest_payload(make_manifest()))).encode()
    yield "not canonical", "json-invalid", root, serialise_envelope(sign_payload(loose, STATEMENT_TYPE, [ALICE])), {}
    for name, data in {"a float": b'{"a":1.5}', "an integer of 2^53": b'{"a":9007199254740992}',
                       "33 levels": b"[" * 33 + b"]" * 33,
                       "a lone surrogate": b'{"a":"\\ud800"}', "no utf-8": b'{"a":"\xff"}'}.items():  # fmt: skip
        yield name, "json-invalid", root, serialise_envelope(sign_payload(data, STATEMENT_TYPE, [ALICE])), {}
    for name, change in RECORDS.items():
        yield name, "record-invalid", root, bent(change), {}
    for name, change in MANIFESTS.items():
        yield name, "manifest-invalid", root, bent(change), {}
    for name, paths in PATHS.items():
        yield f"path {name}", "file-name", root, with_paths(*paths), {}


RECORDS: dict[str, Callable[[dict[str, Any]], object]] = {
    "statement v0.1": lambda v: v.update(_type="https://in-toto.io/Statement/v0.1"),
    "another predicate": lambda v: v.update(predicateType="urn:other"),
    "a field too many": lambda v: v["predicate"].update(extra=1),
    "no files": lambda v: v["predicate"].update(files=[]),
    "files are missing": lambda v: v["predicate"].pop("files"),
    "version 0": lambda v: v["predicate"].update(version=0),
    "version true": lambda v: v["predicate"].update(version=True),
    "version text": lambda v: v["predicate"].update(version="1"),
    "null": lambda v: v["predicate"].update(startup_file=None),
    "digest in capitals": lambda v: v["predicate"]["files"][0].update(sha256="A" * 64),
    "a name with a slash": lambda v: v["predicate"].update(project="a/b"),
    "environment id with dots and slash": lambda v: v["predicate"].update(environments={"../x": {}}),
    "empty command": lambda v: v["predicate"]["steps"].update(train=[]),
    "nul in a command": lambda v: v["predicate"]["steps"].update(train=["a\x00b"]),
    "two subjects": lambda v: v["subject"].append(v["subject"][0]),
    "one chunk": lambda v: v["predicate"]["files"][0].update(chunks=["0" * 64]),
}
MANIFESTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "ends before it begins": lambda v: v["predicate"].update(not_before_ms=v["predicate"]["expires_ms"]),
    "an unknown step": lambda v: v["predicate"]["steps"].update(deploy=["rm"]),
    "startup file that is not listed": lambda v: v["predicate"].update(startup_file="missing.py"),
    "subject of another name": lambda v: v["subject"][0].update(name="lung"),
    "subject of other files": lambda v: v["predicate"]["files"][1].update(sha256="0" * 64),
    "chunks of a small file": lambda v: v["predicate"]["files"][0].update(chunks=["0" * 64] * 2),
    "no chunks of a large file": lambda v: v["predicate"]["files"][0].update(size_bytes=CHUNK_BYTES + 1),
}
PATHS = {
    "absolute": ["/etc/passwd"],
    "dot-dot": ["a/../../x"],
    "dot": ["./a"],
    "empty component": ["a//b"],
    "slash at the end": ["a/"],
    "line break": ["a\nb"],
    "right-to-left": ["a\u202eyp.exe"],
    "decomposed": ["e\u0301.py"],
    "the manifest": [MANIFEST_NAME],
    "component of 256 bytes": ["é" * 128],
    "doubled": ["a", "a"],
    "not sorted": ["b", "a"],
    "case": ["README", "readme"],
    "case of a folder": ["Lib/a", "lib/b"],
    "sharp s": ["STRASSE", "stra\u00dfe"],
    "kelvin sign": ["K", "\u212a"],
    "a file as a folder": ["a", "a/b"],
}  # fmt: skip


def refused_by_state() -> Iterator[Case]:
    root, good = [root_bytes(PLAIN)], signed(make_manifest())
    yield "expired", "manifest-expired", root, signed(make_manifest(expires_ms=AT_MS)), {}
    yield "not yet valid", "manifest-not-yet-valid", root, signed(make_manifest(not_before_ms=AT_MS + 1)), {}
    yield "replayed", "manifest-replayed", root, good, {"manifest_versions": {"heart": 4}}
    yield "another project", "project-mismatch", root, good, {"project": "lung"}
    yield "clock set back", "clock-set-back", root, good, {"time_ms": AT_MS + MINUTES_5 + 1}
    digest = hashlib.sha256(manifest_payload(make_manifest())).hexdigest()
    yield "revoked manifest", "manifest-revoked", [root_bytes(make_root(revoked_manifests=(digest,)))], good, {}


def refused_roots() -> Iterator[Case]:
    code, good = "trust-root-invalid", signed(make_manifest())
    yield "root expired", code, [root_bytes(make_root(expires_ms=AT_MS))], good, {}
    yield "root below the floor", code, [root_bytes(PLAIN)], good, {"root_version": 2}
    yield "pinned root is another one", code, [root_bytes(PLAIN)], good, {"pin": [1, "0" * 64]}
    yield "chain passes the pinned root by", code, [root_bytes(root_of(2))], good, {"pin": [1, PLAIN.digest()]}
    yield "gap in the chain", code, [root_bytes(PLAIN), root_bytes(root_of(3))], good, {}
    yield (
        "root not signed by itself",
        code,
        [serialise_envelope(sign_payload(PLAIN.payload(), TRUST_ROOT_TYPE, [MALLORY]))],
        good,
        {},
    )
    yield "new root key alone", code, [root_bytes(PLAIN), root_bytes(make_root(version=2, root_key=CAROL), CAROL)], good, {}
    yield "old root key alone", code, [root_bytes(PLAIN), root_bytes(make_root(version=2, root_key=CAROL), ROOT_KEY)], good, {}
    yield "revoked root key", code, [root_bytes(make_root(revoked_keys=(keyid(ROOT_KEY),)))], good, {}
    yield (
        "development follows production",
        code,
        [root_bytes(PLAIN), root_bytes(make_root(version=2, development=True))],
        good,
        {},
    )
    statement = serialise_envelope(sign_payload(PLAIN.payload(), STATEMENT_TYPE, [ROOT_KEY]))
    yield "root signed as a statement", code, [statement], good, {}
    two = [root_bytes(replace(PLAIN, roles={**PLAIN.roles, "root": Role((keyid(ROOT_KEY), keyid(ALICE)), 2)}), ROOT_KEY)]
    yield "one of two root keys", code, two, good, {}
    for name, change in ROOTS.items():
        yield name, code, [bent_root(change)], good, {}


A = keyid(ALICE)
ROOTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "key under another id": lambda v: v["keys"].update({"0" * 64: v["keys"].pop(A)}) or v["roles"]["ml"].update(keys=["0" * 64]),
    "key in another spelling": lambda v: v["keys"][A].update(pem=v["keys"][A]["pem"].replace("\n", "\r\n")),
    "key twice in a role": lambda v: v["roles"]["ml"].update(keys=[A, A]),
    "threshold above the keys": lambda v: v["roles"]["ml"].update(threshold=2),
    "threshold 0": lambda v: v["roles"]["ml"].update(threshold=0),
    "key in two roles": lambda v: v["roles"].update(other={"keys": [A], "threshold": 1}),
    "role with a key that is not listed": lambda v: v["roles"].update(other={"keys": ["0" * 64], "threshold": 1}),
    "no role root": lambda v: v["roles"].update(other=v["roles"].pop("root")),
    "root of an unknown kind": lambda v: v.update(_type="scaleoutd-trust-root-v2"),
    "root with a field too many": lambda v: v.update(extra=1),
    "verification without an authenticator": lambda v: v["keys"][A].update(verify_required=True),
}


def large(chunks: int) -> FileEntry:
    return FileEntry("big.bin", CHUNK_BYTES * (chunks - 1) + 1, "0" * 64, chunks=("1" * 64,) * chunks)


def full() -> Any:
    return make_manifest(
        files=(entry("a.sh", executable=True), entry("b.py")),
        ignored=("*.pyc", "data/"),
        environments={"torch": Expected("0" * 64), "plain": Expected()},
        data_sets={"samples": Expected()},
        startup_file="b.py",
        policy_sha256="f" * 64,
    )


def root_of(version: int) -> TrustRoot:
    return make_root(version=version)


def chain(count: int) -> list[bytes]:
    return [root_bytes(root_of(version)) for version in range(1, count + 1)]


def plus_order(signature: bytes) -> bytes:
    """The same signature with s + L, which RFC 8032 refuses and some take."""
    order = 2**252 + 27742317777372353535851937790883648493
    return signature[:32] + (int.from_bytes(signature[32:], "little") + order).to_bytes(32, "little")


def long_length(der: bytes) -> bytes:
    """The same numbers in BER."""
    return der[:1] + b"\x81" + der[1:]


def make_cases() -> list[dict[str, Any]]:
    cases = []
    for make in (accepted, refused_signatures, refused_forms, refused_by_state, refused_roots):
        for name, code, roots, envelope, known in make():
            texts = [base64.b64encode(root).decode() for root in roots]
            cases.append(
                {"name": name, "code": code, "roots_b64": texts, "envelope_b64": base64.b64encode(envelope).decode(), **known}
            )
    return cases


def main() -> None:
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(json.dumps({"at_ms": AT_MS, "cases": make_cases()}, indent=1, sort_keys=True) + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
