# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest

from scaleoutd.devcombiner.fedavg import check_update, fedavg
from scaleoutd.devcombiner.npz import FlatArray, flat
from scaleoutd.errors import OutputError

MODEL = {"w": flat("f4", (2,), [0.0, 0.0]), "n": flat("i4", (1,), [0])}


def update(first: float, second: float, count: int) -> dict[str, FlatArray]:
    return {"w": flat("f4", (2,), [first, second]), "n": flat("i4", (1,), [count])}


def test_weights_by_the_number_of_examples() -> None:
    mean = fedavg([(update(1.0, 10.0, 1), 1), (update(5.0, 30.0, 2), 3)])
    assert mean == {"w": flat("f4", (2,), [4.0, 25.0]), "n": flat("i4", (1,), [2])}


def test_of_one_client_is_that_client() -> None:
    assert fedavg([(update(0.1, 0.2, 7), 12345)]) == update(0.1, 0.2, 7)


def test_sums_in_double_precision() -> None:
    # In single precision 1e8 + 1 is 1e8; the mean of both and -1e8 must still see the 1.
    parts = [({"w": flat("f4", (1,), [value])}, 1) for value in (1e8, 1.0, -1e8)]
    assert math.isclose(fedavg(parts)["w"].values[0], 1 / 3, rel_tol=1e-6)


def test_refuses_no_examples_at_all() -> None:
    with pytest.raises(OutputError):
        fedavg([(MODEL, 0)])


def test_check_lets_a_good_update_pass() -> None:
    check_update(MODEL, update(1.0, 2.0, 3))


@pytest.mark.parametrize(
    ("attack", "bad", "code"),
    [
        ("NaN", update(math.nan, 0.0, 1), "output-not-finite"),
        ("infinity", update(0.0, math.inf, 1), "output-not-finite"),
        ("missing array", {"w": flat("f4", (2,), [0.0, 0.0])}, "output-shape"),
        ("extra array", MODEL | {"x": flat("f4", (1,), [0.0])}, "output-shape"),
        ("other shape", MODEL | {"w": flat("f4", (2, 1), [0.0, 0.0])}, "output-shape"),
        ("other type", MODEL | {"w": flat("f8", (2,), [0.0, 0.0])}, "output-shape"),
    ],
)
def test_check_refuses(attack: str, bad: dict[str, FlatArray], code: str) -> None:
    with pytest.raises(OutputError) as caught:
        check_update(MODEL, bad)
    assert caught.value.code == code
