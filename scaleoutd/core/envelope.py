# SPDX-License-Identifier: Apache-2.0
"""DSSE envelopes, version 1 (secure-systems-lab/dsse, protocol.md and envelope.md).

Rules:
  1. What is signed is PAE(type, payload) over the payload's exact bytes; nothing is parsed before a signature fits.
  2. Base64 is standard, padded and canonical; unknown or repeated fields are refused.
  3. The threshold counts distinct public keys.  `keyid` is a hint of the signer and decides nothing.
  4. A payload type belongs to one kind of document: a signature on a manifest is none on a trust root.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from scaleoutd.core import strictjson
from scaleoutd.core.keys import MAX_SIGNATURE_BYTES, PrivateKey, PublicKey, public_key_of, sign
from scaleoutd.core.records import Count, Text, decode, encode
from scaleoutd.errors import FormatError, VerificationError

STATEMENT_TYPE = "application/vnd.in-toto+json"
TRUST_ROOT_TYPE = "application/vnd.scaleoutd.trust-root+json"

MAX_ENVELOPE_BYTES = 64 * 1024 * 1024
MAX_SIGNATURES = 32
_MAX_VALUES = 256  # no signature is proven yet: 64 MiB of empty arrays would need more than a gigabyte


@dataclass(frozen=True)
class Signature:
    sig: bytes
    keyid: str = ""  # a hint, never trusted


@dataclass(frozen=True)
class Envelope:
    payload: bytes
    payload_type: str
    signatures: tuple[Signature, ...]


@dataclass(frozen=True)
class VerifiedPayload:
    """Bytes with valid signatures of `signers`: distinct keys, in the order of their ids."""

    payload: bytes
    payload_type: str
    signers: tuple[PublicKey, ...]


@dataclass(frozen=True)
class _SignatureOnWire:
    sig: Annotated[str, Text(2048, "", 4)]
    keyid: Annotated[str, Text(128)] = ""


@dataclass(frozen=True)
class _EnvelopeOnWire:
    payload: Annotated[str, Text(MAX_ENVELOPE_BYTES)]
    payload_type: Annotated[str, Text(128)] = field(metadata={"json": "payloadType"})
    signatures: Annotated[tuple[_SignatureOnWire, ...], Count(0, MAX_SIGNATURES)]


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding; lengths are in bytes."""
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def parse_envelope(data: bytes, payload_type: str = STATEMENT_TYPE, *, unsigned: bool = False) -> Envelope:
    """FormatError `envelope-invalid` when the bytes are no envelope of exactly this payload type.

    `unsigned`: one that waits for its first signature is one too.
    """
    try:
        value = strictjson.parse(data, max_bytes=MAX_ENVELOPE_BYTES, what="the envelope", max_values=_MAX_VALUES)
        wire = decode(_EnvelopeOnWire, value, "envelope")
    except FormatError as exc:
        raise _refuse(exc.message.partition(": ")[2] or exc.message) from exc
    if not wire.signatures and not unsigned:
        raise _refuse("it has no signature")
    if wire.payload_type != payload_type:
        raise _refuse(f"expected payload type {payload_type}, found {wire.payload_type!r}")
    signatures = tuple(
        Signature(_base64(item.sig, f"signatures[{index}].sig"), item.keyid) for index, item in enumerate(wire.signatures)
    )
    return Envelope(_base64(wire.payload, "payload"), wire.payload_type, signatures)


def serialise_envelope(envelope: Envelope) -> bytes:
    """Canonical JSON bytes of the envelope with a newline at the end."""
    wire = _EnvelopeOnWire(
        payload=base64.b64encode(envelope.payload).decode("ascii"),
        payload_type=envelope.payload_type,
        signatures=tuple(
            _SignatureOnWire(base64.b64encode(item.sig).decode("ascii"), item.keyid) for item in envelope.signatures
        ),
    )
    return strictjson.canonical(encode(wire)) + b"\n"


def sign_payload(payload: bytes, payload_type: str, private_keys: Sequence[PrivateKey]) -> Envelope:
    """A new envelope with one signature for each key."""
    envelope = Envelope(payload, payload_type, ())
    for private_key in private_keys:
        envelope = add_signature(envelope, private_key)
    return envelope


def add_signature(envelope: Envelope, private_key: PrivateKey) -> Envelope:
    """The same payload with one signature more; an earlier one with the same key id is replaced."""
    return with_signature(envelope, sign(private_key, to_sign(envelope)), public_key_of(private_key))


def to_sign(envelope: Envelope) -> bytes:
    """The bytes that each signer signs."""
    return pae(envelope.payload_type, envelope.payload)


def with_signature(envelope: Envelope, sig: bytes, key: PublicKey) -> Envelope:
    """As `add_signature`, for a signature that was made elsewhere; VerificationError `signature-invalid` when it does not fit."""
    if not key.verify(sig, to_sign(envelope)):
        raise VerificationError(
            f"cannot add the signature of key {key.keyid}: it does not fit these bytes",
            code="signature-invalid",
            hint="Sign the file that `--request` wrote, unchanged, with this key.",
        )
    kept = tuple(item for item in envelope.signatures if item.keyid != key.keyid)
    return Envelope(envelope.payload, envelope.payload_type, (*kept, Signature(sig, key.keyid)))


def verify_envelope(envelope: Envelope, keys: Iterable[PublicKey], threshold: int) -> VerifiedPayload:
    """The payload, if at least `threshold` (≥ 1) distinct keys of `keys` signed it; else `signature-threshold`."""
    if threshold < 1:
        raise ValueError("a threshold is at least 1")
    trusted = {key.keyid: key for key in keys}
    signed = pae(envelope.payload_type, envelope.payload)
    signers: dict[str, PublicKey] = {}
    for signature in envelope.signatures:
        if len(signature.sig) > MAX_SIGNATURE_BYTES:
            continue
        # The hint only decides which key is tried first.
        for key in sorted(trusted.values(), key=lambda key: key.keyid != signature.keyid):
            if key.keyid not in signers and key.verify(signature.sig, signed):
                signers[key.keyid] = key
                break
    if len(signers) < threshold:
        raise VerificationError(
            f"cannot accept the signatures: expected {threshold} of distinct trusted keys, found {len(signers)} among"
            f" {len(envelope.signatures)} signature(s)",
            code="signature-threshold",
            hint="Let another holder of a trusted key run `scaleoutctl sign --add`.",
        )
    return VerifiedPayload(envelope.payload, envelope.payload_type, tuple(signers[keyid] for keyid in sorted(signers)))


def _base64(text: str, where: str) -> bytes:
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise _refuse(f"{where} is not standard base64") from exc
    # "QQ==" and "QR==" decode to the same byte: only one text may stand for one value.
    if base64.b64encode(data).decode("ascii") != text:
        raise _refuse(f"{where} is not canonical base64")
    return data


def _refuse(cause: str) -> FormatError:
    return FormatError(f"cannot read the envelope: {cause}", code="envelope-invalid", hint="Sign again with `scaleoutctl sign`.")
