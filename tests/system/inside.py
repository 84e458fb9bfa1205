# SPDX-License-Identifier: Apache-2.0
"""The one program of the tests inside a booted guest: it runs what the host asks for, as root, and tells what came of it.

It is a unit of the guest (guest.service), so what it starts is started inside: the guest's cgroups, its seccomp filter, its
namespaces.  Container and machine speak the same frames; only the line differs, a Unix socket bound into the container or a
virtio port of the machine.  One thread, one loop; the standard library of the guest's own python3.

A frame is a kind (one byte), the number of the command (u32), a length (u32), big-endian, and as many bytes.
"""

from __future__ import annotations

import json
import os
import pwd
import selectors
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator

HEAD = struct.Struct(">cII")
HELLO, RUN, INPUT, INPUT_END, KILL = b"h", b"r", b"i", b"e", b"k"
OUTPUT, ERROR, EXIT = b"o", b"d", b"x"
CHUNK_BYTES = 65536
SOCKET = "/run/guest"
PORT = "/dev/virtio-ports/guest"
# After a power cut the line of a machine may hold half a frame; the host takes up again at a hello.
HELLO_BODY = b"\0the line to the tests\0"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def frame(kind: bytes, number: int, body: bytes = b"") -> bytes:
    return HEAD.pack(kind, number, len(body)) + body


HELLO_FRAME = frame(HELLO, 0, HELLO_BODY)


class Frames:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[bytes, int, bytes]]:
        self._rest += data
        hello = self._rest.rfind(HELLO_FRAME)
        if hello > 0:
            del self._rest[:hello]
        while len(self._rest) >= HEAD.size:
            kind, number, length = HEAD.unpack_from(self._rest)
            if len(self._rest) < HEAD.size + length:
                return
            body = bytes(self._rest[HEAD.size : HEAD.size + length])
            del self._rest[: HEAD.size + length]
            yield kind, number, body


class Command:
    """One program that was asked for, and the bytes it still has to be given."""

    def __init__(self, number: int, asked: dict[str, object]) -> None:
        argv, directory, user, env, umask = (asked[key] for key in ("argv", "cwd", "user", "env", "umask"))
        assert isinstance(argv, list) and isinstance(env, dict) and isinstance(umask, int)
        account = pwd.getpwnam(str(user or "root"))
        self.number = number
        self.input = bytearray()
        self.input_ended = False
        self.process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=str(directory),
            env={"PATH": PATH, "HOME": "/root", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive", **env},
            start_new_session=True,
            umask=umask,
            user=account.pw_uid,
            group=account.pw_gid,
            extra_groups=os.getgrouplist(account.pw_name, account.pw_gid),
        )
        self.pidfd = os.pidfd_open(self.process.pid)
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self.stdin = self.process.stdin.fileno()
        self.outputs = {self.process.stdout.fileno(): OUTPUT, self.process.stderr.fileno(): ERROR}
        for fd in (self.stdin, *self.outputs):
            os.set_blocking(fd, False)


class Inside:
    def __init__(self, line: int) -> None:
        self.line = line
        self.frames = Frames()
        self.commands: dict[int, Command] = {}
        self.selector = selectors.DefaultSelector()
        self.selector.register(line, selectors.EVENT_READ, None)
        self.watched: set[int] = set()

    def watch(self, fd: int, event: int, command: Command) -> None:
        if fd not in self.watched:
            self.watched.add(fd)
            self.selector.register(fd, event, command)

    def leave(self, fd: int) -> None:
        if fd in self.watched:
            self.watched.remove(fd)
            self.selector.unregister(fd)

    def tell(self, kind: bytes, number: int, body: bytes = b"") -> None:
        left = memoryview(frame(kind, number, body))
        while left:
            left = left[os.write(self.line, left) :]

    def serve(self) -> None:
        self.tell(HELLO, 0, HELLO_BODY)
        while True:
            for key, _ in self.selector.select():
                if key.data is None:
                    data = os.read(self.line, CHUNK_BYTES)
                    if not data:
                        return
                    for kind, number, body in self.frames.feed(data):
                        self.asked(kind, number, body)
                elif key.data.number in self.commands:  # it may have ended in this very round
                    self.happened(key.fd, key.data)

    def asked(self, kind: bytes, number: int, body: bytes) -> None:
        if kind == RUN:
            try:
                command = Command(number, json.loads(body))
            except (OSError, KeyError, subprocess.SubprocessError) as error:
                self.tell(ERROR, number, f"{error}\n".encode())
                self.tell(EXIT, number, b"127")
                return
            self.commands[number] = command
            for fd in (*command.outputs, command.pidfd):
                self.watch(fd, selectors.EVENT_READ, command)
        elif command := self.commands.get(number):  # type: ignore[assignment]
            if kind == KILL:
                os.killpg(command.process.pid, int(body))
            elif not command.input_ended:
                command.input += body
                command.input_ended = kind == INPUT_END
                self.give(command)

    def give(self, command: Command) -> None:
        """Writes as much as the program takes; the rest when it takes more."""
        try:
            while command.input:
                del command.input[: os.write(command.stdin, command.input[:CHUNK_BYTES])]
        except BlockingIOError:
            self.watch(command.stdin, selectors.EVENT_WRITE, command)
            return
        except BrokenPipeError:
            command.input.clear()
            command.input_ended = True
        self.leave(command.stdin)
        if command.input_ended and command.process.stdin:
            command.process.stdin.close()
            command.process.stdin = None
            command.stdin = -1

    def happened(self, fd: int, command: Command) -> None:
        if fd == command.pidfd:
            self.ended(command)
        elif fd in command.outputs:
            self.passed_on(fd, command)
        else:
            self.give(command)

    def passed_on(self, fd: int, command: Command) -> bool:
        """One chunk of output to the host; False when there is no more now or ever."""
        try:
            data = os.read(fd, CHUNK_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self.leave(fd)
            return False
        self.tell(command.outputs[fd], command.number, data)
        return True

    def ended(self, command: Command) -> None:
        """What is in its pipes is its output.  A daemon left behind may keep them open for ever: nothing waits for their end."""
        for fd in command.outputs:
            while fd in self.watched and self.passed_on(fd, command):
                pass
        status = command.process.wait()
        del self.commands[command.number]
        for fd in (*command.outputs, command.pidfd, command.stdin):
            self.leave(fd)
        for pipe in (command.process.stdin, command.process.stdout, command.process.stderr):
            if pipe:
                pipe.close()
        os.close(command.pidfd)
        self.tell(EXIT, command.number, str(status).encode())


def main() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    if os.path.exists(SOCKET):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(SOCKET)
        line = connection.detach()
    else:
        line = os.open(PORT, os.O_RDWR)
    Inside(line).serve()
