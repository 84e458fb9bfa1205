# SPDX-License-Identifier: Apache-2.0
"""Typed messages over packets, and the hello that opens every connection.

A message is a frozen dataclass (scaleoutd.core.records) registered under a name with `@message("name")`; on the wire it
is its JSON object with the name in "t".  The first message of both ends is `Hello`.  Protocol N talks to N and N - 1, so
an instance of the package before finishes its task beside the new one.

Standard library only: the step's launcher uses this module too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from scaleoutd import __version__
from scaleoutd.core import records
from scaleoutd.errors import FormatError, PeerError, ScaleoutError, from_code
from scaleoutd.ipc.packets import Connection

PROTOCOL = 1
OLDEST_PROTOCOL = 1
HELLO_TIMEOUT_S = 10.0

M = TypeVar("M")
_NAME_OF: dict[type[Any], str] = {}
_CLASS_OF: dict[str, type[Any]] = {}


def message(name: str) -> Callable[[type[M]], type[M]]:
    """Registers a dataclass as the message `name`."""

    def register(cls: type[M]) -> type[M]:
        if _CLASS_OF.setdefault(name, cls) is not cls:
            raise AssertionError(f"message {name!r} is registered twice")
        _NAME_OF[cls] = name
        return cls

    return register


@message("hello")
@dataclass(frozen=True)
class Hello:
    """First message of each end.  `digests`: what this instance was started with, for example {"policy": sha256}."""

    protocol: int
    build: records.Name
    room: records.Name
    digests: Mapping[str, str] = field(default_factory=dict)


@message("refused")
@dataclass(frozen=True)
class Refused:
    """An answer of every room: the request was understood and is not granted, or it failed."""

    code: records.Name
    message: str
    hint: str = ""

    @classmethod
    def of(cls, error: ScaleoutError) -> Refused:
        return cls(error.code, error.message[: records.DEFAULT_MAX_TEXT], error.hint[: records.DEFAULT_MAX_TEXT])

    def error(self) -> ScaleoutError:
        return from_code(self.code, self.message, self.hint)


@dataclass
class Received:
    """A message with the descriptors that came with it; whoever takes it closes them."""

    message: Any
    descriptors: list[int]

    def close(self) -> None:
        while self.descriptors:
            os.close(self.descriptors.pop())

    def take(self, index: int = 0) -> int:
        """Descriptor `index`, now the caller's."""
        return self.descriptors.pop(index)


class Channel:
    """A connection that speaks messages.  `peer` is the room at the other end, as the door or the hello told."""

    def __init__(self, connection: Connection, peer: str = "?") -> None:
        self.connection = connection
        self.peer = peer
        self.peer_hello: Hello | None = None

    @classmethod
    def pair(cls, left_peer: str = "?", right_peer: str = "?") -> tuple[Channel, Channel]:
        left, right = Connection.pair()
        return cls(left, left_peer), cls(right, right_peer)

    def fileno(self) -> int:
        return self.connection.fileno()

    def close(self) -> None:
        self.connection.close()

    def greet(self, room: str, digests: Mapping[str, str] | None = None, timeout_s: float = HELLO_TIMEOUT_S) -> Hello:
        """Sends our hello, takes the other's, and checks the protocol; returns the other's."""
        self.tell(Hello(PROTOCOL, __version__, room, digests or {}))
        return self.welcome(self.expect(Hello, timeout_s=timeout_s))

    def welcome(self, hello: Hello) -> Hello:
        """Checks the other's hello and keeps it; a server that must not wait for it calls this itself."""
        if not OLDEST_PROTOCOL <= hello.protocol <= PROTOCOL + 1:
            raise PeerError(
                f"cannot talk to room {hello.room}: it speaks protocol {hello.protocol},"
                f" this build speaks {OLDEST_PROTOCOL} to {PROTOCOL}",
                hint="Restart the rooms so that all run the same package.",
            )
        self.peer_hello = hello
        return hello

    def tell(self, body: Any, descriptors: Sequence[int] = ()) -> None:
        self.connection.send({"t": _NAME_OF[type(body)], **records.encode(body)}, descriptors)

    def receive(self, *types: type[Any], timeout_s: float | None = None) -> Received:
        """The next message, which must be one of `types`; a `Refused` that is not asked for raises its error."""
        packet = self.connection.receive(timeout_s)
        try:
            body = dict(packet.body)
            name = body.pop("t", None)
            cls = _CLASS_OF.get(name) if isinstance(name, str) else None
            if cls is None:
                raise PeerError(f"cannot take a message of {self.peer}: its type {str(name)[:64]!r} is unknown")
            try:
                value = records.decode(cls, body, str(name))
            except FormatError as exc:
                raise PeerError(f"cannot take a message of {self.peer}: {exc.message}") from exc
            if not isinstance(value, types):
                if isinstance(value, Refused):
                    error = value.error()
                    error.reported_by = self.peer
                    raise error
                wanted = ", ".join(_NAME_OF[kind] for kind in types)
                raise PeerError(f"cannot take message {name!r} of {self.peer}: expected {wanted}")
        except BaseException:
            packet.close()
            raise
        return Received(value, packet.descriptors)

    def expect(self, cls: type[M], *, timeout_s: float | None = None) -> M:
        """The next message, of type `cls` and without descriptors."""
        received = self.receive(cls, timeout_s=timeout_s)
        if received.descriptors:
            received.close()
            raise PeerError(f"cannot take message {_NAME_OF[cls]!r} of {self.peer}: it carries descriptors")
        value = received.message
        if not isinstance(value, cls):  # receive() has checked; this tells the type checker
            raise PeerError("cannot take a message: wrong type")
        return value

    def ask(self, request: Any, answer: type[M], *, descriptors: Sequence[int] = (), timeout_s: float | None = None) -> M:
        """Sends `request` and returns the answer; raises the error of a `Refused`."""
        self.tell(request, descriptors)
        return self.expect(answer, timeout_s=timeout_s)
