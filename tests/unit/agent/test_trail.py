# SPDX-License-Identifier: Apache-2.0
"""Events in order, in few barriers, and none lost while the ledger is away for a while."""

from __future__ import annotations

import io
import json
import threading
import time
from typing import Any

import pytest

from scaleoutd.agent.log import open_log
from scaleoutd.agent.trail import Trail
from scaleoutd.errors import LedgerError
from scaleoutd.ipc.messages import Recorded
from tests.fakes.ledger import FakeLedger


def make() -> tuple[Trail, FakeLedger, io.StringIO]:
    output, ledger = io.StringIO(), FakeLedger("agent")
    return Trail(ledger, open_log(output, "json")), ledger, output


def wait_for(ledger: FakeLedger, count: int) -> None:
    deadline_s = time.monotonic() + 60
    while len(ledger.events) < count:
        assert time.monotonic() < deadline_s, ledger.types()
        time.sleep(0.01)


def test_notes_go_along_with_the_next_act_in_one_barrier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scaleoutd.agent.trail.LINGER_S", 3600.0)  # they do not go out by themselves
    trail, ledger, _ = make()
    trail.note("task-received", correlation_id="c", task="train")
    trail.note("model-downloaded", model_id="m", size_bytes=1)
    trail.must("sending", run="r")
    assert ledger.types() == ["task-received", "model-downloaded", "sending"]
    assert ledger.barriers == 1
    trail.close()


def test_notes_go_out_by_themselves() -> None:
    trail, ledger, _ = make()
    trail.note("token-refreshed")
    wait_for(ledger, 1)
    trail.close()


def test_an_act_that_cannot_be_recorded_is_refused_and_leaves_nothing_behind() -> None:
    trail, ledger, _ = make()
    ledger.fail_on("sending")
    trail.note("task-received", correlation_id="c", task="train")
    with pytest.raises(LedgerError):
        trail.must("sending", run="r")
    ledger.heal()
    trail.must("sending", run="again")
    assert ledger.types() == ["task-received", "sending"]
    assert ledger.bodies("sending") == [{"run": "again"}]
    trail.close()


def test_what_is_noted_while_the_ledger_is_away_comes_later_in_order() -> None:
    trail, ledger, output = make()
    ledger.fail_next(2)
    for number in range(130):
        trail.note("disconnected", combiner=str(number))
    wait_for(ledger, 130)
    assert [body["combiner"] for body in ledger.bodies("disconnected")] == [str(number) for number in range(130)]
    trail.close()
    codes = [json.loads(line)["code"] for line in output.getvalue().splitlines()]
    assert codes[0] == "ledger-unavailable"


def test_what_is_noted_while_a_batch_is_written_is_not_lost_by_a_close() -> None:
    class Slow(FakeLedger):
        def record_all(self, events: Any, beside: Any = lambda: None) -> Recorded:
            recorded = super().record_all(events, beside)
            writing.set()
            assert noted.wait(60)
            return recorded

    writing, noted = threading.Event(), threading.Event()
    ledger = Slow("agent")
    trail = Trail(ledger, open_log(io.StringIO(), "json"))
    trail.note("token-refreshed")
    assert writing.wait(60)
    trail.note("agent-stopped", reason="stopped")
    trail._stop.set()
    noted.set()
    trail.close(60)
    assert ledger.types() == ["token-refreshed", "agent-stopped"]


def test_close_writes_what_waits_and_says_what_it_could_not() -> None:
    trail, ledger, output = make()
    trail.note("agent-stopped", reason="stopped")
    trail.close(60)
    assert ledger.types() == ["agent-stopped"]
    trail, ledger, output = make()
    ledger.fail_next(1000)
    trail.note("agent-stopped", reason="stopped")
    trail.close(60)
    assert "could not be recorded" in output.getvalue()


def test_an_event_that_the_catalogue_does_not_know_is_in_the_log() -> None:
    trail, ledger, output = make()
    trail.note("no-such-event", x=1)
    trail.must("sending", run="r")
    assert ledger.types() == ["sending"]
    assert "event-invalid" in output.getvalue()
    trail.close()
