# SPDX-License-Identifier: Apache-2.0
"""Tokens: which kind one is, where it is redeemed, and how a rotated one survives a crash.

Rules (PROTOCOL.md section 1, point 1; RFC 9700 section 4.14.2):
  1. The kind is read from claims that nobody here can verify: it only chooses the address.  An api_key is refused, it
     belongs to a person.
  2. What the API answers is written (atomic replacement, fsync) before it is used for anything: a rotated refresh token
     that is only in memory is a lost enrollment after a crash.
  3. A cached token goes to the origin that issued it.
  4. A new access token is asked for 30 s before the old one ends.  A refusal is permanent; everything else is tried again
     after 10 s, and the old token is used as long as it lives.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from scaleoutd.agent.api import CLIENT_TOKEN, USER_TOKEN, Api, Tokens
from scaleoutd.core import records, strictjson
from scaleoutd.core.records import Text
from scaleoutd.core.strictjson import Json
from scaleoutd.durable import replace_file, storage_errors
from scaleoutd.errors import ConfigError, CredentialError, FormatError, StorageError, TransportError

Kind = Literal["enrollment", "client-refresh", "user-refresh"]
RENEW_BEFORE_S = 30.0
COOL_DOWN_S = 10.0
DEFAULT_LIFETIME_S = 300
LATEST_S = 253_402_300_799  # 9999-12-31, the last date that the official client's cache can hold
MAX_TOKEN_BYTES = 16 * 1024


@dataclass(frozen=True)
class Cached:
    """The token file.  `source_sha256` tells which token it grew from: another one given later takes its place."""

    origin: str
    source_sha256: str
    client_id: str
    kind: Kind
    access_token: Annotated[str, Text(MAX_TOKEN_BYTES)]
    refresh_token: Annotated[str, Text(MAX_TOKEN_BYTES)]
    expires_at_s: int

    def __repr__(self) -> str:
        return f"Cached(origin={self.origin!r}, client_id={self.client_id!r}, kind={self.kind!r})"


def kind_of(token: str) -> Kind:
    """The kind of a token; CredentialError `token-invalid` for an api_key and for what is no JWT."""
    claims = claims_of(token)
    if claims.get("token_type") == "api_key":
        raise _invalid("it is an API key, which is a person's", "Make an enrollment token for this client.")
    if claims.get("role") == "enrollment":
        return "enrollment"
    return "client-refresh" if claims.get("role") == "client_refresh" else "user-refresh"


def parse_cache(data: bytes) -> Cached:
    """The token file; StorageError `state-corrupt` when it is damaged."""
    try:
        return records.decode(Cached, strictjson.parse(data, max_bytes=4 * MAX_TOKEN_BYTES, what="the token file"))
    except FormatError as exc:
        raise StorageError(
            f"cannot use the token file: {exc.message}", code="state-corrupt", hint="Remove it and give a new token."
        ) from exc


def serialise_cache(cached: Cached) -> bytes:
    return strictjson.canonical(records.encode(cached))


def usable_expiry_s(expires: Json, lifetime_s: int, now_s: int) -> int:
    """Unix seconds: the claim `exp`, else after the lifetime that the API named, else after the usual one.

    Within what a date can be (tokencache.py writes one): the number is the server's and may be 1e300.
    """
    if isinstance(expires, int | float) and not isinstance(expires, bool):
        return min(max(int(expires), 0), LATEST_S)
    return min(now_s + (max(lifetime_s, 0) or DEFAULT_LIFETIME_S), LATEST_S)


def claims_of(token: str) -> dict[str, Json]:
    """The unverified claims of a JWT (RFC 7519)."""
    parts = token.split(".")
    if len(parts) != 3 or len(token) > MAX_TOKEN_BYTES or not token.isascii():
        raise _invalid("it is no JWT")
    try:
        data = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        claims = strictjson.parse(data, max_bytes=MAX_TOKEN_BYTES, allow_floats=True, what="the claims of the token")
    except (binascii.Error, FormatError) as exc:
        raise _invalid("its claims are no JSON") from exc
    if not isinstance(claims, dict):
        raise _invalid("its claims are no JSON object")
    return claims


class TokenKeeper:
    """Hands out access tokens; safe for several threads.

    `given` is the token of the command line ("" when the cache must do).  `on_saved` is called when new tokens are durable,
    `on_renewed` after that.
    """

    def __init__(
        self,
        api: Api,
        path: Path,
        given: str,
        *,
        client_id: str = "",
        name: str = "",
        on_renewed: Callable[[], None] = lambda: None,
        on_saved: Callable[[Cached], None] = lambda cached: None,
        now_s: Callable[[], float] = time.time,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api, self._path, self._given = api, path, given
        self._client_id, self._name = client_id, name
        self._on_renewed, self._on_saved = on_renewed, on_saved
        self._now_s, self._monotonic_s = now_s, monotonic_s
        self._lock = threading.Lock()
        self._not_before_s = 0.0
        self._trouble: TransportError | None = None
        self._unsaved = False
        self._renewed_s = float("-inf")
        self._kind: Kind | None = kind_of(given) if given else None
        self._cached = self._load()

    @property
    def client_id(self) -> str:
        """The client id of the enrollment, or the one that was configured."""
        return (self._cached.client_id if self._cached else "") or self._client_id

    def access_token(self) -> str:
        """A token that is good for some time.  CredentialError: refused for good; TransportError: try later."""
        with self._lock:
            if self._unsaved:
                self._save()
            if self._left_s() <= RENEW_BEFORE_S:
                self._try_to_renew()
            return self._current()

    def _try_to_renew(self) -> None:
        """Raises only what leaves us without a token, or forbids to go on."""
        if self._monotonic_s() >= self._not_before_s:
            try:
                self._renew()
                self._trouble = None
                self._renewed_s = self._monotonic_s()
                return
            except TransportError as exc:
                self._trouble = exc
                self._not_before_s = self._monotonic_s() + COOL_DOWN_S
        if self._trouble and (self._trouble.code in ("token-refused", "token-invalid") or self._left_s() <= 0):
            raise self._trouble

    def distrust(self, token: str) -> None:
        """The combiner refused `token`: get another one at the next need, whatever its expiry says."""
        with self._lock:
            fresh = self._monotonic_s() - self._renewed_s < COOL_DOWN_S
            if self._cached and self._cached.access_token == token and not fresh:
                self._cached = replace(self._cached, expires_at_s=0)

    def _current(self) -> str:
        if self._cached is None:
            raise AssertionError("no token after a renewal")
        return self._cached.access_token

    def _left_s(self) -> float:
        return self._cached.expires_at_s - self._now_s() if self._cached else 0.0

    def _renew(self) -> None:
        cached = self._cached
        if cached is not None:
            kind, refresh = cached.kind, cached.refresh_token
        elif self._kind is not None:
            kind, refresh = self._kind, self._given
        else:
            raise ConfigError(
                "cannot connect: no token is given and none is cached", code="config-missing", hint="Give --token-file."
            )
        if kind == "enrollment":
            self._keep("client-refresh", self._api.enroll(refresh, self._client_id, self._name), "")
        else:
            path = CLIENT_TOKEN if kind == "client-refresh" else USER_TOKEN
            self._keep(kind, self._api.refresh(path, refresh), refresh)
        self._on_renewed()

    def _keep(self, kind: Kind, tokens: Tokens, old_refresh: str) -> None:
        self._cached = Cached(
            origin=str(self._api.origin),
            source_sha256=self._source(),
            client_id=tokens.client_id or self.client_id,
            kind=kind,
            access_token=tokens.access_token,
            refresh_token=tokens.refresh_token or old_refresh,
            expires_at_s=self._expiry(tokens),
        )
        self._unsaved = True
        self._save()

    def _save(self) -> None:
        """Until this has worked nobody gets the token: rule 2."""
        if self._cached is None:
            raise AssertionError("no token to save")
        replace_file(self._path, serialise_cache(self._cached), mode=0o600)
        self._unsaved = False
        self._on_saved(self._cached)

    def _expiry(self, tokens: Tokens) -> int:
        try:
            expires = claims_of(tokens.access_token).get("exp")
        except CredentialError:
            expires = None  # an access token may be opaque
        return usable_expiry_s(expires, tokens.expires_in_s, int(self._now_s()))

    def _source(self) -> str:
        if not self._given and self._cached:
            return self._cached.source_sha256
        return hashlib.sha256(self._given.encode()).hexdigest()

    def _load(self) -> Cached | None:
        """The cache, unless it is of another origin or another token; StorageError when it is damaged."""
        if not self._path.exists():
            return None
        with storage_errors(f"read {self._path.name}"):
            data = self._path.read_bytes()
        cached = parse_cache(data)
        if self._given and cached.source_sha256 != self._source():
            return None
        if cached.origin != str(self._api.origin):
            if self._given:
                return None
            raise ConfigError(
                f"cannot use the cached token: {cached.origin} issued it, the configured API is {self._api.origin}",
                hint="Give a token of the new API with --token-file.",
            )
        return cached


def _invalid(cause: str, hint: str = "Give an enrollment or refresh token.") -> CredentialError:
    return CredentialError(f"cannot use the token: {cause}", code="token-invalid", hint=hint)
