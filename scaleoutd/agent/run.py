# SPDX-License-Identifier: Apache-2.0
"""The agent's end of the conversation with the runner about one task: the channel, the answer, the one file that goes with it."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self

from scaleoutd.errors import PeerError
from scaleoutd.ipc.channel import Channel
from scaleoutd.ipc.messages import ReceiveModel, Released


class Run:
    """The connection to the runner for one task, and what came over it."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.to_receive: ReceiveModel | None = None
        self.released: Released | None = None
        self.fetch_s = 0.0
        self.fd = -1  # the runner's file for the model, later the outbox file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close_file()
        self.channel.close()

    def close_file(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def take(self, answer: ReceiveModel | Released, descriptors: list[int]) -> None:
        """What the runner answered; it must come with the descriptor that belongs to it, and with no other."""
        wanted = 0 if isinstance(answer, Released) and answer.task != "train" else 1
        self.close_file()
        if len(descriptors) != wanted:
            found = len(descriptors)
            while descriptors:
                os.close(descriptors.pop())
            raise PeerError(f"cannot take the runner's answer: {found} descriptors, expected {wanted}")
        if wanted:
            self.fd = descriptors.pop()
        if isinstance(answer, Released):
            self.released = answer
        else:
            self.to_receive = answer
