# SPDX-License-Identifier: Apache-2.0
"""Messages: wrong types, wrong fields, unasked descriptors, refusals, and the hello."""

from __future__ import annotations

import os

import pytest

from scaleoutd.errors import PeerError, StorageError
from scaleoutd.ipc import messages
from scaleoutd.ipc.channel import PROTOCOL, Channel, Hello, Refused

OFFER = messages.TaskOffer("c-1", "train", "m", "s", "r", "localhost:1")


def test_control_a_message_arrives_as_it_was_sent() -> None:
    left, right = Channel.pair("runner", "agent")
    left.tell(OFFER)
    assert right.expect(messages.TaskOffer, timeout_s=60) == OFFER


@pytest.mark.parametrize(
    "body",
    [
        {"t": "no-such-message"},
        {"t": 5},
        {"t": ["task-offer"]},
        {},
        {"t": "task-offer"},
        {"t": "delivered", "run": "r", "outcome": "acknowledged", "extra": 1},
        {"t": "delivered", "run": "r", "outcome": "maybe"},
        {"t": "delivered", "run": 7, "outcome": "unknown"},
        {"t": "model-received", "size_bytes": True, "sha256": "0" * 64},
        {"t": "model-received", "size_bytes": -1, "sha256": "0" * 64},
        {"t": "model-received", "size_bytes": 1, "sha256": "0" * 63},
        {"t": "delivered", "run": "../../etc", "outcome": "unknown"},
    ],
)
def test_a_message_of_another_form_is_refused(body: dict[str, object]) -> None:
    left, right = Channel.pair("runner", "agent")
    left.connection.send(body)
    with pytest.raises(PeerError) as caught:
        right.receive(messages.TaskOffer, messages.Delivered, messages.ModelReceived, timeout_s=60)
    assert caught.value.code == "peer-protocol"


def test_a_known_message_at_the_wrong_time_is_refused_and_its_descriptors_closed() -> None:
    left, right = Channel.pair("runner", "agent")
    read_end, write_end = os.pipe()
    left.tell(messages.Delivered("r", "unknown"), [write_end])
    os.close(write_end)
    with pytest.raises(PeerError, match="expected task-offer"):
        right.receive(messages.TaskOffer, timeout_s=60)
    assert os.read(read_end, 1) == b""
    os.close(read_end)


def test_descriptors_that_nobody_asked_for_are_refused() -> None:
    left, right = Channel.pair("runner", "agent")
    read_end, write_end = os.pipe()
    left.tell(OFFER, [write_end])
    os.close(write_end)
    with pytest.raises(PeerError, match="carries descriptors"):
        right.expect(messages.TaskOffer, timeout_s=60)
    assert os.read(read_end, 1) == b""
    os.close(read_end)


def test_a_refusal_comes_out_as_its_own_error() -> None:
    left, right = Channel.pair("ledger", "agent")
    left.tell(Refused.of(StorageError("cannot write: full", code="storage-full", hint="Free space.")))
    with pytest.raises(StorageError) as caught:
        right.expect(messages.Recorded, timeout_s=60)
    assert (caught.value.code, caught.value.hint) == ("storage-full", "Free space.")


def test_an_invented_code_in_a_refusal_becomes_internal() -> None:
    left, right = Channel.pair("ledger", "agent")
    left.tell(Refused("made-up", "x"))
    with pytest.raises(Exception, match="made-up") as caught:
        right.expect(messages.Recorded, timeout_s=60)
    assert getattr(caught.value, "code", "") == "internal"


@pytest.mark.parametrize(("protocol", "fits"), [(PROTOCOL, True), (PROTOCOL + 1, True), (PROTOCOL + 2, False), (0, False)])
def test_hello_of_another_protocol(protocol: int, fits: bool) -> None:
    left, right = Channel.pair("runner", "agent")
    left.tell(Hello(protocol, "9.9.9", "agent", {"policy": "x"}))
    if fits:
        assert right.greet("runner").digests == {"policy": "x"}
    else:
        with pytest.raises(PeerError, match="speaks protocol"):
            right.greet("runner")


def test_a_peer_that_says_no_hello_is_refused() -> None:
    left, right = Channel.pair("runner", "agent")
    left.tell(OFFER)
    with pytest.raises(PeerError, match="expected hello"):
        right.greet("runner")
