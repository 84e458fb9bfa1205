# SPDX-License-Identifier: Apache-2.0
"""The records codec: a value goes out and comes back the same, and each kind of wrong value is refused at its path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleoutd.core.records import Count, Name, Natural, Range, Sha256Hex, Text, decode, encode
from scaleoutd.errors import FormatError


@dataclass(frozen=True)
class Inner:
    name: Name
    size_bytes: Natural = 0


@dataclass(frozen=True)
class Outer:
    kind: Literal["a", "b"] = field(metadata={"json": "_type"})
    flag: bool
    inner: Inner
    items: Annotated[tuple[Inner, ...], Count(0, 3)] = ()
    labels: Mapping[str, int] = field(default_factory=dict)
    digest: Sha256Hex | None = None
    short: Annotated[str, Text(4, "[a-z]*")] = ""
    small: Annotated[int, Range(-2, 2)] = 0


GOOD: dict[str, Any] = {"_type": "a", "flag": True, "inner": {"name": "n"}}

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:@+-]{0,20}", fullmatch=True)
inners = st.builds(Inner, names, st.integers(0, 2**53 - 1))
outers = st.builds(
    Outer,
    st.sampled_from(["a", "b"]),
    st.booleans(),
    inners,
    st.lists(inners, max_size=3).map(tuple),
    st.dictionaries(st.text(max_size=5), st.integers(-(2**53) + 1, 2**53 - 1), max_size=3),
    st.none() | st.just("0" * 64),
    st.from_regex("[a-z]{0,4}", fullmatch=True),
    st.integers(-2, 2),
)


@given(outers)
def test_a_record_comes_back_as_it_went_out(record: Outer) -> None:
    assert decode(Outer, encode(record)) == record


def test_defaults_fill_what_is_left_out_and_none_is_not_written() -> None:
    record = decode(Outer, GOOD)
    assert record == Outer("a", True, Inner("n"))
    assert "digest" not in encode(record)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"extra": 1}, "Outer.extra"),
        ({"_type": "c"}, "Outer._type"),
        ({"kind": "a"}, "Outer.kind"),
        ({"flag": 1}, "Outer.flag"),
        ({"flag": None}, "Outer.flag"),
        ({"small": True}, "Outer.small"),
        ({"small": 1.0}, "Outer.small"),
        ({"small": 3}, "Outer.small"),
        ({"inner": []}, "Outer.inner"),
        ({"inner": {}}, "Outer.inner.name"),
        ({"inner": {"name": "n", "size_bytes": -1}}, "Outer.inner.size_bytes"),
        ({"inner": {"name": "../n"}}, "Outer.inner.name"),
        ({"inner": {"name": "n\n"}}, "Outer.inner.name"),
        ({"items": {}}, "Outer.items"),
        ({"items": [{"name": "n"}, {"name": 1}]}, "Outer.items[1].name"),
        ({"items": [{"name": "n"}] * 4}, "Outer.items"),
        ({"labels": {"x": "1"}}, "Outer.labels.x"),
        ({"digest": None}, "Outer.digest"),
        ({"digest": "A" * 64}, "Outer.digest"),
        ({"short": "abcde"}, "Outer.short"),
        ({"short": "ab\n"}, "Outer.short"),
    ],
)
def test_a_wrong_value_is_refused_at_its_path(change: dict[str, Any], path: str) -> None:
    with pytest.raises(FormatError) as caught:
        decode(Outer, {**GOOD, **change})
    assert caught.value.code == "record-invalid"
    assert caught.value.message.startswith(f"cannot read {path}: it ")


@pytest.mark.parametrize("value", [None, [], "x", 1, True])
def test_what_is_no_object_is_refused(value: Any) -> None:
    with pytest.raises(FormatError, match="must be an object"):
        decode(Outer, value)
