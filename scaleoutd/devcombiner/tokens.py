# SPDX-License-Identifier: Apache-2.0
"""The combiner's tokens: JWTs signed with HS256 under a key that lives as long as the process.

Kinds, told apart by the claim `role`, as clients do without verifying: `enrollment` (may enroll, many times),
`client_refresh` (of one client) and `user_refresh` (of no client in particular), `client` (access).
Rules: RFC 7515 compact form, the algorithm is pinned, `exp` is checked against the caller's time, and a refresh token is
good once: its use gives the next one (RFC 9700 section 4.14.2).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import threading
from dataclasses import dataclass
from typing import Any

from scaleoutd.core import strictjson
from scaleoutd.errors import CredentialError, FormatError

ENROLLMENT = "enrollment"
CLIENT_REFRESH = "client_refresh"
USER_REFRESH = "user_refresh"
ACCESS = "client"
MAX_TOKEN_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified token says; `client_id` is empty for a token of no client in particular."""

    role: str
    client_id: str
    expires_at_s: int
    token_id: str


class TokenOffice:
    """Mints and verifies; thread safe.  Times are seconds since the epoch, given by the caller."""

    def __init__(self, *, access_lifetime_s: int = 3600, rotate_refresh: bool = True) -> None:
        self.access_lifetime_s = access_lifetime_s
        self.rotate_refresh = rotate_refresh
        self._key = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._spent: set[str] = set()
        self._revoked_clients: set[str] = set()

    def mint(self, role: str, client_id: str, now_s: float, lifetime_s: int | None = None) -> str:
        """A fresh token.  A lifetime may be negative: an expired token, for tests."""
        if lifetime_s is None:
            lifetime_s = self.access_lifetime_s if role == ACCESS else 30 * 86400
        claims = {
            "role": role,
            "sub": client_id,
            "client_id": client_id,
            "iat": int(now_s),
            "exp": int(now_s) + lifetime_s,
            "jti": secrets.token_hex(16),
        }
        return sign(claims, self._key)

    def verify(self, token: str, roles: tuple[str, ...], now_s: float) -> Claims:
        """CredentialError `token-refused` when it is not ours, expired, spent, revoked or of another kind."""
        fields = verify(token, self._key)
        claims = Claims(fields["role"], fields["client_id"], fields["exp"], fields["jti"])
        if claims.role not in roles:
            raise refused(f"its role is {claims.role!r}, expected one of {roles}")
        if claims.expires_at_s <= now_s:
            raise refused(f"it expired at {claims.expires_at_s}")
        with self._lock:
            if claims.token_id in self._spent:
                raise refused("it was used before and replaced")
            if claims.client_id and claims.client_id in self._revoked_clients:
                raise refused(f"client {claims.client_id} is revoked")
        return claims

    def redeem(self, refresh_token: str, roles: tuple[str, ...], now_s: float) -> tuple[str, str | None]:
        """(access token, next refresh token or None).  Of two who redeem the same token one is refused."""
        claims = self.verify(refresh_token, roles, now_s)
        access = self.mint(ACCESS, claims.client_id, now_s)
        if not self.rotate_refresh:
            return access, None
        with self._lock:
            if claims.token_id in self._spent:
                raise refused("it was used before and replaced")
            self._spent.add(claims.token_id)
        return access, self.mint(claims.role, claims.client_id, now_s)

    def revoke_client(self, client_id: str) -> None:
        """Every token of this client is refused from now on."""
        with self._lock:
            self._revoked_clients.add(client_id)


def sign(claims: dict[str, Any], key: bytes) -> str:
    """A compact JWS over `claims`."""
    head = _encode(json.dumps({"alg": "HS256", "typ": "JWT"}).encode())
    body = _encode(json.dumps(claims).encode())
    return f"{head}.{body}.{_encode(_mac(f'{head}.{body}', key))}"


def verify(token: str, key: bytes) -> dict[str, Any]:
    """The claims of a token that `sign` made under the same key."""
    parts = token.split(".")
    if len(parts) != 3 or not token.isascii():
        raise refused("it is no JWT")
    try:
        header, fields = (
            strictjson.parse(_decode(part), max_bytes=MAX_TOKEN_BYTES, allow_floats=True, what="a part of it")
            for part in parts[:2]
        )
        signature = _decode(parts[2])
    except (ValueError, FormatError) as exc:
        raise refused(f"it is no JWT: {exc}") from exc
    # The header is the sender's: an algorithm named there must never choose how it is verified.
    if not isinstance(header, dict) or header.get("alg") != "HS256":
        raise refused("its algorithm is not HS256")
    if not hmac.compare_digest(signature, _mac(f"{parts[0]}.{parts[1]}", key)):
        raise refused("its signature does not verify")
    if not isinstance(fields, dict):
        raise refused("its claims are no object")
    return fields


def refused(cause: str) -> CredentialError:
    return CredentialError(f"cannot accept the token: {cause}", code="token-refused", hint="Ask for a new token.")


def _mac(text: str, key: bytes) -> bytes:
    return hmac.new(key, text.encode("ascii"), hashlib.sha256).digest()


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
