# SPDX-License-Identifier: Apache-2.0
"""Small parts: configuration, back-off, interrupts, what a directive becomes."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from scaleoutd.agent.__main__ import read_config
from scaleoutd.agent.backoff import Backoff
from scaleoutd.agent.config import parse_config
from scaleoutd.agent.dialects.edge import directive_of
from scaleoutd.agent.interrupt import STOPPING, Interrupt
from scaleoutd.errors import ConfigError
from scaleoutd.proto import edge_pb2 as edge

MINIMAL = {"api_url": "https://a", "state_dir": "state", "token": "very-secret"}


def test_a_configuration_comes_on_a_descriptor_or_in_a_file(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.write(write, json.dumps(MINIMAL).encode())
    os.close(write)
    from_pipe = read_config(str(read))
    (tmp_path / "c.json").write_text(json.dumps(MINIMAL))
    assert from_pipe == read_config(str(tmp_path / "c.json"))
    assert (from_pipe.client_certificate, from_pipe.poll_interval_ms) == ("required", 5000)
    assert "very-secret" not in repr(from_pipe)


@pytest.mark.parametrize(
    "change", [{"unknown": 1}, {"poll_interval_ms": 1}, {"client_certificate": "maybe"}, {"client_id": "a b"}, {"api_url": 1}]
)
def test_a_configuration_with_a_mistake(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(json.dumps({**MINIMAL, **change}).encode())
    assert next(iter(change)) in caught.value.message
    assert "very-secret" not in caught.value.message


def test_a_configuration_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(str(tmp_path / "none"))
    assert caught.value.code == "config-missing"


def test_back_off_doubles_up_to_its_limit_and_is_full_jitter() -> None:
    bounds: list[float] = []

    def half(bound: float) -> float:
        bounds.append(bound)
        return bound / 2

    backoff = Backoff(1.0, 5.0, half)
    assert [backoff.next_s() for _ in range(5)] == [0.5, 1.0, 2.0, 2.5, 2.5]
    backoff.reset()
    assert backoff.next_s() == 0.5
    assert bounds == [1.0, 2.0, 4.0, 5.0, 5.0, 1.0]
    drawn = [Backoff(1.0, 1.0).next_s() for _ in range(200)]
    assert min(drawn) < 0.2
    assert max(drawn) > 0.8


def test_an_interrupt_wakes_who_waits_and_breaks_off_the_call() -> None:
    interrupt, broken = Interrupt(), threading.Event()
    interrupt.on_call(broken.set)
    assert not interrupt.wait(0.01)
    threading.Timer(0.05, interrupt.set, ["TIMEOUT"]).start()
    started_s = time.monotonic()
    assert interrupt.wait(600)
    assert time.monotonic() - started_s < 300
    assert broken.wait(60)  # the waiter is woken first
    assert interrupt.cancels == "TIMEOUT"
    later = threading.Event()
    interrupt.on_call(later.set)
    assert later.is_set()
    interrupt.close()


def test_the_agents_own_stop_is_no_cancellation() -> None:
    interrupt = Interrupt()
    interrupt.set(STOPPING)
    interrupt.set("TIMEOUT")
    assert (interrupt.reason, interrupt.cancels) == (STOPPING, "")
    interrupt.close()


def test_settings_travel_as_they_came() -> None:
    data = '{"client_settings": {"rate": 0.10, "name": "é", "deep": [1, {"x": null}]}, "other": 1}'
    directive = directive_of(edge.TaskRequest(correlation_id="c", type="Scaleout_ModelUpdate", data=data))
    assert directive.data == data
    assert json.loads(directive.settings) == json.loads(data)["client_settings"]
    assert directive.problem is None


@pytest.mark.parametrize("data", ["{", '{"client_settings": {"a": 1, "a": 2}}', '{"client_settings": {"a": NaN}}', "[" * 100])
def test_data_that_cannot_be_read_is_a_problem_with_a_name(data: str) -> None:
    directive = directive_of(edge.TaskRequest(correlation_id="c", type="Scaleout_ModelUpdate", data=data))
    assert directive.problem is not None
    assert directive.problem[0] == "settings-denied"


@pytest.mark.parametrize("data", ["", "{}", "[]", "1", '{"client_settings": null}', '{"client_settings": {}}'])
def test_no_settings(data: str) -> None:
    directive = directive_of(edge.TaskRequest(correlation_id="c", type="Scaleout_Validation", data=data))
    assert (directive.settings, directive.problem) == ("", None)


def test_a_stop_is_read_whatever_else_is_in_it() -> None:
    directive = directive_of(edge.TaskRequest(correlation_id="c", type="Custom_x", data="{", status="TIMEOUT"))
    assert (directive.stop, directive.problem) == ("TIMEOUT", None)
