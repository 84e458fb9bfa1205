# SPDX-License-Identifier: Apache-2.0
"""A taken agent and the model's file: it cannot read it, cannot keep it, cannot change it after it was hashed."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest

from scaleoutd.errors import LimitExceededError, PeerError
from scaleoutd.runner import receive
from scaleoutd.runner.receive import IncomingModel


def test_control_what_was_written_is_what_is_hashed_and_linked(tmp_path: Path) -> None:
    incoming = IncomingModel(tmp_path)
    writer = incoming.take_writer()
    os.write(writer, b"weights")
    os.close(writer)
    model = incoming.seal(100)
    assert (model.size_bytes, model.sha256) == (7, hashlib.sha256(b"weights").hexdigest())
    incoming.link(tmp_path / "model.npz")
    assert (tmp_path / "model.npz").read_bytes() == b"weights"
    assert (tmp_path / "model.npz").stat().st_mode & 0o777 == 0o444
    incoming.close()


def test_the_agents_descriptor_cannot_read(tmp_path: Path) -> None:
    incoming = IncomingModel(tmp_path)
    writer = incoming.take_writer()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.read(writer, 1)
    os.close(writer)
    incoming.close()


def test_an_agent_that_keeps_its_descriptor_gets_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receive, "LEASE_WAIT_S", 0.1)
    incoming = IncomingModel(tmp_path)
    writer = incoming.take_writer()
    os.write(writer, b"weights")
    kept = os.dup(writer)
    os.close(writer)
    with pytest.raises(PeerError, match="still holds"):
        incoming.seal(100)
    os.close(kept)
    incoming.seal(100)
    incoming.close()


def test_a_late_close_is_waited_for(tmp_path: Path) -> None:
    incoming = IncomingModel(tmp_path)
    writer = incoming.take_writer()
    os.write(writer, b"weights")
    timer = threading.Timer(0.05, os.close, [writer])
    timer.start()
    assert incoming.seal(100).size_bytes == 7
    timer.join()
    incoming.close()


def test_a_model_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    incoming = IncomingModel(tmp_path)
    writer = incoming.take_writer()
    os.write(writer, b"x" * 101)
    os.close(writer)
    with pytest.raises(LimitExceededError) as caught:
        incoming.seal(100)
    assert caught.value.code == "limit-model"
    incoming.close()


def test_nothing_is_left_in_the_folder_of_a_task_that_ends_early(tmp_path: Path) -> None:
    incoming = IncomingModel(tmp_path)
    os.close(incoming.take_writer())
    incoming.close()
    assert not list(tmp_path.iterdir())
