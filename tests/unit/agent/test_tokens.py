# SPDX-License-Identifier: Apache-2.0
"""Tokens: kinds, renewal, and that a rotated one is durable before it is used."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from scaleoutd.agent import tokens as module
from scaleoutd.agent.api import CLIENT_TOKEN, ENROLL, USER_TOKEN, Origin, Tokens
from scaleoutd.agent.tokens import TokenKeeper, kind_of
from scaleoutd.errors import ConfigError, CredentialError, ScaleoutError, StorageError, TransportError

NOW = 1_790_000_000


def jwt(**claims: Any) -> str:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"e30.{body}.c2ln"


ENROLLMENT = jwt(role="enrollment")
REFRESH = jwt(role="client_refresh", exp=NOW + 10_000)


class FakeApi:
    """Answers in order; an exception is raised."""

    def __init__(self, *answers: Tokens | ScaleoutError) -> None:
        self.origin = Origin("api.example", 443, "")
        self.answers = list(answers)
        self.calls: list[tuple[str, str]] = []

    def enroll(self, token: str, client_id: str, name: str) -> Tokens:
        return self._next(ENROLL, token)

    def refresh(self, path: str, token: str) -> Tokens:
        return self._next(path, token)

    def _next(self, path: str, token: str) -> Tokens:
        self.calls.append((path, token))
        answer = self.answers.pop(0)
        if isinstance(answer, ScaleoutError):
            raise answer
        return answer


class Clock:
    def __init__(self) -> None:
        self.now = float(NOW)

    def __call__(self) -> float:
        return self.now


def keeper(api: FakeApi, path: Path, given: str = REFRESH, clock: Clock | None = None) -> TokenKeeper:
    clock = clock or Clock()
    return TokenKeeper(api, path / "token.json", given, client_id="c1", now_s=clock, monotonic_s=clock)  # type: ignore[arg-type]


def access(lifetime_s: int, number: int = 0) -> str:
    return jwt(exp=NOW + lifetime_s, n=number)


@pytest.mark.parametrize(
    ("token", "kind"),
    [
        (ENROLLMENT, "enrollment"),
        (REFRESH, "client-refresh"),
        (jwt(token_type="refresh"), "user-refresh"),
        (jwt(), "user-refresh"),
    ],
)
def test_kinds(token: str, kind: str) -> None:
    assert kind_of(token) == kind


@pytest.mark.parametrize(
    "token",
    [jwt(token_type="api_key"), jwt(token_type="api_key", role="client_refresh"), "", "a.b", "a.b.c", "a.W10.c", "é.e30.x",
     "a." + "b" * 20_000 + ".c"],
)  # fmt: skip
def test_api_keys_and_what_is_no_jwt_are_refused(token: str) -> None:
    with pytest.raises(CredentialError) as caught:
        kind_of(token)
    assert caught.value.code == "token-invalid"
    assert token not in caught.value.message or len(token) < 6


def test_an_enrollment_becomes_a_refresh_token_that_outlives_a_restart(tmp_path: Path) -> None:
    api = FakeApi(Tokens(access(100), "r1", "server-chose"))
    first = keeper(api, tmp_path, ENROLLMENT)
    assert first.access_token() == access(100)
    assert first.client_id == "server-chose"
    clock = Clock()
    clock.now += 90
    again = FakeApi(Tokens(access(300), "r2"))
    second = keeper(again, tmp_path, ENROLLMENT, clock)
    assert second.access_token() == access(300)
    assert again.calls == [(CLIENT_TOKEN, "r1")]
    assert second.client_id == "server-chose"
    assert (tmp_path / "token.json").stat().st_mode & 0o777 == 0o600


def test_a_token_is_renewed_thirty_seconds_before_its_end(tmp_path: Path) -> None:
    clock = Clock()
    api = FakeApi(Tokens(access(100)), Tokens(access(200, 2)))
    tokens = keeper(api, tmp_path, clock=clock)
    assert tokens.access_token() == access(100)
    clock.now += 69
    assert tokens.access_token() == access(100)
    clock.now += 2
    assert tokens.access_token() == access(200, 2)
    assert api.calls == [(CLIENT_TOKEN, REFRESH)] * 2  # none was returned, so the old one stays


def test_a_rotated_token_is_durable_before_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = FakeApi(Tokens(access(100), "r1"), Tokens(access(200), "r2"))
    tokens = keeper(api, tmp_path)

    def full(*args: Any, **more: Any) -> None:
        raise StorageError("cannot write: full", code="storage-full")

    with monkeypatch.context() as patched:
        patched.setattr(module, "replace_file", full)
        for _ in range(2):
            with pytest.raises(StorageError):
                tokens.access_token()
    assert len(api.calls) == 1  # the rotated token is not asked away a second time
    assert tokens.access_token() == access(100)
    assert json.loads((tmp_path / "token.json").read_text())["refresh_token"] == "r1"


def test_another_token_given_takes_the_place_of_the_cached_one(tmp_path: Path) -> None:
    keeper(FakeApi(Tokens(access(100), "r1")), tmp_path).access_token()
    api = FakeApi(Tokens(access(100, 7), "n1"))
    newer = jwt(role="other")
    assert keeper(api, tmp_path, newer).access_token() == access(100, 7)
    assert api.calls == [(USER_TOKEN, newer)]


def test_a_cached_token_goes_only_to_its_own_origin(tmp_path: Path) -> None:
    keeper(FakeApi(Tokens(access(100), "r1")), tmp_path).access_token()
    elsewhere = FakeApi(Tokens(access(100), "x"))
    elsewhere.origin = Origin("evil.example", 443, "")
    with pytest.raises(ConfigError):
        keeper(elsewhere, tmp_path, "")
    assert keeper(elsewhere, tmp_path).access_token()
    assert elsewhere.calls == [(CLIENT_TOKEN, REFRESH)]  # what the administrator gave, not what the other origin issued
    assert keeper(FakeApi(), tmp_path / "none", "") is not None


def test_without_any_token_nothing_is_asked(tmp_path: Path) -> None:
    api = FakeApi()
    with pytest.raises(ConfigError) as caught:
        keeper(api, tmp_path, "").access_token()
    assert (caught.value.code, api.calls) == ("config-missing", [])


def test_a_refusal_is_permanent_and_told_again_without_asking(tmp_path: Path) -> None:
    clock = Clock()
    tokens = keeper(FakeApi(CredentialError("no", code="token-refused")), tmp_path, clock=clock)
    for _ in range(3):
        with pytest.raises(CredentialError):
            tokens.access_token()


def test_a_failure_is_waited_for_and_the_old_token_used_meanwhile(tmp_path: Path) -> None:
    clock = Clock()
    api = FakeApi(Tokens(access(40)), TransportError("503"), Tokens(access(400, 2)))
    tokens = keeper(api, tmp_path, clock=clock)
    tokens.access_token()
    clock.now += 20
    assert tokens.access_token() == access(40)
    assert tokens.access_token() == access(40)
    assert len(api.calls) == 2  # cool-down
    clock.now += 11
    assert tokens.access_token() == access(400, 2)


def test_a_failure_without_a_good_token_is_told_with_its_cause(tmp_path: Path) -> None:
    tokens = keeper(FakeApi(TransportError("cannot reach it", code="tls-server-untrusted")), tmp_path)
    for _ in range(2):
        with pytest.raises(TransportError) as caught:
            tokens.access_token()
        assert caught.value.code == "tls-server-untrusted"


def test_a_token_the_combiner_does_not_take_is_replaced_once_in_a_while(tmp_path: Path) -> None:
    clock = Clock()
    api = FakeApi(Tokens(access(1000)), Tokens(access(2000)))
    tokens = keeper(api, tmp_path, clock=clock)
    first = tokens.access_token()
    tokens.distrust(first)
    assert tokens.access_token() == first  # it is fresh from the API: asking again at once would not help
    clock.now += 11
    tokens.distrust("another")
    assert tokens.access_token() == first
    tokens.distrust(first)
    assert tokens.access_token() == access(2000)


def test_a_damaged_cache_is_named(tmp_path: Path) -> None:
    (tmp_path / "token.json").write_text("{}")
    with pytest.raises(StorageError) as caught:
        keeper(FakeApi(), tmp_path)
    assert caught.value.code == "state-corrupt"


def test_tokens_do_not_show_in_a_repr(tmp_path: Path) -> None:
    tokens = keeper(FakeApi(Tokens(access(100), "very-secret")), tmp_path)
    tokens.access_token()
    assert "very-secret" not in repr(tokens._cached)
