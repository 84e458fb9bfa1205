# SPDX-License-Identifier: Apache-2.0
"""What the embedded combiner reads: models of nodes, calls with tokens, certificate requests, commands, metrics."""

from __future__ import annotations

import base64
import functools
import json
from typing import Any, cast

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from scaleoutd.cli.combiner import parse_settings
from scaleoutd.cli.training import Order, failure_in_words, metrics_in_words
from scaleoutd.devcombiner import container, grpc_service, npz, tokens
from scaleoutd.devcombiner.board import Board
from scaleoutd.devcombiner.ca import CertificateAuthority
from scaleoutd.devcombiner.faults import Faults
from scaleoutd.devcombiner.rest import Assignment, RestApi
from scaleoutd.devcombiner.tokens import ENROLLMENT, TokenOffice
from scaleoutd.errors import ConfigError, FormatError
from tests.fuzz.target import Target, same
from tests.fuzz.targets.scratch import scratch_folder
from tests.unit.step import models

MAX_BYTES = 1 << 20
_SECRET = b"k" * 32


def _container(data: bytes) -> None:
    found = container.read_container(data, max_weights_bytes=MAX_BYTES)
    assert found.legacy or len(found.weights) <= MAX_BYTES
    if not found.legacy:
        written = container.write_container(found.model_id, found.weights, helper_type=found.helper_type)
        same(container.read_container(written, max_weights_bytes=MAX_BYTES), found, "the container written and read")


def _npz(data: bytes) -> None:
    arrays = npz.read_npz(data, max_bytes=MAX_BYTES)
    for one in arrays.values():
        one.is_finite
    again = npz.read_npz(npz.write_npz(arrays))
    same([(name, one.kind, one.shape) for name, one in again.items()], [(n, a.kind, a.shape) for n, a in arrays.items()], "npz")
    same([one.values.tobytes() for one in again.values()], [one.values.tobytes() for one in arrays.values()], "the numbers")


def _npy(data: bytes) -> None:
    one = npz.read_npy(data)
    same(npz.read_npy(npz.write_npy(one)).values.tobytes(), one.values.tobytes(), "the numbers written and read")


def _rest(data: bytes) -> None:
    """A body under each path, with a token that is good."""
    api, bearer = _api()
    statuses = []
    for path in ("/api/v1/clients/enroll", "/api/v1/clients/token", "/api/auth/refresh", "/api/v1/clients/add"):
        status, answer, _, client_id = api.answer(path, bearer[path.endswith("add")], data)
        json.dumps(answer).encode()
        client_id.encode()
        statuses.append(status)
    assert set(statuses) <= {200, 203, 400, 401}
    if set(statuses) <= {400, 401}:
        raise FormatError("cannot read the request", code="json-invalid")


@functools.cache
def _api() -> tuple[RestApi, tuple[str, str]]:
    office = TokenOffice(access_lifetime_s=10**6)
    api = RestApi(Board(), office, Faults(), Assignment("h.example", 443))
    now_s = 2_000_000_000
    return api, (office.mint(ENROLLMENT, "", now_s), office.mint(tokens.ACCESS, "c-1", now_s))


def _token(data: bytes) -> None:
    """As it came, and with its first two parts signed."""
    text = data.decode("utf-8", "replace")
    head, _, body = text.partition(".")
    claims = tokens.verify(f"{head}.{body.partition('.')[0]}.{_mac(head, body.partition('.')[0])}", _SECRET)
    assert isinstance(claims, dict)


def _claims(data: bytes) -> None:
    head, body = (base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (b'{"alg":"HS256"}', data))
    tokens.verify(f"{head}.{body}.{_mac(head, body)}", _SECRET)


def _mac(head: str, body: str) -> str:
    try:
        return tokens._encode(tokens._mac(f"{head}.{body}", _SECRET))
    except UnicodeEncodeError:
        return "AA"


def _request(data: bytes) -> None:
    pem = data if data.startswith(b"-----BEGIN") else _armoured(data)
    certificate = x509.load_pem_x509_certificate(_authority().certify_client(pem))
    assert certificate.issuer != certificate.subject


def _armoured(der: bytes) -> bytes:
    return b"-----BEGIN CERTIFICATE REQUEST-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE REQUEST-----\n"


class _Aborted(Exception):
    pass


class _Context:
    """What a servicer does with a call that it refuses."""

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        assert code is grpc.StatusCode.INVALID_ARGUMENT and len(details) <= 4096
        raise _Aborted


def _meta(data: bytes) -> None:
    """The JSON of an update and of a validation, and what a person reads of it."""
    context = cast("grpc.ServicerContext", _Context())
    try:
        value = grpc_service._json_object(data.decode("utf-8", "replace"), context)
        examples = grpc_service.examples_of(value, context)
    except _Aborted as exc:
        raise FormatError("cannot take the message", code="json-invalid") from exc
    assert examples > 0
    f"{float(examples)}"
    metrics_in_words([value, value])


def _command(data: bytes) -> None:
    """A line of the control socket, and a report's words."""
    text = data.decode("utf-8", "replace")
    failure_in_words(f"FAILED {text}")
    try:
        Order.of(json.loads(text))
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise ConfigError("cannot do what was asked", code="config-invalid") from exc


def _set(data: bytes) -> None:
    found = parse_settings((data.decode("utf-8", "replace"),))
    json.dumps(found).encode()


@functools.cache
def _authority() -> CertificateAuthority:
    with scratch_folder({}) as folder:
        return CertificateAuthority(folder)


def _request_seeds() -> list[bytes]:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "é, x")])
    key = ec.derive_private_key(11, ec.SECP256R1())
    asked = x509.CertificateSigningRequestBuilder(name).sign(key, hashes.SHA256())
    return [asked.public_bytes(Encoding.DER), asked.public_bytes(Encoding.PEM)]


def _npz_seeds() -> list[bytes]:
    arrays = {"0": npz.flat("f4", (2, 1), [1.0, 2.0]), "b": npz.flat("i8", (), [3])}
    return [npz.write_npz(arrays), npz.write_npz(arrays, deflate=True), models.npz({"c": models.npy(">f8", (1,), bytes(8))})]


def _container_seeds() -> list[bytes]:
    weights = _npz_seeds()[0]
    return [container.write_container("m", weights), container.write_container("m", weights, deflate=True), weights]


def _update() -> bytes:
    return json.dumps({"training_metadata": {"num_examples": 3}, "accuracy": 0.5, "n": 2}).encode()


_ZIP = (b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"\x0c\x00", b"\x0e\x00", b"\x08\x00", b"\xff\xff\xff\xff")
_NPY = (b"'descr': '<f4'", b"True", b"'|O'", b"(2,)", b"()", b"\x93NUMPY\x01\x00", b"9" * 300 + b",", b"(" * 200, b"-" * 200)
_INVALID = frozenset({"container-invalid"})
_ORDER: dict[str, Any] = {"rounds": 1, "nodes": 2, "seed": "", "settings": {}, "timeout_s": 5.0}
_DEEP = (b"[" * 2000, b'{"a":' * 2000, b"9" * 5000, b"Infinity", b"NaN", b"1e999", b"1" + b"0" * 400)

TARGETS = (
    Target("combiner-container", _container, _container_seeds, _INVALID, (*_ZIP, b'"_version"')),
    Target("combiner-npz", _npz, _npz_seeds, _INVALID, (*_ZIP, *_NPY)),
    Target("combiner-npy", _npy, lambda: [npz.write_npy(npz.flat("f4", (2, 1), [1.0, 2.0]))], _INVALID, _NPY),
    Target(
        "combiner-rest",
        _rest,
        lambda: [b'{"client_id":"c-1","name":"n"}', b'{"refresh_token":"a.b.c"}'],
        frozenset({"json-invalid"}),
        _DEEP,
        json=True,
    ),
    Target(
        "combiner-token", _token, lambda: [tokens.sign({"role": "client"}, _SECRET).encode()], frozenset({"token-refused"}), _DEEP
    ),
    Target("combiner-claims", _claims, lambda: [b'{"role":"client","exp":5}'], frozenset({"token-refused"}), _DEEP, json=True),
    Target("combiner-request", _request, _request_seeds, frozenset({"key-invalid"})),
    Target("combiner-meta", _meta, lambda: [_update()], frozenset({"json-invalid"}), _DEEP, json=True),
    Target("combiner-order", _command, lambda: [json.dumps(_ORDER).encode()], frozenset({"config-invalid"}), _DEEP, json=True),
    Target("combiner-set", _set, lambda: [b"epochs=8", b"a=b"], frozenset({"config-invalid"}), _DEEP),
)
