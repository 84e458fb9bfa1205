# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import threading
import time
from types import SimpleNamespace

import pytest

from scaleoutd.devcombiner import rounds
from scaleoutd.devcombiner.container import write_container
from scaleoutd.devcombiner.npz import flat, write_npz
from scaleoutd.devcombiner.server import DevCombiner
from scaleoutd.errors import ConfigError, FormatError, TransportError
from tests.unit.devcombiner.node import Arrays, Train, nodes

SEED = write_npz({"w": flat("f4", (2,), [1.0, 2.0])})


def grows(delta: float, examples: int) -> Train:
    def train(arrays: Arrays, settings: dict[str, float]) -> tuple[Arrays, int]:
        return {"w": flat("f4", (2,), [v + delta * settings.get("lr", 1) for v in arrays["w"].values])}, examples

    return train


def answers(first: float, second: float = 0.0) -> Train:
    return lambda arrays, settings: ({"w": flat("f4", (2,), [first, second])}, 1)


def test_three_rounds_two_nodes_known_averages_and_times(combiner: DevCombiner) -> None:
    with nodes(combiner, a=grows(1.0, 1), b=grows(5.0, 3)):
        combiner.start_session(SEED, 3, 2, 60, client_settings={"lr": 0.5})
        session = combiner.wait_session(90)
    assert session.status == "completed"
    assert [record.status for record in combiner.history] == ["completed"] * 3
    # (1 * 1 + 3 * 5) / 4 * 0.5 = 2 a round
    for number, record in enumerate(combiner.history, 1):
        assert list(combiner.arrays(record.new_model_id)["w"].values) == [1.0 + 2 * number, 2.0 + 2 * number]
        assert record.validations == {"a": {"first": 1.0 + 2 * number}, "b": {"first": 1.0 + 2 * number}}
        assert {name: update.num_examples for name, update in record.updates.items()} == {"a": 1, "b": 3}
        for timings in (record.train_timings, record.validate_timings):
            for timing in timings.values():
                assert timing.handed_out_at_s is not None and timing.result_at_s is not None
                assert record.started_at_s <= timing.handed_out_at_s < timing.result_at_s <= record.ended_at_s
    assert combiner.history[1].model_id == combiner.history[0].new_model_id
    assert {update.session_id for update in combiner.updates} == {session.session_id}


@pytest.mark.parametrize(
    ("attack", "train", "reason"),
    [
        ("NaN", answers(math.nan), "output-not-finite"),
        ("infinity", answers(math.inf), "output-not-finite"),
        ("other shape", lambda a, s: ({"w": flat("f4", (1,), [1.0])}, 1), "output-shape"),
        ("other type", lambda a, s: ({"w": flat("f8", (2,), [1.0, 1.0])}, 1), "output-shape"),
        ("huge weight", lambda a, s: ({"v": flat("f4", (2,), [1.0, 1.0])}, 10**9), "output-shape"),
    ],
)
def test_an_update_that_cannot_be_averaged_is_refused_and_the_round_goes_on(
    attack: str, train: Train, reason: str, combiner: DevCombiner
) -> None:
    with nodes(combiner, good=grows(1.0, 1), bad=train):
        combiner.start_session(SEED, 1, 2, 60, validate=False)
        combiner.wait_session(90)
    (record,) = combiner.history
    assert record.status == "partial"
    assert set(record.refused) == {"bad"} and reason in record.refused["bad"]
    assert list(combiner.arrays(record.new_model_id)["w"].values) == [2.0, 3.0]


def test_a_failed_node_is_not_waited_for(combiner: DevCombiner) -> None:
    with nodes(combiner, good=grows(1.0, 1), bad=lambda arrays, settings: "FAILED"):
        combiner.start_session(SEED, 2, 2, 3600, validate=False)
        combiner.wait_session(90)
    assert [(record.status, record.failed) for record in combiner.history] == [("partial", {"bad": "FAILED"})] * 2


def test_completed_without_an_update_is_given_up_after_a_grace(combiner: DevCombiner) -> None:
    with nodes(combiner, good=grows(1.0, 1), liar=lambda arrays, settings: "COMPLETED"):
        combiner.start_session(SEED, 1, 2, 60, validate=False)
        combiner.wait_session(90)
    assert combiner.history[0].failed == {"liar": "COMPLETED"}


def test_a_silent_node_times_out_and_is_told_to_stop(combiner: DevCombiner, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hour of the round is over as soon as the other node's update is there."""
    ahead_s = 0.0

    def clock_s() -> float:
        nonlocal ahead_s
        ahead_s += 3600 if combiner.updates else 0
        return time.monotonic() + ahead_s

    monkeypatch.setattr(rounds, "time", SimpleNamespace(monotonic=clock_s))
    with nodes(combiner, good=grows(1.0, 1), silent=lambda arrays, settings: "") as running:
        combiner.start_session(SEED, 1, 2, 3600, validate=False)
        combiner.wait_session(90)
        assert combiner.history[0].failed == {"silent": "timeout"}
        board = combiner.board
        assert board.wait_until(lambda: any(o.client_id == "silent" and o.done for o in board.offers.values()), 60)
    assert running["silent"].stopped[0] == "TIMEOUT" and running["good"].stopped == []


def test_a_round_without_any_update_fails_and_keeps_the_model(combiner: DevCombiner) -> None:
    with nodes(combiner, bad=lambda arrays, settings: "FAILED"):
        session = combiner.start_session(SEED, 2, 1, 10)
        seed_id = session.model_id
        combiner.wait_session(90)
    assert [(record.status, record.new_model_id) for record in combiner.history] == [("failed", "")] * 2
    assert session.model_id == seed_id and combiner.validations == []


def test_too_few_clients_end_the_session(combiner: DevCombiner) -> None:
    with nodes(combiner, only=grows(1.0, 1)):
        combiner.start_session(SEED, 2, 2, 0.5)
        assert combiner.wait_session(90).status == "failed"
    assert [record.status for record in combiner.history] == ["no-clients"]


def test_a_session_waits_for_a_client_that_comes_later(combiner: DevCombiner) -> None:
    combiner.start_session(SEED, 1, 1, 60, validate=False)
    with nodes(combiner, late=grows(1.0, 1)):
        assert combiner.wait_session(90).status == "completed"
    assert combiner.history[0].status == "completed"


def test_seed_in_a_container_keeps_its_id_and_deflated_models_are_served(combiner: DevCombiner) -> None:
    with nodes(combiner, a=grows(1.0, 1)):
        session = combiner.start_session(write_container("seed-1", SEED, deflate=True), 1, 1, 60, deflate=True)
        assert session.model_id == "seed-1"
        combiner.wait_session(90)
    assert list(combiner.arrays(combiner.history[0].new_model_id)["w"].values) == [2.0, 3.0]


def test_a_seed_that_is_no_model_is_refused_before_any_client_sees_it(combiner: DevCombiner) -> None:
    for seed in (b"", b"no npz", write_container("m", b"no npz"), write_container("m", SEED, version=3)):
        with pytest.raises(FormatError):
            combiner.start_session(seed, 1, 1, 5)
    assert combiner.session is None and combiner.board.offers == {} and combiner.store.all() == {}


def test_wait_and_start_say_what_is_wrong(combiner: DevCombiner) -> None:
    with pytest.raises(ConfigError):
        combiner.wait_session(1)
    combiner.start_session(SEED, 1, 1, 30)
    with pytest.raises(ConfigError, match="one is running"):
        combiner.start_session(SEED, 1, 1, 30)
    with pytest.raises(TransportError, match="cannot finish session"):
        combiner.wait_session(0.1)


def test_stop_ends_a_session_and_leaves_no_thread_and_no_folder() -> None:
    before = set(threading.enumerate())
    with DevCombiner() as combiner:
        combiner.start_session(SEED, 1, 1, 600)
    assert not combiner.folder.exists()
    left = {thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith("devcombiner")}
    assert left == set()
