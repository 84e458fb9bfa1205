# SPDX-License-Identifier: Apache-2.0
"""The REST side of Scaleout Edge and FEDn: enroll, refresh a token, be assigned to a combiner.

Rules (PROTOCOL.md section 1, points 1 and 2):
  1. HTTPS only.  One request for each connection; no redirect is followed, so a credential reaches the origin that the
     administrator named and no other.
  2. Answers are strict JSON of at most 64 KiB; unknown keys do no harm, the keys we use must have their type.
  3. CredentialError and ConfigError do not heal by waiting; TransportError does (429, 5xx, the network, 203).
"""

from __future__ import annotations

import http.client
import json
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from scaleoutd.agent import tls as tls_
from scaleoutd.agent.tls import Tls
from scaleoutd.core import strictjson
from scaleoutd.core.strictjson import Json
from scaleoutd.errors import ConfigError, CredentialError, FormatError, ScaleoutError, TransportError

TIMEOUT_S = 10.0
_HOST = re.compile(
    r"(?=.{1,253}\Z)(?:[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?|(?=[^:]*:)[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9_.-]{1,16})?)"
)
_TOKEN = re.compile(r"[\x21-\x7e]{1,16384}")  # what a header can carry (RFC 6750), and no longer than a token may be
MAX_ANSWER_BYTES = 64 * 1024
MAX_CLIENT_ID_CHARS = 256
ENROLL = "/api/v1/clients/enroll"
CLIENT_TOKEN = "/api/v1/clients/token"  # noqa: S105
USER_TOKEN = "/api/auth/refresh"  # noqa: S105
ADD = "/api/v1/clients/add"


@dataclass(frozen=True)
class Origin:
    """Where the API is.  Credentials belong to one origin."""

    host: str
    port: int
    prefix: str

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"https://{host}:{self.port}{self.prefix}"


@dataclass(frozen=True)
class Tokens:
    """An answer with tokens.  `client_id`, `refresh_token` are "" and `expires_in_s` 0 when the API left them out."""

    access_token: str
    refresh_token: str = ""
    client_id: str = ""
    expires_in_s: int = 0

    def __repr__(self) -> str:
        return f"Tokens(client_id={self.client_id!r})"  # a token must not reach a log by way of a repr


@dataclass(frozen=True)
class Assignment:
    """The combiner of this client, and the client id that counts from now on."""

    client_id: str
    host: str
    port: int


def parse_origin(url: str) -> Origin:
    """ConfigError `tls-required` for plain HTTP, `config-invalid` for what is no https URL."""
    try:
        parts = urlsplit(url if "://" in url else f"https://{url}")
        port = parts.port or 443
    except ValueError as exc:
        raise ConfigError(f"cannot use the API address {url[:256]!r}: {exc}"[:1024]) from exc
    if parts.scheme == "http":
        raise ConfigError(
            f"cannot use the API address {url[:256]}: it is plaintext, a token would be readable on the way",
            code="tls-required",
            hint="Use https://.",
        )
    if parts.scheme != "https" or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise ConfigError(f"cannot use the API address {url[:256]}: expected https://HOST[:PORT][/PREFIX]")
    if not is_host(parts.hostname):
        raise ConfigError(f"cannot use the API address {url[:256]!r}: its host is no name or address")
    return Origin(parts.hostname, port, parts.path.rstrip("/"))


def is_host(text: str) -> bool:
    """Whether a socket can be asked for it: its codec raises for a label of more than 63 characters or of none."""
    return bool(_HOST.fullmatch(text))


class Api:
    """One method for each call; see the module for what their errors mean."""

    def __init__(self, origin: Origin, tls: Tls, timeout_s: float = TIMEOUT_S, scheme: str = "Bearer") -> None:
        self.origin = origin
        self._scheme = scheme
        self._tls = tls
        self._timeout_s = timeout_s

    def enroll(self, enrollment_token: str, client_id: str, name: str) -> Tokens:
        body = {key: value for key, value in (("name", name), ("client_id", client_id)) if value}
        answer = self._post(ENROLL, body, enrollment_token)
        return Tokens(_token(answer, "access_token"), _token(answer, "refresh_token"), _client_id(answer))

    def refresh(self, path: str, refresh_token: str) -> Tokens:
        """`path` is CLIENT_TOKEN or USER_TOKEN."""
        answer = self._post(path, {"refresh_token": refresh_token, "role": "client"}, "")
        expires = answer.get("expires_in")
        return Tokens(
            _token(answer, "access_token", "access"),
            _token(answer, "refresh_token", "refresh", required=False),
            expires_in_s=int(expires) if isinstance(expires, int | float) and not isinstance(expires, bool) else 0,
        )

    def assign(self, access_token: str, *, client_id: str, name: str, combiner: str, client_version: str) -> Assignment:
        """Where to go.  TransportError `tls-required` when the API wants plaintext to the combiner."""
        body = {
            "name": name,
            "client_id": client_id,
            "preferred_combiner": combiner,
            "package": "local",
            "client_version": client_version,
        }
        answer = self._post(ADD, body, access_token)
        if answer.get("grpc_secure") is False:
            raise TransportError(
                "cannot connect to the combiner: the API says grpc_secure=false, and plaintext is not spoken",
                code="tls-required",
                hint="Give the combiner a certificate; scaleoutd has no switch for plaintext.",
            )
        port = answer.get("port")
        if not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 65536:
            raise _bad_answer(ADD, "port is missing or no port number")
        host = _text(answer, "public_hostname", "internal_hostname", "host")
        if not is_host(host):
            raise _bad_answer(ADD, f"its host {host[:80]!r} is no name or address")
        return Assignment(_client_id(answer, required=False) or client_id, host, port)

    def _post(self, path: str, body: Mapping[str, Json], bearer: str) -> dict[str, Json]:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Connection": "close"}
        if bearer:
            headers["Authorization"] = f"{self._scheme} {bearer}"
        status, data = self._exchange(self.origin.prefix + path, json.dumps(body).encode(), headers)
        if status != 200:
            raise _refusal(path, status)
        try:
            answer = strictjson.parse(data, max_bytes=MAX_ANSWER_BYTES, allow_floats=True, what=f"the answer of {path}")
        except FormatError as exc:
            raise _bad_answer(path, exc.message) from exc
        if not isinstance(answer, dict):
            raise _bad_answer(path, "it is not a JSON object")
        return answer

    def _exchange(self, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        origin = self.origin
        where = f"{origin.host}:{origin.port}"
        connection = http.client.HTTPConnection(origin.host, origin.port, timeout=self._timeout_s)
        connection.sock = self._tls.dial(origin.host, origin.port, "http/1.1", self._timeout_s)
        try:
            connection.request("POST", path, body, dict(headers))
            response = connection.getresponse()
            return response.status, response.read(MAX_ANSWER_BYTES + 1)
        except (http.client.RemoteDisconnected, ConnectionError, ssl.SSLError) as exc:
            # ssl.SSLError is an OSError too; RemoteDisconnected is a ConnectionError: the answer had not begun.
            raise tls_.early_end_error(exc if isinstance(exc, ssl.SSLError) else None, where, self._tls.has_certificate) from exc
        except TimeoutError as exc:
            raise TransportError(f"cannot use the API {where}: no answer in {self._timeout_s:.0f} s") from exc
        except (OSError, http.client.HTTPException) as exc:
            raise TransportError(f"cannot use the API {where}: {exc or type(exc).__name__}") from exc
        finally:
            connection.close()


def _refusal(path: str, status: int) -> ScaleoutError:
    what = f"the API answered {status}"
    if status == 429 or status >= 500:
        return TransportError(f"cannot use {path}: {what}", hint="It is tried again.")
    if 300 <= status < 400:
        return TransportError(
            f"cannot use {path}: {what}, and redirects are not followed",
            code="transport-refused",
            hint="Give the API's own address to --api-url.",
        )
    if path == ADD and status == 203:
        return TransportError(f"cannot use {path}: {what}: the compute package is missing", code="transport-refused")
    if path == ADD and status != 401:
        return CredentialError(
            f"cannot be assigned to a combiner: {what}", code="assignment-refused", hint="Check name, client id and version."
        )
    if status in (400, 401, 403, 404, 406, 422):
        return CredentialError(
            f"cannot use the token at {path}: {what}", code="token-refused", hint="Get a new token and give it to --token-file."
        )
    return TransportError(f"cannot use {path}: {what}", code="transport-refused")


def _text(answer: Mapping[str, Json], *keys: str, required: bool = True) -> str:
    """The first of `keys` that is a non-empty string."""
    for key in keys:
        value = answer.get(key)
        if isinstance(value, str) and value:
            return value
    if required:
        raise _bad_answer(" or ".join(keys), "it is missing or no text")
    return ""


def _token(answer: Mapping[str, Json], *keys: str, required: bool = True) -> str:
    text = _text(answer, *keys, required=required)
    if text and not _TOKEN.fullmatch(text):
        raise _bad_answer(" or ".join(keys), f"its {len(text)} characters are no token")
    return text


def _client_id(answer: Mapping[str, Json], required: bool = True) -> str:
    text = _text(answer, "client_id", required=required)
    if len(text) > MAX_CLIENT_ID_CHARS or not text.isprintable():
        raise _bad_answer("client_id", f"its {len(text)} characters are no id")
    return text


def _bad_answer(what: str, cause: str) -> TransportError:
    return TransportError(f"cannot use the API's answer: {what}: {cause}", code="transport-refused", hint="Is this the API?")
