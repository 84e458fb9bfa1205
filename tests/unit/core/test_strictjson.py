# SPDX-License-Identifier: Apache-2.0
"""Strict JSON: what it refuses, that its canonical form is RFC 8785's, and that hostile bytes cost no more than honest ones."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from scaleoutd.core import strictjson
from scaleoutd.errors import FormatError
from tests.vectors.json.cases import ACCEPTED, REFUSED

LIMIT = 1024 * 1024

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
integers = st.integers(-strictjson.MAX_SAFE_INTEGER, strictjson.MAX_SAFE_INTEGER)
documents = st.recursive(
    st.none() | st.booleans() | integers | text,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(text, inner, max_size=5),
    max_leaves=30,
)


@given(documents)
def test_canonical_form_is_what_rfc8785_writes(value: Any) -> None:
    assert strictjson.canonical(value) == rfc8785.dumps(value)


@given(documents)
def test_canonical_form_reads_back_as_the_same_value(value: Any) -> None:
    assert strictjson.parse_canonical(strictjson.canonical(value), max_bytes=LIMIT) == value


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused_but_never_crash(data: bytes) -> None:
    try:
        value = strictjson.parse(data, max_bytes=LIMIT)
    except FormatError as exc:
        assert exc.code == "json-invalid"
    else:
        assert json.loads(data) == value


@pytest.mark.parametrize(("name", "data"), REFUSED.items())
def test_refused(name: str, data: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        strictjson.parse(data, max_bytes=LIMIT)
    assert caught.value.code == "json-invalid"


@pytest.mark.parametrize(("name", "data"), ACCEPTED.items())
def test_control_that_is_accepted(name: str, data: bytes) -> None:
    assert strictjson.parse(data, max_bytes=LIMIT) == json.loads(data)


@pytest.mark.parametrize("data", [b'{"b":1,"a":2}', b'{"a": 1}', b'{"a":1}\n', b'"\\u0041"', b'"\\/"', b"-0"])
def test_same_value_in_other_bytes_is_not_canonical(data: bytes) -> None:
    strictjson.parse(data, max_bytes=LIMIT)
    with pytest.raises(FormatError, match="canonical"):
        strictjson.parse_canonical(data, max_bytes=LIMIT)


def test_keys_are_sorted_by_utf16_units_not_by_code_points() -> None:
    # U+1F600 is D83D DE00 in UTF-16 and so comes before U+FB33, although its code point is higher (RFC 8785 section 3.2.3).
    assert strictjson.canonical({"\ufb33": 1, "\U0001f600": 2}) == '{"\U0001f600":2,"\ufb33":1}'.encode()


@pytest.mark.parametrize("value", [1.0, float("nan"), 2**53, b"x", {1: 2}, {"a": object()}, "\ud800"])
def test_what_has_no_canonical_form_is_refused(value: Any) -> None:
    with pytest.raises(FormatError):
        strictjson.canonical(value)


def test_depth_at_the_limit_is_read_and_one_more_is_refused() -> None:
    at_limit = b"[" * strictjson.MAX_DEPTH + b"]" * strictjson.MAX_DEPTH
    assert strictjson.parse(at_limit, max_bytes=LIMIT) is not None
    with pytest.raises(FormatError, match="deeper"):
        strictjson.parse(b"[" + at_limit + b"]", max_bytes=LIMIT)


def test_brackets_in_strings_do_not_count_as_depth() -> None:
    data = json.dumps(['[{"' * 40, "\\" * 9 + '"' + "[" * 90] * 3).encode()
    assert strictjson.parse(data, max_bytes=LIMIT) == json.loads(data)


@pytest.mark.parametrize(
    "bomb",
    [
        b"[" * LIMIT, b'"\\' * (LIMIT // 2), b'["' * (LIMIT // 2), b'"' + b"\\" * (LIMIT - 1),
        b'["\\"",' * (LIMIT // 6), b"9" * LIMIT,
    ],
    ids=["brackets", "escaped-quotes", "open-strings", "backslashes", "quotes-in-strings", "digits"],
)  # fmt: skip
def test_a_bomb_is_refused_in_linear_time(bomb: bytes) -> None:
    begin = time.process_time()
    with pytest.raises(FormatError):
        strictjson.parse(bomb, max_bytes=LIMIT)
    assert time.process_time() - begin < 1.0


def test_too_many_bytes_are_refused_unread() -> None:
    with pytest.raises(FormatError, match="at most 10"):
        strictjson.parse(b'"01234567890"', max_bytes=10)
    assert strictjson.parse(b'"01234567"', max_bytes=10) == "01234567"
