# SPDX-License-Identifier: Apache-2.0
"""Federated averaging: the mean of the clients' arrays, weighted by their numbers of examples.

Rules (McMahan et al. 2017, algorithm 1):
  1. Sums are in double precision, the result has the type of the model that was sent out; integers are rounded.
  2. An update must have the names, shapes and types of that model and be finite, else OutputError.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence

from scaleoutd.devcombiner.npz import TYPECODES, FlatArray
from scaleoutd.errors import OutputError

Arrays = Mapping[str, FlatArray]


def check_update(reference: Arrays, update: Arrays) -> None:
    """OutputError `output-shape` or `output-not-finite` when `update` cannot be averaged with `reference`."""
    if set(update) != set(reference):
        raise _mismatch(f"it has the arrays {sorted(update)}, expected {sorted(reference)}")
    for name, expected in reference.items():
        found = update[name]
        if (found.shape, found.kind) != (expected.shape, expected.kind):
            raise _mismatch(f"{name} is {found.kind} {found.shape}, expected {expected.kind} {expected.shape}")
        if not found.is_finite:
            raise OutputError(
                f"cannot average the update: {name} holds a NaN or an infinity",
                code="output-not-finite",
                hint="See why training diverged on that client.",
            )


def fedavg(updates: Sequence[tuple[Arrays, int]]) -> dict[str, FlatArray]:
    """The weighted mean of `(arrays, num_examples)`, all checked before and at least one; names in the first's order."""
    total = sum(examples for _, examples in updates)
    if total <= 0:
        raise _mismatch(f"the clients' examples add up to {total}")
    first = updates[0][0]
    return {name: _mean([(arrays[name], examples / total) for arrays, examples in updates]) for name in first}


def _mean(weighted: Sequence[tuple[FlatArray, float]]) -> FlatArray:
    kind, shape = weighted[0][0].kind, weighted[0][0].shape
    sums = [0.0] * len(weighted[0][0].values)
    for flat_array, weight in weighted:
        sums = [total + weight * value for total, value in zip(sums, flat_array.values, strict=True)]
    numbers = sums if kind[0] == "f" else [round(value) for value in sums]
    return FlatArray(kind, shape, array(TYPECODES[kind], numbers))


def _mismatch(cause: str) -> OutputError:
    return OutputError(f"cannot average the update: {cause}", code="output-shape", hint="Return the model's own arrays.")
