# SPDX-License-Identifier: Apache-2.0
"""YAML that means one thing: what is refused, where the error points, and which words stay text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleoutd.core.strictyaml import load_yaml
from scaleoutd.errors import ConfigError


def load(text: str | bytes) -> Any:
    return load_yaml(text.encode() if isinstance(text, str) else text, name="x.yaml", root="x").value


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3, column 1"),
        ("a:\n  b: 1\n  'b': 2\n", "line 3, column 3"),
        ("a: &x 1\n", "line 1, column 4"),
        ("a: 1\nb: *x\n", "line 2, column 4"),
        ("a: !!python/object:os.system x\n", "line 1, column 4"),
        ("a: !!int '3'\n", "line 1, column 4"),
        ("a: !x {}\n", "line 1, column 4"),
        ("<<: {a: 1}\n", "line 1, column 1"),
        ("a: 1\n---\nb: 2\n", "line 2, column 1"),
        ("%YAML 1.1\n---\na: 1\n", "line 1, column 1"),
        ("? [a]\n: 1\n", "line 1, column 3"),
        ("- a\n", "line 1, column 1"),
        ("just text\n", "line 1, column 1"),
        ("a: [1, 2\n", "line 2, column 1"),
        ("a: b: c\n", "line 1, column 5"),
        ("a:\n\t- b\n", "line 2, column 1"),
        ("", "line 1, column 1"),
    ],
)
def test_refused_where_it_stands(text: str, place: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert caught.value.code == "yaml-invalid"
    assert f"x.yaml: {place}: " in caught.value.message


@pytest.mark.parametrize("data", [b"a: \xff\n", b"a: \x00\n", b"a: 1\n" * 300_000], ids=["utf-8", "nul", "size"])
def test_bytes_that_are_no_text_are_refused(data: bytes) -> None:
    with pytest.raises(ConfigError):
        load(data)


def test_an_alias_bomb_is_refused_before_it_grows() -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))]
    with pytest.raises(ConfigError, match="anchor"):
        load("\n".join(lines))


def test_deep_nesting_is_refused_and_the_limit_is_read() -> None:
    assert load("a: " + "[" * 30 + "]" * 30)
    for depth in (40, 5000):
        with pytest.raises(ConfigError):
            load("a: " + "[" * depth + "]" * depth)


WORDS = [
    "yes", "no", "on", "off", "Yes",
    "TRUE", "True", "010", "0x1F", "1:30", "1_000", "1.5", "2026-01-01", ".inf",
]  # fmt: skip


@pytest.mark.parametrize("word", WORDS)
def test_words_with_two_meanings_stay_text(word: str) -> None:
    assert load(f"a: {word}") == {"a": word}


def test_plain_values() -> None:
    value = load("a: true\nb: 12\nc: -3\nd: null\ne: ~\nf:\ng: '12'\nh: [x, 1]\ni: {j: false}\nk: |\n  text\n")
    assert value == {"a": True, "b": 12, "c": -3, "g": "12", "h": ["x", 1], "i": {"j": False}, "k": "text\n"}


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_but_never_crashes(text: str) -> None:
    try:
        load(text.encode("utf-8", "surrogatepass"))
    except ConfigError as exc:
        assert exc.code == "yaml-invalid"
