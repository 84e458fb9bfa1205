# SPDX-License-Identifier: Apache-2.0
"""The runner's side of a task's connection: to the agent, or to the command line that plays its part.

The connection stands for the task.  When it ends, what runs for it is killed; a message that the protocol does not allow at
that point ends it too.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Mapping

from scaleoutd.errors import PeerError
from scaleoutd.ipc.channel import Channel
from scaleoutd.ipc.messages import CancelTask, ModelReceived, ReceiveModel, Stage
from scaleoutd.runner.instances import Instance

# A large model over a slow line; the agent's own deadlines are far below.
RECEIVE_S = 24 * 3600.0


class Link:
    """One connection while its task is on the way."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.cancelled = ""
        self.run = ""  # what the task became, for whoever watches in the foreground
        self.denied: Mapping[str, int] = {}
        self.decided = threading.Event()  # there is a result, or there will be none
        self.answered = threading.Event()  # and the other end has it

    def receive_model(
        self, run: str, max_bytes: int, writer: int, *, max_is_space: bool = False, beside: Callable[[], object] = lambda: None
    ) -> ModelReceived:
        """Hands out the write-only descriptor (ours is closed), does `beside`, and waits until the agent says that it is done."""
        try:
            self.channel.tell(ReceiveModel(run, max_bytes, max_is_space), [writer])
        finally:
            os.close(writer)
        beside()
        received = self.channel.receive(ModelReceived, CancelTask, timeout_s=RECEIVE_S)
        if received.descriptors:
            received.close()
            raise PeerError("cannot take the model: the agent's answer carries descriptors")
        if isinstance(received.message, CancelTask):
            raise PeerError("cannot take the model: the task was cancelled while it was received", code="peer-closed")
        message: ModelReceived = received.message
        return message

    def stage(self, name: str) -> None:
        self.channel.tell(Stage(name))

    def watch(self, instance: Instance) -> None:
        """Waits for the instance to speak; passes a cancellation on; PeerError when the other end of the task is gone."""
        poll = select.poll()
        poll.register(self.channel.fileno(), select.POLLIN)
        poll.register(instance.channel.fileno(), select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if instance.channel.fileno() in ready:
                return
            received = self.channel.receive(CancelTask)
            received.close()
            self.cancelled = received.message.reason or "cancelled"
            instance.cancel()
