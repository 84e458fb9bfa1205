# SPDX-License-Identifier: Apache-2.0
"""The socket FOLDER/control of the development combiner: one order as a line of JSON, answered with a line for each round.

{"say": TEXT} ...   then {"failed": ROUNDS} or {"code": ..., "message": ..., "hint": ...}
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scaleoutd.cli.training import Order, Training
from scaleoutd.errors import ConfigError, ScaleoutError

ANSWER_S = 3600.0
LINE_BYTES = 1 << 20


@contextmanager
def doors(folder: Path, training: Training) -> Iterator[None]:
    """Listens on FOLDER/control; the folder is 0700, so whoever comes is this user or root."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with _short(folder) as place:
        listener.bind(f"{place}/control")
    listener.listen(4)
    threading.Thread(target=_serve, args=[listener, training], daemon=True).start()
    try:
        yield
    finally:
        listener.close()


@contextmanager
def _short(folder: Path) -> Iterator[str]:
    """A path of the folder that fits in sun_path (108 bytes, unix(7)), however deep it lies."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def _serve(listener: socket.socket, training: Training) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # closed: the end
            return
        threading.Thread(target=_answer, args=[connection, training], daemon=True).start()


def _answer(connection: socket.socket, training: Training) -> None:
    with connection, connection.makefile("rwb") as stream:

        def tell(value: Mapping[str, Any]) -> None:
            stream.write(json.dumps(value).encode() + b"\n")
            stream.flush()

        try:
            asked = json.loads(stream.readline(LINE_BYTES))
            order, failed = Order.of(asked), 0
            for line, learned in training.rounds(order):
                failed += not learned
                tell({"say": line})
            if order.out and training.last_model:
                tell({"say": training.write_model(Path(order.out))})
            tell({"failed": failed})
        except ScaleoutError as exc:
            tell({"code": exc.code, "message": exc.message, "hint": exc.hint})
        except OSError:  # who asked has gone
            return
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            tell({"code": "config-invalid", "message": f"cannot do what was asked: {exc!r}", "hint": ""})


def ask(folder: Path, asked: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The combiner's answers, line by line, while they come."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        try:
            with _short(folder) as place:
                channel.connect(f"{place}/control")
        except OSError as exc:
            raise ConfigError(
                f"cannot find a combiner in {folder}: expected its socket {folder / 'control'}: {os.strerror(exc.errno or 0)}",
                code="config-missing",
                hint="Start one in another terminal: `scaleoutctl combiner start`. Its folder is the argument.",
            ) from exc
        channel.settimeout(ANSWER_S)
        channel.sendall(json.dumps(asked).encode() + b"\n")
        with channel.makefile("rb") as stream:
            for line in stream:
                yield json.loads(line)
