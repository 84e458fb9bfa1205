# SPDX-License-Identifier: Apache-2.0
"""The connections of a door, each served by a thread of its own, and no more of them than there are places.

The unit has 64 tasks (TasksMax=).  An agent has a connection for each task in hand and needs a few; a taken one that opens them
without end is hung up on, and neither the threads nor the descriptors of the runner run out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from scaleoutd.errors import PeerError
from scaleoutd.ipc.channel import Channel
from scaleoutd.ipc.doors import ServerDoor

MAX_CONNECTIONS = 32


class Connections:
    """`handle` has the connection until it returns; it closes it."""

    def __init__(self, handle: Callable[[Channel], None], log: Callable[[str], None]) -> None:
        self._handle, self._log = handle, log
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)

    def serve(self, door: ServerDoor) -> None:
        """Accepts until the door closes."""
        while True:
            try:
                channel = door.accept()
            except PeerError as exc:
                if exc.code == "peer-closed":
                    return
                self._log(f"refused a connection: {exc.message}")
                continue
            self._take(channel)

    def _take(self, channel: Channel) -> None:
        if not self._places.acquire(blocking=False):
            self._log(f"refused a connection of {channel.peer}: {MAX_CONNECTIONS} are open")
            channel.close()
            return
        threading.Thread(target=self._hold, args=[channel], name=f"task of {channel.peer}", daemon=True).start()

    def _hold(self, channel: Channel) -> None:
        try:
            self._handle(channel)
        finally:
            self._places.release()
