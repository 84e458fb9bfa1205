# SPDX-License-Identifier: Apache-2.0
"""What comes from the network or lies beside it: tokens, answers of the API, directives of the combiner, certificates."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any, cast

from cryptography import x509
from google.protobuf.message import DecodeError

from scaleoutd.agent.api import Api, Origin
from scaleoutd.agent.der import certificate_facts, first_of_pem
from scaleoutd.agent.dialects.edge import directive_of
from scaleoutd.agent.intake import problem_of
from scaleoutd.agent.spool import SpooledTask
from scaleoutd.agent.tokencache import refresh_token_of
from scaleoutd.agent.tokens import Cached, claims_of, kind_of, parse_cache, serialise_cache, usable_expiry_s
from scaleoutd.core import records, strictjson
from scaleoutd.errors import FormatError
from scaleoutd.proto import edge_pb2 as edge
from tests.fuzz.target import Target, same


def _token(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    claims_of(text)
    kind_of(text)


def _claims(data: bytes) -> None:
    """The claims alone, in a token around them; what they say must lead to a cache that can be read again."""
    part = base64.urlsafe_b64encode(data).rstrip(b"=").decode()
    token = f"e30.{part}.x"
    claims = claims_of(token)
    kind_of(token)
    expires_s = usable_expiry_s(claims.get("exp"), 0, 1_790_000_000)
    cached = Cached("https://a:443", "ab" * 32, "c", "enrollment", token, token, expires_s)
    same(parse_cache(serialise_cache(cached)), cached, "the token file written and read")


def _token_file(data: bytes) -> None:
    cached = parse_cache(data)
    same(parse_cache(serialise_cache(cached)), cached, "the token file written and read")


def _token_cache(data: bytes) -> None:
    refresh_token_of(data, Path("c.json"))


class _Answering(Api):
    """The API with an answer instead of a network."""

    def __init__(self, answer: bytes) -> None:
        super().__init__(Origin("a", 443, ""), cast("Any", None))
        self._answer = answer

    def _exchange(self, path: str, body: bytes, headers: Any) -> tuple[int, bytes]:
        return 200, self._answer


def _api_answer(data: bytes) -> None:
    errors = []
    for call in (_assign, _enroll, _refresh):
        try:
            call(_Answering(data))
        except Exception as exc:  # noqa: BLE001 - sorted below
            errors.append(exc)
    for error in errors:
        if getattr(error, "code", "") not in ("transport-refused", "tls-required"):
            raise error
    if len(errors) == 3:
        raise errors[0]


def _assign(api: Api) -> None:
    found = api.assign("t", client_id="c", name="n", combiner="", client_version="1")
    # What a socket, TLS and an address are made of: whole, ASCII, and no more than a name can have.
    assert found.host.isascii() and 0 < len(found.host) <= 255
    found.host.encode("idna")


def _enroll(api: Api) -> None:
    tokens = api.enroll("t", "c", "n")
    f"Bearer {tokens.access_token}".encode("latin-1")
    assert tokens.access_token.isprintable() and len(tokens.access_token) <= 64 * 1024


def _refresh(api: Api) -> None:
    tokens = api.refresh("/api", "t")
    expires_s = usable_expiry_s(None, tokens.expires_in_s, 1_790_000_000)
    cached = Cached("https://a:443", "ab" * 32, "c", "user-refresh", tokens.access_token, tokens.refresh_token, expires_s)
    same(parse_cache(serialise_cache(cached)), cached, "the tokens of the answer written and read")


def _directive(data: bytes) -> None:
    answer = edge.CombinerDirective()
    try:
        answer.ParseFromString(data)
    except DecodeError as exc:
        raise FormatError(str(exc)) from exc  # as gRPC does: the call fails
    for task in answer.tasks:
        directive = directive_of(task)
        if problem_of(directive, "h:1") is not None:
            continue
        spooled = SpooledTask(
            directive.correlation_id, directive.type[:256], directive.model_id, directive.session_id, directive.round_id,
            "h:1", directive.data, directive.settings, 1, 2, directive.task,
        )  # fmt: skip
        written = strictjson.canonical(records.encode(spooled))
        same(records.decode(SpooledTask, strictjson.parse(written, max_bytes=1 << 24)), spooled, "the task written and read")


def _certificate(data: bytes) -> None:
    facts = certificate_facts(data)
    json.dumps([facts.serial, facts.subject]).encode()
    try:
        other = x509.load_der_x509_certificate(data)
        serial = other.serial_number
    except Exception:  # noqa: BLE001 - whatever it says
        return  # the library is stricter; here is only read what OpenSSL has verified
    if serial >= 0:
        same(int(facts.serial, 16), serial, "the serial number as the library reads it")


def _pem(data: bytes) -> None:
    der = first_of_pem(data)
    assert isinstance(der, bytes)


def _certificate_seeds() -> list[bytes]:
    from datetime import datetime

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import NameOID

    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "é, x"), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "#o ")])
    seeds = []
    for year in (2030, 2060):
        built = x509.CertificateBuilder(name, name, key.public_key(), 77, datetime(2026, 1, 1), datetime(year, 1, 1))
        seeds.append(built.sign(key, None).public_bytes(Encoding.DER))
    return seeds


def _pem_seeds() -> list[bytes]:
    body = base64.encodebytes(_certificate_seeds()[0])
    return [b"x\n-----BEGIN CERTIFICATE-----\n" + body + b"-----END CERTIFICATE-----\n"]


def _directive_seeds() -> list[bytes]:
    seeds = []
    for kind, key in (("ModelUpdate", "client_settings"), ("ModelValidation", "client_settings"), ("Prediction", "parameters")):
        data = json.dumps({key: {"lr": 0.1}, "x": 1})
        task = edge.TaskRequest(correlation_id="c", model_id="m", type=kind, data=data, session_id="s", round_id="1")
        seeds.append(edge.CombinerDirective(tasks=[task]).SerializeToString(deterministic=True))
    stop = edge.TaskRequest(correlation_id="c", status="INTERRUPTED")
    return [*seeds, edge.CombinerDirective(tasks=[stop, stop]).SerializeToString(deterministic=True)]


def _jwt(**claims: Any) -> bytes:
    part = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=")
    return b"eyJhbGciOiJub25lIn0." + part + b".c2ln"


_CACHED = Cached("https://a:443", "ab" * 32, "c", "client-refresh", "a.b.c", "d.e.f", 5)
_ANSWER = {
    "access_token": "a.b.c", "refresh_token": "d.e.f", "client_id": "c-1", "expires_in": 300, "public_hostname": "h.example",
    "host": "h", "port": 443, "grpc_secure": True,
}  # fmt: skip
_CACHE = b'{"access_token": "a", "refresh_token": "r", "expires_at": "2026-01-01T00:00:00+00:00", "updated_at": null}'
_DER = (
    b"\x30\x82",
    b"\x30\x80",
    b"\x06\x03\x55\x04\x03",
    b"\x17\x0d",
    b"\x18\x0f",
    b"\x1e\x02\xd8\x00",
    b"\x84\xff\xff\xff\xff",
    b"\xa0\x03",
)
_PEM_WORDS = (b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----", b"\n", b" " * 50, b"====")

TARGETS = (
    Target(
        "token",
        _token,
        lambda: [_jwt(role="enrollment", exp=5), _jwt(role="client_refresh"), _jwt(token_type="api_key")],
        frozenset({"token-invalid"}),
        (b".", b"eyJ", b"="),
    ),
    Target(
        "token-claims",
        _claims,
        lambda: [b'{"exp":1790000000,"role":"enrollment"}', b'{"exp":1e300}', b'{"token_type":"api_key"}'],
        frozenset({"token-invalid"}),
        (b'"exp":', b"1e308", b"-1"),
        json=True,
    ),
    Target("token-file", _token_file, lambda: [serialise_cache(_CACHED)], frozenset({"state-corrupt"}), json=True),
    Target("token-cache", _token_cache, lambda: [_CACHE], frozenset({"config-invalid"}), json=True),
    Target(
        "api-answer",
        _api_answer,
        lambda: [json.dumps(_ANSWER).encode()],
        frozenset({"transport-refused", "tls-required"}),
        (b'"host"', b'"expires_in":1e300', b"\\r\\n", b"." * 70, b"a" * 70),
        json=True,
    ),
    Target(
        "directive", _directive, _directive_seeds, frozenset({"record-invalid"}), (b"client_settings", b"\x0a\x05", b"{", b"}")
    ),
    Target("certificate", _certificate, _certificate_seeds, frozenset({"key-invalid"}), _DER),
    Target("certificate-pem", _pem, _pem_seeds, frozenset({"key-invalid"}), _PEM_WORDS),
)
