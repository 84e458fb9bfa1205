# SPDX-License-Identifier: Apache-2.0
"""Egress by policy: ranges of numbers, the distance of an update, form and finiteness; and bytes that are read for each run."""

# mypy: disable-error-code="func-returns-value"

from __future__ import annotations

import math
import os
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from scaleoutd.core.plan import GateRules, ModelRules
from scaleoutd.core.policy import Egress, NumberRange, parse_policy_yaml
from scaleoutd.errors import ConfigError, OutputError
from scaleoutd.runner import store
from scaleoutd.runner.egress import filter_body
from scaleoutd.runner.hashing import check_files
from scaleoutd.runner.store import take_snapshot
from scaleoutd.step.gate import check_train
from tests.unit.runner.signed_project import make_project, rest
from tests.unit.runner.test_egress import grant
from tests.unit.step.models import npy, npz

MINIMAL = "version: 1\nproject: {name: heart, path: /srv/heart}\ntrust_root: /etc/scaleoutd/trust\n"


@pytest.mark.parametrize("value", [-0.001, 1.001, "0.5", True, [0.5], None])
def test_a_metric_out_of_its_range_does_not_leave(value: object) -> None:
    given = replace(grant("validate"), egress=Egress(metrics=("*",), ranges=(NumberRange("accuracy", "0", "1"),)))
    with pytest.raises(OutputError) as caught:
        filter_body(given, {"accuracy": value})
    assert caught.value.code == "metrics-invalid"
    for good in (0, 1, 0.5, 1.0):  # the control
        filter_body(given, {"accuracy": good, "loss": 7})


def test_num_examples_and_metadata_have_ranges_too() -> None:
    ranges = (NumberRange("num_examples", None, "1000"), NumberRange("note", None, None))
    given = replace(grant("train"), egress=Egress(metadata=("note",), ranges=ranges))
    for found in ({"num_examples": 1001}, {"num_examples": 5, "note": "name;diagnosis"}):
        with pytest.raises(OutputError):
            filter_body(given, found)
    filter_body(given, {"num_examples": 1000, "note": 1})


def gate(tmp_path: Path, written: bytes, received: bytes, **rules: object) -> str:
    fds = []
    for name, data in (("w", written), ("m", b'{"num_examples": 3}'), ("r", received)):
        (tmp_path / name).write_bytes(data)
        fds.append(os.open(tmp_path / name, os.O_RDONLY))
    models = ModelRules(("npz",), 1 << 20)
    try:
        check_train(GateRules("train", 1 << 20, model=models, **rules), models, *fds)  # type: ignore[arg-type]
    except OutputError as exc:
        return exc.code
    finally:
        for fd in fds:
            os.close(fd)
    return "ok"


def model(code: str, descr: str, *values: float) -> bytes:
    return npz({"0": npy(descr, (len(values),), struct.pack(f"{code[0]}{len(values)}{code[1]}", *values))})


@pytest.mark.parametrize(("code", "descr"), [("<f", "<f4"), ("<d", "<f8"), ("<e", "<f2"), (">f", ">f4"), (">d", ">f8")])
def test_an_update_too_far_from_the_model_does_not_leave(tmp_path: Path, code: str, descr: str) -> None:
    received, written = model(code, descr, 1, 1, 1), model(code, descr, 4, 5, 1)  # 5 away
    assert gate(tmp_path, written, received, max_update_norm="4.99") == "output-norm"
    assert gate(tmp_path, written, received, max_update_norm="5") == "ok"
    assert gate(tmp_path, written, received) == "ok"


def test_an_infinity_or_a_nan_is_never_near(tmp_path: Path) -> None:
    received = model("<f", "<f4", 1, 1)
    for bad in (math.nan, math.inf):
        written = model("<f", "<f4", 1, bad)
        assert gate(tmp_path, written, received, finite=False, max_update_norm="1000") == "output-norm"
        assert gate(tmp_path, written, received) == "output-not-finite"
        assert gate(tmp_path, written, received, finite=False) == "ok"


def test_form_is_the_policys_to_ask_for(tmp_path: Path) -> None:
    written, received = model("<f", "<f4", 1), model("<f", "<f4", 1, 2)
    assert gate(tmp_path, written, received) == "output-shape"
    assert gate(tmp_path, written, received, same_form=False) == "ok"


def test_the_policy_takes_numbers_and_text_and_refuses_what_has_no_effect() -> None:
    found = parse_policy_yaml(
        (MINIMAL + "egress: {max_update_norm: 10, ranges: [{key: a, minimum: 0, maximum: '0.5'}]}\n").encode()
    )
    assert (found.egress.max_update_norm, found.egress.ranges) == ("10", (NumberRange("a", "0", "0.5"),))
    for wrong in ("{max_update_norm: 1, same_form: false}", "{ranges: [{key: a}, {key: a}]}", "{max_update_norm: far}"):
        with pytest.raises(ConfigError):
            parse_policy_yaml(f"{MINIMAL}egress: {wrong}\n".encode())


def test_bytes_are_read_for_each_run_when_the_policy_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = make_project(tmp_path / "p")
    rest()
    take_snapshot(project.prove(), tmp_path / "store")
    reads: list[object] = []
    monkeypatch.setattr(store, "check_files", lambda *given: reads.append(given) or check_files(*given))
    take_snapshot(project.prove(), tmp_path / "store")
    assert not reads
    assert not take_snapshot(project.prove(), tmp_path / "store", read_always=True).copied
    assert len(reads) == 2  # the copy and the source
