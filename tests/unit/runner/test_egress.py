# SPDX-License-Identifier: Apache-2.0
"""What a step may tell the world: the keys of the policy, finite numbers, enough examples, and not much of it."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest

from scaleoutd.core.grant import Grant
from scaleoutd.core.plan import OUTCOMES, Limits, ModelRules, StepResult, Task
from scaleoutd.core.policy import Egress, EnvironmentRule
from scaleoutd.errors import CODES, OutputError
from scaleoutd.runner import egress
from scaleoutd.runner.egress import MAX_NAMED, filter_body, limit_counts, result_body

LIMITS = Limits(10, 10, 10**9, 64, 64, 10**6, 10**6, 10**6, 10**5, 10**6, 10**6)


def grant(task: Task, *, metrics: tuple[str, ...] = (), metadata: tuple[str, ...] = (), least: int = 1) -> Grant:
    return Grant(
        task=task,
        command=("python", "train.py"),
        project="p",
        manifest_sha256="0" * 64,
        manifest_version=1,
        policy_sha256="0" * 64,
        backend="namespaces",
        outcomes=OUTCOMES,
        limits=LIMITS,
        model=ModelRules(("npz",), 10**6),
        environment_id="system",
        environment=EnvironmentRule("/usr/bin/python3"),
        data_sets={},
        settings="",
        egress=Egress(metrics=metrics, metadata=metadata),
        min_num_examples=least,
    )


def refused(given: Grant, found: dict[str, Any]) -> str:
    with pytest.raises(OutputError) as caught:
        filter_body(given, found)
    assert caught.value.code == "metrics-invalid"
    return caught.value.message


def test_control_listed_metrics_leave_as_they_are() -> None:
    body, withheld = filter_body(grant("validate", metrics=("loss", "acc")), {"loss": 0.25, "acc": 1})
    assert (json.loads(body), withheld) == ({"loss": 0.25, "acc": 1}, ())


def test_what_is_not_listed_is_withheld_and_named() -> None:
    found = {"loss": 0.5, "patient": "Mrs X", "weights": [1, 2], "num_examples": 9}
    body, withheld = filter_body(grant("validate", metrics=("loss",)), found)
    assert (json.loads(body), withheld) == ({"loss": 0.5}, ("num_examples", "patient", "weights"))
    body, withheld = filter_body(grant("train"), found)
    assert (json.loads(body), withheld) == ({"num_examples": 9}, ("loss", "patient", "weights"))


def test_keys_are_compared_as_they_are() -> None:
    """No case folding, no pattern, no prefix."""
    found = {"Loss": 1.0, "loss ": 1.0, "los": 1.0, "lossy": 1.0, "ｌoss": 1.0}
    assert filter_body(grant("validate", metrics=("loss",)), found) == (b"{}", tuple(sorted(found)))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, None, "0.5", [0.5], {"a": 1}])
def test_a_metric_that_is_no_finite_number_is_refused(value: Any) -> None:
    assert "loss" in refused(grant("validate", metrics=("loss",)), {"loss": value})
    assert "loss" in refused(grant("validate", metrics=("*",)), {"loss": value})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_json_does_not_have_never_becomes_a_body(value: float) -> None:
    """The parser of the gate's answer refuses it before; this is the second lock."""
    with pytest.raises((OutputError, ValueError)):
        filter_body(grant("train", metadata=("loss",)), {"num_examples": 1, "loss": value})


@pytest.mark.parametrize("count", [None, 0, -1, 1.0, True, "7", 1.5])
def test_num_examples_must_be_a_positive_integer(count: Any) -> None:
    assert "num_examples" in refused(grant("train"), {"num_examples": count})


def test_num_examples_must_be_there() -> None:
    assert "num_examples" in refused(grant("train", metadata=("*",)), {})


def test_an_update_of_too_few_examples_stays_here() -> None:
    """One person's data may be read out of an update that was made of one person."""
    assert "at least 20" in refused(grant("train", least=20), {"num_examples": 19})
    assert filter_body(grant("train", least=20), {"num_examples": 20}) == (b'{"num_examples":20}', ())


def test_a_body_may_be_as_large_as_its_limit_and_no_larger() -> None:
    given = grant("predict", metrics=("*",))
    room = egress.MAX_BODY_BYTES - len('{"r":""}')
    body, _ = filter_body(given, {"r": "x" * room})
    assert len(body) == egress.MAX_BODY_BYTES
    assert "at most" in refused(given, {"r": "x" * (room + 1)})
    # Bytes count, not characters.
    assert "at most" in refused(given, {"r": "é" * (room // 2 + 1)})


@pytest.mark.parametrize("key", ["\x1b]0;owned\x07", "loss\n12:00:00 agent: sent", "a\u202eb", "a\x9b2J", "a\x00", "\u2066x"])
@pytest.mark.parametrize("metrics", [("loss",), ("*",)], ids=["withheld", "let through"])
def test_a_key_that_a_terminal_or_a_log_would_obey_is_refused(key: str, metrics: tuple[str, ...]) -> None:
    with pytest.raises(OutputError) as caught:
        filter_body(grant("validate", metrics=metrics), {"loss": 1.0, key: 1.0})
    assert caught.value.code == "metrics-invalid"
    assert caught.value.message.isprintable()
    readable = filter_body(grant("validate", metrics=metrics), {"loss": 1.0, "Verlust je Straße / Ω": 1.0})
    assert b"loss" in readable[0]


def test_names_of_withheld_keys_are_a_few_and_not_a_way_out() -> None:
    body, withheld = filter_body(grant("validate", metrics=("loss",)), {f"patient-{n:04}": 1.0 for n in range(1000)})
    assert (body, len(withheld), withheld[-1]) == (b"{}", MAX_NAMED + 1, f"… and {1000 - MAX_NAMED} more")
    few = {f"k{n:02}": 1.0 for n in range(MAX_NAMED)}
    assert filter_body(grant("validate", metrics=("loss",)), few)[1] == tuple(few)


def test_a_long_key_is_refused_although_it_would_be_withheld() -> None:
    """Names of withheld keys go on record and to the log: they are a way out too."""
    assert "longer than" in refused(grant("validate", metrics=("loss",)), {"x" * 129: 1.0})
    body, withheld = filter_body(grant("validate", metrics=("loss",)), {"x" * 128: 1.0})
    assert (body, withheld) == (b"{}", ("x" * 128,))


def test_the_body_is_canonical() -> None:
    found = {"b": 1, "a": 2.5, "ä": 3}
    body, _ = filter_body(grant("validate", metrics=("*",)), found)
    assert body.decode() == '{"a":2.5,"b":1,"ä":3}'


def test_every_cause_is_a_known_code() -> None:
    assert set(egress.CAUSES) <= set(CODES)


def test_limits_and_results_fit_into_an_event() -> None:
    counts = limit_counts(LIMITS)
    assert set(counts) == {field.name for field in dataclasses.fields(Limits)}
    assert all(isinstance(value, int) for value in counts.values())
    body = result_body(StepResult("signalled", signal=9, denied={"ptrace": 2}))
    assert (body["ended"], body["signal"], body["denied"]) == ("signalled", 9, {"ptrace": 2})
