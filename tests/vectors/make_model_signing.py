# SPDX-License-Identifier: Apache-2.0
"""Makes tests/vectors/model-signing with model-signing itself; keys are made anew and not kept.

    tools/setup.sh bench
    .venv-model-signing/bin/python -m tests.vectors.make_model_signing

Run by that interpreter, which has no scaleoutd.  `cases.json` says what each signature is of: files as text, by path.
"""

from __future__ import annotations

import json
import tempfile
from datetime import datetime, timedelta
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

FOLDER = Path(__file__).parent / "model-signing"
PEM = serialization.Encoding.PEM
START, END = datetime(2026, 1, 1), datetime(2126, 1, 1)
FILES = {
    "config.json": '{"layers": 2}\n',
    "weights/part-1.bin": "0123456789" * 5,
    "weights/part-2.bin": "abc",
    "tokens.txt": "a\nb\n",
}


def certificate(subject: str, key: Any, issuer: str, issuer_key: Any, *, is_ca: bool) -> bytes:
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in (subject, issuer)]
    builder = x509.CertificateBuilder().subject_name(names[0]).issuer_name(names[1]).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(START).not_valid_after(END - timedelta(days=1))
    builder = builder.add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only"), False
    )
    builder = builder.add_extension(
        x509.KeyUsage(digital_signature=not is_ca, key_cert_sign=is_ca, crl_sign=is_ca, **usage), critical=True
    )
    if not is_ca:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(PEM)


def main() -> None:
    # Not by an import statement: the project's own interpreter has no such package, and no stubs of it.
    signing, hashing = import_module("model_signing.signing"), import_module("model_signing.hashing")
    FOLDER.mkdir(exist_ok=True)
    key, root, middle = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    with tempfile.TemporaryDirectory() as made:
        work = Path(made)
        for path, text in FILES.items():
            (work / "model" / path).parent.mkdir(parents=True, exist_ok=True)
            (work / "model" / path).write_text(text)
        plain = serialization.NoEncryption()
        (work / "key").write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, plain))
        (FOLDER / "signer.pub").write_bytes(key.public_key().public_bytes(PEM, spki))
        (FOLDER / "ca.pem").write_bytes(certificate("Hospital root", root, "Hospital root", root, is_ca=True))
        (work / "middle").write_bytes(certificate("Hospital models", middle, "Hospital root", root, is_ca=True))
        (work / "own").write_bytes(certificate("Model signer", key, "Hospital models", middle, is_ca=False))
        by_key = {"private_key": work / "key"}
        shards = hashing.Config().use_shard_serialization(shard_size=4)
        by_certificate = {"signing_certificate": work / "own", "certificate_chain": [work / "middle"], **by_key}
        for name, config in {
            "key": signing.Config().use_elliptic_key_signer(**by_key),
            "shards": signing.Config().use_elliptic_key_signer(**by_key).set_hashing_config(shards),
            "certificate": signing.Config().use_certificate_signer(**by_certificate),
        }.items():
            config.sign(work / "model", FOLDER / f"{name}.sig")
    cases = {"made_by": f"model-signing {metadata.version('model-signing')}", "files": FILES}
    (FOLDER / "cases.json").write_text(json.dumps(cases, indent=2) + "\n")


if __name__ == "__main__":
    main()
