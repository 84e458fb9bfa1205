# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
import json
import threading

import pytest

from scaleoutd.devcombiner.tokens import (
    ACCESS,
    CLIENT_REFRESH,
    ENROLLMENT,
    USER_REFRESH,
    TokenOffice,
    sign,
    verify,
)
from scaleoutd.errors import CredentialError

NOW_S = 1_800_000_000.0


def claims_of(token: str) -> dict[str, object]:
    part = token.split(".")[1]
    value: dict[str, object] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return value


def test_rfc_7515_appendix_a1_verifies() -> None:
    # The example's own key and token: HS256 as the standard computes it, not only as this module does.
    key = base64.urlsafe_b64decode("AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow==")
    token = (
        "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9"
        ".eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"
        ".dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
    )
    assert verify(token, key)["iss"] == "joe"


def test_role_is_readable_without_the_key() -> None:
    office = TokenOffice()
    for role in (ENROLLMENT, CLIENT_REFRESH, USER_REFRESH, ACCESS):
        assert claims_of(office.mint(role, "c1", NOW_S))["role"] == role


def test_access_token_is_good_until_it_expires() -> None:
    office = TokenOffice(access_lifetime_s=60)
    token = office.mint(ACCESS, "c1", NOW_S)
    assert office.verify(token, (ACCESS,), NOW_S + 59).client_id == "c1"
    with pytest.raises(CredentialError, match="expired"):
        office.verify(token, (ACCESS,), NOW_S + 60)


def test_refuses_a_token_of_another_kind() -> None:
    office = TokenOffice()
    with pytest.raises(CredentialError, match="role"):
        office.verify(office.mint(CLIENT_REFRESH, "c1", NOW_S), (ACCESS,), NOW_S)


def test_refuses_a_token_of_another_key_a_changed_one_and_the_algorithm_none() -> None:
    office = TokenOffice()
    good = office.mint(ACCESS, "c1", NOW_S)
    head, body, signature = good.split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=").decode()
    other_body = base64.urlsafe_b64encode(json.dumps(claims_of(good) | {"client_id": "c2"}).encode()).rstrip(b"=").decode()
    bad = [
        TokenOffice().mint(ACCESS, "c1", NOW_S),
        f"{head}.{other_body}.{signature}",
        f"{none}.{body}.",
        f"{none}.{body}.{signature}",
        f"{head}.{body}",
        "",
        "a.b.c",
        "ä.ö.ü",
        sign({"role": ACCESS}, b"other key"),
    ]
    for token in bad:
        with pytest.raises(CredentialError):
            office.verify(token, (ACCESS,), NOW_S)
    assert office.verify(good, (ACCESS,), NOW_S)


def test_refresh_rotates_and_a_stolen_old_token_is_refused() -> None:
    office = TokenOffice()
    first = office.mint(CLIENT_REFRESH, "c1", NOW_S)
    access, second = office.redeem(first, (CLIENT_REFRESH,), NOW_S)
    assert office.verify(access, (ACCESS,), NOW_S).client_id == "c1"
    assert second is not None and second != first
    with pytest.raises(CredentialError, match="used before"):
        office.redeem(first, (CLIENT_REFRESH,), NOW_S)
    assert office.redeem(second, (CLIENT_REFRESH,), NOW_S)[1] is not None


def test_of_many_who_redeem_one_token_at_once_one_succeeds() -> None:
    office = TokenOffice()
    token = office.mint(CLIENT_REFRESH, "c1", NOW_S)
    won: list[str] = []
    start = threading.Barrier(8)

    def redeem() -> None:
        start.wait()
        try:
            won.append(office.redeem(token, (CLIENT_REFRESH,), NOW_S)[0])
        except CredentialError:
            pass

    threads = [threading.Thread(target=redeem) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


def test_without_rotation_the_same_token_stays_good() -> None:
    office = TokenOffice(rotate_refresh=False)
    token = office.mint(USER_REFRESH, "", NOW_S)
    assert office.redeem(token, (USER_REFRESH,), NOW_S)[1] is None
    assert office.redeem(token, (USER_REFRESH,), NOW_S)[1] is None


def test_a_revoked_client_is_refused_and_another_is_not() -> None:
    office = TokenOffice()
    lost, kept = office.mint(ACCESS, "c1", NOW_S), office.mint(ACCESS, "c2", NOW_S)
    office.revoke_client("c1")
    with pytest.raises(CredentialError, match="revoked"):
        office.verify(lost, (ACCESS,), NOW_S)
    assert office.verify(kept, (ACCESS,), NOW_S)
