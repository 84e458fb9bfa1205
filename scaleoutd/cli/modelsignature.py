# SPDX-License-Identifier: Apache-2.0
"""Reads a signature that OpenSSF model-signing wrote: a Sigstore bundle v0.3 with a DSSE envelope around an in-toto statement.

Rules:
  1. Taken are signatures by a key and by a certificate of one's own CA.  Those of Sigstore's public service need its log and
     the internet, and are refused by name; so is the encoding of signatures before model-signing 1.0.
  2. Nothing is read from the payload before the one signature fits; the key comes from the caller, never from the bundle.
  3. Of the digests SHA-256 is taken, of a file or of its shards, and the shards of a file are all of it, in order.
  4. It says nothing of a version, a time or a file's mode, so it makes no project runnable: runner/ knows nothing of it.

Source: model-signing 1.1.1 (`_signing/`), sigstore_bundle.proto; vectors in tests/vectors/model-signing.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, NoReturn

from scaleoutd.core import strictjson
from scaleoutd.core.envelope import MAX_ENVELOPE_BYTES, STATEMENT_TYPE, Envelope, pae, parse_envelope
from scaleoutd.core.keys import MAX_RAW_SIGNATURE_BYTES, PublicKey
from scaleoutd.core.manifest import MAX_FILES, check_paths
from scaleoutd.core.records import Count, Sha256Hex, Text, decode
from scaleoutd.core.strictjson import Json
from scaleoutd.errors import FormatError, VerificationError

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
INTOTO_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
MAX_CERTIFICATES = 8
_MAX_VALUES = 256  # as in core/envelope.py: nothing is proven yet

_SHARD_NAME = re.compile(r"(.+):(0|[1-9][0-9]{0,15}):([1-9][0-9]{0,15})", re.DOTALL)
_HINT = "Get model and signature again from who signed them; model-signing 1.0 or later writes this form."


@dataclass(frozen=True)
class Bundle:
    """A bundle that parsed; nothing of it is proven.  `certificates` are DER, the signer's first; none with a key."""

    envelope: Envelope
    key_hint: str | None  # SHA-256 (hex) of the public key's PEM
    certificates: tuple[bytes, ...]


@dataclass(frozen=True)
class Shard:
    """Bytes `start` to `end` of a file and their SHA-256; `end` None: to the file's end, wherever it is."""

    start: int
    end: int | None
    sha256: str


@dataclass(frozen=True)
class SignedModel:
    """What a signature that fits says.  `ignored` is what the signer left out: those files are not signed."""

    name: str
    sha256: str  # over the digests of all files
    method: str  # "files" or "shards"
    files: Mapping[str, tuple[Shard, ...]]
    ignored: tuple[str, ...]


@dataclass(frozen=True)
class _Hinted:
    hint: Annotated[str, Text(128)] | None = None


@dataclass(frozen=True)
class _Certificate:
    raw_bytes: Annotated[str, Text(65_536)] = field(metadata={"json": "rawBytes"})


@dataclass(frozen=True)
class _Chain:
    certificates: Annotated[tuple[_Certificate, ...], Count(1, MAX_CERTIFICATES)]


@dataclass(frozen=True)
class _Material:
    public_key: _Hinted | None = field(default=None, metadata={"json": "publicKey"})
    chain: _Chain | None = field(default=None, metadata={"json": "x509CertificateChain"})
    log_entries: Annotated[tuple[Json, ...], Count(0, 0)] = field(default=(), metadata={"json": "tlogEntries"})


@dataclass(frozen=True)
class _Bundle:
    media_type: Annotated[str, Text(128)] = field(metadata={"json": "mediaType"})
    material: Json = field(metadata={"json": "verificationMaterial"})
    envelope: Json = field(metadata={"json": "dsseEnvelope"})


@dataclass(frozen=True)
class _Resource:
    name: Annotated[str, Text(1100, "", 1)]
    algorithm: Annotated[str, Text(64)]
    digest: Sha256Hex


@dataclass(frozen=True)
class _Serialization:
    method: Annotated[str, Text(64)]
    hash_type: Annotated[str, Text(64)]
    allow_symlinks: bool
    ignore_paths: Annotated[tuple[Annotated[str, Text(1024)], ...], Count(0, 1024)] = ()
    shard_size: Json = None


@dataclass(frozen=True)
class _Predicate:
    serialization: _Serialization
    resources: Annotated[tuple[_Resource, ...], Count(1, MAX_FILES)]


@dataclass(frozen=True)
class _Digest:
    sha256: Sha256Hex


@dataclass(frozen=True)
class _Subject:
    name: Annotated[str, Text(255)]
    digest: _Digest


@dataclass(frozen=True)
class _Statement:
    type: Annotated[str, Text(128)] = field(metadata={"json": "_type"})
    subject: Annotated[tuple[_Subject, ...], Count(1, 1)]
    predicate_type: Annotated[str, Text(128)] = field(metadata={"json": "predicateType"})
    predicate: Json


def parse_bundle(data: bytes) -> Bundle:
    """FormatError `envelope-invalid` for bytes that are no bundle signed by a key or a certificate chain."""
    with _one_error():
        bundle = decode(_Bundle, _parse(data), "bundle")
        _expect("media type", MEDIA_TYPE, bundle.media_type)
        if isinstance(bundle.material, dict) and ("certificate" in bundle.material or bundle.material.get("tlogEntries")):
            _refuse(
                "it is of Sigstore's public service, whose log needs the internet; expected one by a key or a CA of one's own"
            )
        material = decode(_Material, bundle.material, "verificationMaterial")
        if (material.public_key is None) == (material.chain is None):
            _refuse("expected either publicKey or x509CertificateChain in verificationMaterial")
        envelope = parse_envelope(strictjson.canonical(bundle.envelope), STATEMENT_TYPE)
        # model-signing looks at the first of several only, so what the others say would be nobody's word.
        if len(envelope.signatures) != 1:
            _refuse(f"expected exactly one signature, found {len(envelope.signatures)}")
    certificates = tuple(_der(item.raw_bytes) for item in material.chain.certificates) if material.chain else ()
    return Bundle(envelope, material.public_key.hint if material.public_key else None, certificates)


def verify_bundle(bundle: Bundle, key: PublicKey) -> SignedModel:
    """What `key` signed; VerificationError `signature-invalid` when it did not, FormatError for a payload of another kind."""
    found = bundle.key_hint
    expected = hashlib.sha256(key.pem.encode("ascii")).hexdigest()
    if found and found != expected:
        raise _not_signed(f"expected key {expected} (SHA-256 of its PEM), found key {found}", expected, found)
    (signature,) = bundle.envelope.signatures
    signed = pae(bundle.envelope.payload_type, bundle.envelope.payload)
    # A signature in OpenSSH's form is one of a scaleoutd manifest, and nothing that model-signing makes.
    if len(signature.sig) > MAX_RAW_SIGNATURE_BYTES or not key.verify(signature.sig, signed):
        raise _not_signed(f"expected a signature by key {key.keyid}, found one that does not fit", key.keyid, "another signature")
    return _parse_statement(bundle.envelope.payload)


def _parse(data: bytes) -> Json:
    return strictjson.parse(data, max_bytes=MAX_ENVELOPE_BYTES, what="the signature", max_values=_MAX_VALUES)


def _parse_statement(payload: bytes) -> SignedModel:
    with _one_error():
        # protobuf's Struct knows no integers: shard_size is written as 1000000000.0.
        value = strictjson.parse(payload, max_bytes=MAX_ENVELOPE_BYTES, allow_floats=True, what="the statement")
        statement = decode(_Statement, value, "statement")
        _expect("statement", INTOTO_TYPE, statement.type)
        _expect("predicate type", PREDICATE_TYPE, statement.predicate_type)
        predicate = decode(_Predicate, statement.predicate, "predicate")
        _expect("hash type", "sha256", predicate.serialization.hash_type)
        (subject,) = statement.subject
        _check_subject(subject.digest.sha256, predicate.resources)
        files = _files(predicate)
    check_paths(sorted(files))
    kept = predicate.serialization
    return SignedModel(subject.name, subject.digest.sha256, kept.method, files, tuple(sorted(kept.ignore_paths)))


def _check_subject(expected: str, resources: Sequence[_Resource]) -> None:
    digest = hashlib.sha256()
    for resource in resources:
        digest.update(bytes.fromhex(resource.digest))
    _expect("digest of all files", expected, digest.hexdigest())


def _files(predicate: _Predicate) -> dict[str, tuple[Shard, ...]]:
    method, size = predicate.serialization.method, predicate.serialization.shard_size
    files: dict[str, list[Shard]] = {}
    if method == "files":
        for resource in predicate.resources:
            _expect("algorithm", "sha256", resource.algorithm)
            if resource.name in files:
                _refuse(f"{_plain(resource.name)} is listed twice")
            files[resource.name] = [Shard(0, None, resource.digest)]
    elif method == "shards":
        if isinstance(size, bool) or not isinstance(size, int | float) or size != int(size) or not 0 < size < 2**53:
            _refuse(f"expected a whole shard_size, found {_plain(str(size))}")
        for resource in predicate.resources:
            _expect("algorithm", f"sha256-sharded-{int(size)}", resource.algorithm)
            _add_shard(files, resource, int(size))
    else:
        _expect("serialization method", "files or shards", method)
    return {path: tuple(shards) for path, shards in files.items()}


def _add_shard(files: dict[str, list[Shard]], resource: _Resource, shard_bytes: int) -> None:
    match = _SHARD_NAME.fullmatch(resource.name)
    if match is None:
        _refuse(f"expected PATH:START:END, found {_plain(resource.name)}")
    path, start, end = match[1], int(match[2]), int(match[3])
    before = files.setdefault(path, [])
    reached = (before[-1].end or 0) if before else 0
    # Only the last may be shorter, and each begins where the one before it ends: no byte is left out or said twice.
    if start != reached or start % shard_bytes or not start < end <= start + shard_bytes:
        _refuse(f"expected a shard from byte {reached} of at most {shard_bytes} bytes, found {_plain(resource.name)}")
    before.append(Shard(start, end, resource.digest))


def _der(text: str) -> bytes:
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise _error("a certificate is not standard base64") from exc


def _expect(what: str, expected: str, found: str) -> None:
    if found != expected:
        raise _error(f"expected {what} {expected}, found {_plain(found)}", {"expected": expected, "found": _plain(found)})


def _plain(text: str) -> str:
    return text.encode("unicode_escape").decode("ascii")[:200]


@contextlib.contextmanager
def _one_error() -> Iterator[None]:
    """What strictjson, records and envelope refuse, said of a model's signature, with a command that helps here."""
    try:
        yield
    except FormatError as exc:
        if exc.hint == _HINT:
            raise
        raise _error(exc.message.removeprefix("cannot read ")) from exc


def _refuse(cause: str) -> NoReturn:
    raise _error(cause)


def _error(cause: str, facts: Mapping[str, str] | None = None) -> FormatError:
    return FormatError(f"cannot read the model signature: {cause}", code="envelope-invalid", hint=_HINT, facts=facts)


def _not_signed(cause: str, expected: str, found: str) -> VerificationError:
    return VerificationError(
        f"cannot accept the model signature: {cause}",
        code="signature-invalid",
        hint="Ask who signed for their public key, by another way than the model came, then `scaleoutctl verify` again.",
        facts={"expected": expected, "found": found},
    )
