# SPDX-License-Identifier: Apache-2.0
"""Certificates and keys that a CA or a person hands over, and what a step prints."""

from __future__ import annotations

import base64
import functools
import warnings
from collections.abc import Callable
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from scaleoutd.cli import certificates
from scaleoutd.cli.denials import SandboxFacts, Witness
from scaleoutd.cli.keygen import read_private_key, read_public_key
from scaleoutd.cli.terminal import escape
from scaleoutd.core.keys import PublicKey, sign
from scaleoutd.core.policy import development_policy
from scaleoutd.ipc.doors import TaskEnded
from tests.fuzz.target import Target, same
from tests.fuzz.targets.scratch import scratch_file
from tests.unit.core.authenticator import SshSigner
from tests.unit.core.trust_samples import ALICE

_NOW = datetime(2026, 6, 1)
_FAR = datetime(2090, 1, 1)
_BEFORE = datetime(2026, 1, 1)
_KEY = ec.derive_private_key(11, ec.SECP256R1())
_CA_KEY = ec.derive_private_key(12, ec.SECP256R1())


def _quiet(parse: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """cryptography warns of odd serial numbers and versions, through a class that is no DeprecationWarning."""

    def run(data: bytes) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parse(data)

    return run


def _pair(data: bytes) -> None:
    """The PEM file; the key is the right one, so that the fuzzer comes behind it."""
    pair = certificates.load_pair(data, _pem_of(_KEY))
    _look(pair)


def _der(data: bytes) -> None:
    """A certificate's DER in PEM that is right, as leaf, as link of the chain and as CA."""
    pem = _armoured(data)
    (certificate,) = certificates.load_certificates(pem, "the certificate")
    certificates.fingerprint(certificate)
    if certificates.belongs(pem, _pem_of(_KEY)):
        _look(certificates.load_pair(pem, _pem_of(_KEY)))
        return
    certificates.check_authorities([certificate], _NOW)
    pair = certificates.Pair(_issued()[0], (certificate,), _pem_of(_KEY))
    certificates.check_pair(pair, [certificate, *_issued()], _NOW)


def _look(pair: certificates.Pair) -> None:
    certificates.check_pair(pair, _issued(), _NOW)
    pair.certificate.subject.rfc4514_string().encode()


def _key(data: bytes) -> None:
    key = certificates.load_key(data)
    assert certificates.public_bytes(key.public_key())


def _der_key(data: bytes) -> None:
    """A key's DER in PEM that is right, by both readers."""
    kind = b"PRIVATE KEY" if b"\x02\x01\x00" in data[:8] else b"EC PRIVATE KEY"
    pem = b"-----BEGIN " + kind + b"-----\n" + base64.encodebytes(data) + b"-----END " + kind + b"-----\n"
    with scratch_file(pem) as path:
        sign(read_private_key(path), b"x")
    _key(pem)


def _public(data: bytes) -> None:
    with scratch_file(data) as path:
        read_public_key(path).verify(data[:64], b"")


def _printed(data: bytes) -> None:
    """A step's output as a terminal hears it; what is told of it is short, and safe to print."""
    told: list[str] = []
    witness = Witness(_facts(), lambda text, hint: told.extend((text, hint)))
    for line in data.split(b"\n"):
        witness.line(escape(line[:4096].decode("utf-8", "replace")))
    witness.ended(TaskEnded("train", "r1", "limit-memory", denied={"socket": 3, "ptrace": 1}))
    for text in told:
        assert len(text) <= 3 * 4096, len(text)
        same(escape(text), text, "what is told, escaped")


@functools.cache
def _facts() -> SandboxFacts:
    return SandboxFacts.of(development_policy("/srv/project", "/usr/bin/python3", {"d": "/srv/data"}, "demo"))


def _pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _armoured(der: bytes) -> bytes:
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"


@functools.cache
def _issued() -> tuple[x509.Certificate, x509.Certificate]:
    """A client's certificate and its CA's."""
    top = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CA")])
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "é, x"), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "#o ")])
    client = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    leaf = x509.CertificateBuilder(top, name, _KEY.public_key(), 77, _BEFORE, _FAR).add_extension(client, critical=False)
    root = x509.CertificateBuilder(top, top, _CA_KEY.public_key(), 1, _BEFORE, _FAR)
    root = root.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return leaf.sign(_CA_KEY, hashes.SHA256()), root.sign(_CA_KEY, hashes.SHA256())


def _der_seeds() -> list[bytes]:
    leaf, root = _issued()
    return [root.public_bytes(Encoding.DER), leaf.public_bytes(Encoding.DER)]


def _chain_seeds() -> list[bytes]:
    leaf, root = (one.public_bytes(Encoding.PEM) for one in _issued())
    return [leaf, leaf + root]


def _key_seeds() -> list[bytes]:
    keys = (_KEY, Ed25519PrivateKey.from_private_bytes(bytes(32)), rsa.generate_private_key(65537, 2048))
    return [key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) for key in keys]


def _der_key_seeds() -> list[bytes]:
    pkcs8 = [
        key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        for key in (_KEY, Ed25519PrivateKey.from_private_bytes(bytes(32)))
    ]
    return [*pkcs8, _KEY.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())]


_PRINTED = rb"""Traceback (most recent call last):
  File "/project/train.py", line 41, in <module>
    open('/data/x')
FileNotFoundError: [Errno 2] No such file or directory: '/data/x'
Traceback (most recent call last):
  File "/store/0000000000000000000000000000000000000000000000000000000000000000/a/b.py", line 3, in f
  File "/usr/lib/python3.11/subprocess.py", line 1901, in _execute_child
FileNotFoundError: [Errno 2] No such file or directory: 'git'
sh: 1: curl: not found
ModuleNotFoundError: No module named 'numpy'
requests.exceptions.ConnectionError: Max retries exceeded with url: /
OSError: [Errno 30] Read-only file system: '/project/out'
MemoryError
RuntimeError: No CUDA GPUs are available /dev/nvidia0
EOFError: EOF when reading a line
"""
_LINES = (
    b"No such file or directory: '/", b"No such file or directory: b'", b"Permission denied: '/etc/x'", b"'", b"\n", b'File "',
    b'", line 9', b"Traceback (most recent call last)", b"Error", b"/" * 300, b"A" * 300, b"_execute_child", b"sh: 1: ",
    b": not found",
    b"\x1b[31m", b"/root/x", b"/proc/self/fd/9/x", b"/project/", b"/store/", b"..", b"/dev/null/x", b"~", b"\xe2\x80\xae",
)  # fmt: skip
_DER = (
    b"\x30\x82", b"\x06\x03\x55\x1d\x25", b"\x06\x03\x55\x1d\x13", b"\x17\x0d", b"\x18\x0f", b"\x06\x03\x2b\x65\x70",
    b"\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07", b"\x06\x05\x2b\x81\x04\x00\x0a", b"\x05\x00", b"\x02\x01\x00", b"\x03\x01",
)  # fmt: skip
_PEM = (b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----", b"-----BEGIN PRIVATE KEY-----", b"\n", b"====")
_INVALID = frozenset({"client-certificate-invalid"})

TARGETS = (
    Target("client-certificate", _quiet(_pair), _chain_seeds, _INVALID, _PEM),
    Target("client-certificate-der", _quiet(_der), _der_seeds, _INVALID, _DER),
    Target("client-key", _quiet(_key), _key_seeds, _INVALID, _PEM),
    Target("private-key", _quiet(_der_key), _der_key_seeds, frozenset({*_INVALID, "key-invalid"}), _DER),
    Target(
        "public-key-file",
        _quiet(_public),
        lambda: [SshSigner(ALICE, None).public_line.encode(), PublicKey.of(_KEY.public_key()).pem.encode()],
        frozenset({"key-invalid", "config-invalid"}),
        (b"ssh-", b"ecdsa-", b"sk-", b"-----BEGIN PUBLIC KEY-----", b"PRIVATE KEY"),
    ),
    Target("denials", _printed, lambda: [_PRINTED], frozenset(), _LINES),
)
