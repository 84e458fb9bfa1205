# SPDX-License-Identifier: Apache-2.0
"""Bundles as model-signing writes them, with any payload: what it would never sign, but somebody with a key could."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from scaleoutd.cli.modelsignature import INTOTO_TYPE, MEDIA_TYPE, PREDICATE_TYPE
from scaleoutd.core.envelope import STATEMENT_TYPE, pae

Edit = Callable[[dict[str, Any]], None]
VECTORS = Path(__file__).resolve().parents[2] / "vectors" / "model-signing"
KEY, OTHER_KEY, CA_KEY, MIDDLE_KEY = (ec.derive_private_key(number, ec.SECP256R1()) for number in (11, 12, 13, 14))
CODE_SIGNING, CLIENT_AUTH = ExtendedKeyUsageOID.CODE_SIGNING, ExtendedKeyUsageOID.CLIENT_AUTH
NOW = datetime.now(UTC).replace(tzinfo=None, microsecond=0)


def public_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def statement(digests: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Of (path, SHA-256) pairs."""
    together = hashlib.sha256(b"".join(bytes.fromhex(digest) for _, digest in digests)).hexdigest()
    return {
        "_type": INTOTO_TYPE,
        "subject": [{"name": "model", "digest": {"sha256": together}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": [".git"]},
            "resources": [{"name": path, "algorithm": "sha256", "digest": digest} for path, digest in digests],
        },
    }


def statement_of(files: Mapping[str, bytes]) -> dict[str, Any]:
    return statement([(path, hashlib.sha256(data).hexdigest()) for path, data in sorted(files.items())])


def sharded(value: dict[str, Any], names: Sequence[str], size: object = 4.0) -> dict[str, Any]:
    """The statement with shards of these names, all of one digest."""
    digest = hashlib.sha256(b"aaaa").hexdigest()
    result = statement([(name, digest) for name in names])
    result["predicate"]["serialization"] |= {"method": "shards", "shard_size": size}
    for resource in result["predicate"]["resources"]:
        resource["algorithm"] = "sha256-sharded-4"
    return {**value, **result}


def sign_payload(raw: bytes) -> bytes:
    """A bundle around these bytes, whatever they are."""
    return _bundle(raw, KEY, ())


def bundle(
    payload: dict[str, Any],
    key: ec.EllipticCurvePrivateKey = KEY,
    chain: Sequence[x509.Certificate] = (),
    edit: Edit | None = None,
) -> bytes:
    """The payload signed with `key`; `edit` changes the bundle afterwards."""
    return _bundle(json.dumps(payload, indent=2).encode(), key, chain, edit)


def _bundle(raw: bytes, key: ec.EllipticCurvePrivateKey, chain: Sequence[x509.Certificate], edit: Edit | None = None) -> bytes:
    der = [item.public_bytes(serialization.Encoding.DER) for item in chain]
    material: dict[str, Any] = {"publicKey": {"hint": hashlib.sha256(public_pem(key)).hexdigest()}}
    if chain:
        material = {"x509CertificateChain": {"certificates": [{"rawBytes": base64.b64encode(item).decode()} for item in der]}}
    signature = key.sign(pae(STATEMENT_TYPE, raw), ec.ECDSA(hashes.SHA256()))
    value = {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {**material, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(raw).decode(),
            "payloadType": STATEMENT_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }
    if edit is not None:
        edit(value)
    return json.dumps(value).encode()


def certificate(
    subject: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    is_ca: bool = False,
    path_length: int | None = None,
    days: tuple[int, int] = (-1, 1),
    extended: x509.ObjectIdentifier | None = None,
    more: tuple[x509.ExtensionType, ...] = (),
) -> x509.Certificate:
    """From `days[0]` to `days[1]` from now; `more` are critical extensions."""
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in (subject, issuer)]
    builder = x509.CertificateBuilder().subject_name(names[0]).issuer_name(names[1]).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(NOW + timedelta(days=days[0])).not_valid_after(NOW + timedelta(days=days[1]))
    builder = builder.add_extension(x509.BasicConstraints(ca=is_ca, path_length=path_length), critical=True)
    if extended is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([extended]), critical=False)
    for extension in more:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(issuer_key, hashes.SHA256())
