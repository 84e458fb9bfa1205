# SPDX-License-Identifier: Apache-2.0
"""One task without a server: the command line plays the agent's part towards the runner."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scaleoutd.cli.rooms import Rooms
from scaleoutd.core.plan import Task
from scaleoutd.durable import storage_errors, write_all
from scaleoutd.errors import PeerError
from scaleoutd.ipc.channel import Channel
from scaleoutd.ipc.messages import Delivered, Forgotten, ModelReceived, ReceiveModel, Released, Stage, TaskOffer

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class LocalResult:
    """What the runner released, and the file it was written to when one was asked for: the container, or the JSON."""

    released: Released
    file: Path | None


def offer_locally(
    rooms: Rooms,
    task: Task,
    model: Path,
    *,
    settings: str = "",
    save_to: Path | None = None,
    on_stage: Callable[[str], None] = lambda name: None,
) -> LocalResult:
    """Offers `task` with the model file `model` and waits for its end; raises the error it ended with."""
    channel = rooms.connect("runner")
    try:
        channel.greet("cli")
        channel.tell(TaskOffer(f"local-{secrets.token_hex(8)}", task, model.name[:256], "local", "local", "local", settings))
        _stream(rooms, channel, model)
        while True:
            rooms.wait_readable(channel.fileno())
            received = channel.receive(Stage, Released)
            if isinstance(received.message, Released):
                break
            on_stage(received.message.name)
        released: Released = received.message
        try:
            saved = None
            if save_to is not None:
                saved = _save(received.take(), save_to) if received.descriptors else _save_body(released, save_to)
        finally:
            received.close()
        channel.tell(Delivered(released.run, "acknowledged" if saved else "dropped"))
        rooms.wait_readable(channel.fileno())
        channel.expect(Forgotten)
        return LocalResult(released, saved)
    finally:
        channel.close()


def _stream(rooms: Rooms, channel: Channel, model: Path) -> None:
    rooms.wait_readable(channel.fileno())
    received = channel.receive(ReceiveModel)
    if len(received.descriptors) != 1:
        received.close()
        raise PeerError("cannot send the model: the runner gave no file for it")
    writer = received.take()
    digest = hashlib.sha256()
    size = 0
    try:
        with storage_errors(f"read the model {model}"), open(model, "rb") as file:
            while data := file.read(CHUNK_BYTES):
                write_all(writer, data)
                digest.update(data)
                size += len(data)
    finally:
        os.close(writer)
    channel.tell(ModelReceived(size, digest.hexdigest()))


def _save_body(released: Released, path: Path) -> Path:
    with storage_errors(f"write {path}"):
        path.write_text(released.body + "\n", encoding="utf-8")
    return path


def _save(fd: int, path: Path) -> Path:
    try:
        with storage_errors(f"write {path}"), open(path, "wb") as file:
            offset = 0
            while data := os.pread(fd, CHUNK_BYTES, offset):
                file.write(data)
                offset += len(data)
    finally:
        os.close(fd)
    return path
