# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest

from scaleoutd.devcombiner.server import DevCombiner
from tests.unit.devcombiner.wire import access_token, post

ENROLL, TOKEN = "/api/v1/clients/enroll", "/api/v1/clients/token"
REFRESH, ADD = "/api/auth/refresh", "/api/v1/clients/add"


def test_enroll_refresh_add_in_the_order_of_a_client(open_combiner: DevCombiner) -> None:
    status, enrolled, _ = post(open_combiner, ENROLL, {"name": "w7"}, bearer=open_combiner.mint_enrollment())
    assert status == 200 and set(enrolled) == {"client_id", "access_token", "refresh_token"}
    body = {"refresh_token": enrolled["refresh_token"], "role": "client"}
    status, fresh, _ = post(open_combiner, TOKEN, body)
    assert status == 200 and fresh["refresh_token"] != enrolled["refresh_token"] and fresh["expires_in"] == 3600
    request = {"name": "w7", "client_id": "something else", "package": "local", "client_version": "1.1.0"}
    status, added, _ = post(open_combiner, ADD, request, bearer=fresh["access_token"])
    assert status == 200
    assert added["client_id"] == enrolled["client_id"], "the token's client id is the authoritative one"
    assert (added["public_hostname"], added["port"]) == ("localhost", open_combiner.grpc_port)
    assert added["grpc_secure"] is True
    assert [call.status for call in open_combiner.board.rest_calls] == [200, 200, 200]


def test_enroll_keeps_the_client_id_that_was_asked_for(open_combiner: DevCombiner) -> None:
    token = open_combiner.mint_enrollment()
    assert post(open_combiner, ENROLL, {"client_id": "ward-7"}, bearer=token)[1]["client_id"] == "ward-7"


def test_user_refresh_answers_with_the_other_names(open_combiner: DevCombiner) -> None:
    status, fresh, _ = post(open_combiner, REFRESH, {"refresh_token": open_combiner.mint_user_refresh()})
    assert status == 200 and set(fresh) == {"access", "refresh", "expires_in"}
    status, added, _ = post(open_combiner, ADD, {"name": "n", "client_id": "mine"}, bearer=fresh["access"])
    assert (status, added["client_id"]) == (200, "mine")


def test_401_for_every_token_that_is_not_good_here(open_combiner: DevCombiner) -> None:
    c = open_combiner
    used = c.mint_refresh("c1")
    assert post(c, TOKEN, {"refresh_token": used})[0] == 200
    attempts = [
        (ENROLL, {}, ""),
        (ENROLL, {}, c.mint_enrollment(lifetime_s=-1)),
        (ENROLL, {}, access_token(c, "c1")),
        (ADD, {"name": "n"}, ""),
        (ADD, {"name": "n"}, c.mint_refresh("c1")),
        (ADD, {"name": "n"}, c.mint_enrollment()),
        (TOKEN, {"refresh_token": used}, ""),
        (TOKEN, {"refresh_token": "garbage"}, ""),
        (TOKEN, {"refresh_token": access_token(c, "c1")}, ""),
        (TOKEN, {"refresh_token": c.mint_user_refresh()}, ""),
        (REFRESH, {"refresh_token": c.mint_refresh("c1")}, ""),
        (TOKEN, {"refresh_token": c.mint_refresh("c1", lifetime_s=-1)}, ""),
    ]
    for path, body, bearer in attempts:
        status, answer, _ = post(c, path, body, bearer=bearer)
        assert (status, answer) == (401, {"message": "Unauthorized"}), (path, body)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"client_id": 5}', b'{"client_id": "../x"}'])
def test_400_for_a_body_that_cannot_be_used(body: bytes, open_combiner: DevCombiner) -> None:
    assert post(open_combiner, ENROLL, body, bearer=open_combiner.mint_enrollment())[0] == 400
    assert post(open_combiner, ENROLL, b"{}", bearer=open_combiner.mint_enrollment())[0] == 200


def test_413_for_a_body_that_is_too_large(open_combiner: DevCombiner) -> None:
    assert post(open_combiner, ENROLL, b"x" * 65_537, bearer=open_combiner.mint_enrollment())[0] == 413


def test_404_and_203_and_a_missing_name(open_combiner: DevCombiner) -> None:
    token = access_token(open_combiner, "c1")
    assert post(open_combiner, "/api/v1/else", {})[0] == 404
    assert post(open_combiner, ADD, {"name": "n", "package": "remote"}, bearer=token)[0] == 203
    assert post(open_combiner, ADD, {"package": "local"}, bearer=token)[0] == 400


def test_faults_are_shown_as_often_as_asked_and_have_no_effect(open_combiner: DevCombiner) -> None:
    token = open_combiner.mint_refresh("c1")
    open_combiner.faults.answer_rest(TOKEN, 503, times=2)
    open_combiner.faults.answer_rest(TOKEN, 307, location="http://127.0.0.1:9/steal")
    open_combiner.faults.answer_rest(TOKEN, 203)
    answers = [post(open_combiner, TOKEN, {"refresh_token": token}) for _ in range(5)]
    assert [status for status, _, _ in answers] == [503, 503, 307, 203, 200]
    assert answers[2][2]["Location"] == "http://127.0.0.1:9/steal"


@pytest.mark.parametrize(("said", "expected"), [(False, {"grpc_secure": False}), (None, {}), (True, {"grpc_secure": True})])
def test_grpc_secure_says_what_the_fault_says(said: bool | None, expected: dict[str, Any], open_combiner: DevCombiner) -> None:
    open_combiner.faults.grpc_secure = said
    added = post(open_combiner, ADD, {"name": "n"}, bearer=access_token(open_combiner, "c1"))[1]
    assert {key: value for key, value in added.items() if key == "grpc_secure"} == expected
