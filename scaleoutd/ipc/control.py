# SPDX-License-Identifier: Apache-2.0
"""What an administrator says to a room, and how a room listens.

Each room of the installed node has a socket /run/scaleoutd/ROOM.control (root:scaleoutd-admin 0660), apart from that for rooms.
One connection is one command:
    Hello, Hello, then one of
    Status  → StatusReport
    Drain   → Done       no new task is begun; what was begun ends and is delivered.  Until Resume or a restart
    Pause   → Done       as Drain, and kept over a restart; runs that wait are answered `paused`
    Resume  → Done
    Change  → Done       the files of the node were changed; only recorded
    ApproveSession → Done   to the runner: a second person's word (runner/budget.py)
    ResetTrust → Done    from root: the trust root that was accepted, or the latest time, is another one from now on
    Reload  → Done       certificates, keys and files are read again; what cannot be used changes nothing
                         (root may hand over new ones as descriptors: systemd gives credentials to a service only at its start)
and each may be answered by Refused.

Rules:
  1. Who commands is what the kernel says (unix(7), SO_PEERCRED), never what a message says.  Whether the uid may is decided by
     the socket's owner and mode, which a room cannot change.
  2. Every command but Status is on record with the operator's uid and name before it is acknowledged; a command that cannot be
     recorded is not done.
  3. A caller that is silent or slow costs one of `MAX_CALLERS` threads for `CALL_S` seconds.
"""

from __future__ import annotations

import os
import pwd
import select
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Protocol

from scaleoutd.core.records import Count, Name, Natural, Text
from scaleoutd.core.strictjson import Json
from scaleoutd.errors import LedgerError, PeerError, PolicyDeniedError, ScaleoutError
from scaleoutd.ipc.channel import Channel, Received, Refused, message
from scaleoutd.ipc.named import peer_of
from scaleoutd.ipc.packets import Connection

CALL_S = 5.0
MAX_CALLERS = 4  # the ledger has 16 threads in all (its unit)
SHORT_OF_DESCRIPTORS_MS = 200

Reason = Annotated[str, Text(512, r"[^\x00-\x1f\x7f]+", 1)]
Line = Annotated[str, Text(1024)]
CredentialName = Literal["ca.pem", "client.pem", "client.key", "token"]
# starting: not yet ready; refusing: it runs and can do no work, `code` says why.
State = Literal["starting", "serving", "draining", "drained", "paused", "refusing"]


@message("status")
@dataclass(frozen=True)
class Status:
    """How are you?"""


@message("status-report")
@dataclass(frozen=True)
class StatusReport:
    """`text` is the line that systemd shows; `facts` are the room's own, documented in docs/command-line.md."""

    room: Name
    build: Name
    pid: Natural
    since_ms: Natural  # of this process
    state: State
    text: Line = ""
    busy: bool = False  # something is being done that a drain waits for
    code: Annotated[str, Text(64, r"[a-z0-9-]*")] = ""  # what keeps it from its work, "" when nothing does
    message: Line = ""
    hint: Line = ""
    facts: Mapping[str, Json] = field(default_factory=dict)


@message("drain")
@dataclass(frozen=True)
class Drain:
    """Begin nothing new; end and deliver what was begun."""


@message("pause")
@dataclass(frozen=True)
class Pause:
    """`login_uid`: as in Change."""

    reason: Reason
    login_uid: Natural | None = None


@message("resume")
@dataclass(frozen=True)
class Resume:
    """Take back Drain and Pause."""


@message("reload")
@dataclass(frozen=True)
class Reload:
    """Read certificates, keys and files again.  `credentials` names the files whose descriptors come along, from root only."""

    credentials: Annotated[tuple[CredentialName, ...], Count(0, 4)] = ()


@message("change")
@dataclass(frozen=True)
class Change:
    """To the runner, for the record: a command of the command line changed the node's files (cli/onrecord.py).

    `login_uid`: who the caller says to have logged in as, before sudo or su (proc(5), loginuid).
    """

    command: Name
    arguments: Annotated[tuple[Line, ...], Count(0, 16)] = ()
    login_uid: Natural | None = None


@message("approve-session")
@dataclass(frozen=True)
class ApproveSession:
    """To the runner: let this session run.  `combiner`: host:port, needed to approve one that does not wait yet."""

    session: Annotated[str, Text(256, r"[^\x00-\x1f\x7f]+", 1)]
    combiner: Annotated[str, Text(256, r"[^\x00-\x1f\x7f]*")] = ""


@message("reset-trust")
@dataclass(frozen=True)
class ResetTrust:
    """To the runner, from root only: what was accepted before counts no more.

    With `root_version` and `root_sha256` the trust root that lies there now, which must be that one, is taken without the chain;
    with `clock` the latest time on record is lowered to this host's clock.
    """

    reason: Reason
    root_version: Natural = 0
    root_sha256: Annotated[str, Text(64, r"([0-9a-f]{64})?")] = ""
    clock: bool = False


@message("done")
@dataclass(frozen=True)
class Done:
    """`changed`: False when it was so already, and then nothing is on record."""

    changed: bool
    text: Line = ""


Command = Drain | Pause | Resume | Reload | Change | ApproveSession | ResetTrust
COMMANDS: Mapping[type[Command], str] = {
    Drain: "drain",
    Pause: "pause",
    Resume: "resume",
    Reload: "reload",
    Change: "change",
    ApproveSession: "approve-session",
    ResetTrust: "reset-trust",
}


@dataclass(frozen=True)
class Operator:
    """Who is at the other end, as the kernel says."""

    uid: int
    pid: int
    name: str  # of the user database; the uid as text where it has none

    @classmethod
    def of(cls, connection: Connection) -> Operator:
        with socket.socket(fileno=os.dup(connection.fileno())) as sock:
            pid, uid, _ = peer_of(sock)
        return cls(uid, max(pid, 0), user_name(uid))


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


class Desk(Protocol):
    """How a room answers.  Called by threads of `Control`, one command at a time, reports beside it."""

    def report(self) -> StatusReport: ...

    def do(self, command: Command, operator: Operator, files: Mapping[str, int]) -> Done:
        """Records and does; raises what is in the way, PolicyDeniedError for a command that this room does not know.

        `files`: descriptors of a Reload by the name of the credential; the caller closes them.
        """
        ...


class Control:
    """Listens on `listener` (AF_UNIX SOCK_SEQPACKET) in threads of its own until `close`.

    `may` is asked before anything else, where the socket's mode does not say everything about who may.
    """

    def __init__(
        self,
        room: str,
        listener: socket.socket,
        desk: Desk,
        log: Callable[[str], None] = lambda line: None,
        may: Callable[[Status | Command, Operator], bool] = lambda request, operator: True,
    ) -> None:
        self._room, self._listener, self._desk, self._log, self._may = room, listener, desk, log, may
        self._one_command = threading.Lock()
        self._free = threading.BoundedSemaphore(MAX_CALLERS)
        self._stop_reader, self._stop_writer = socket.socketpair()
        self._listener.setblocking(False)
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)

    def start(self) -> Control:
        self._thread.start()
        return self

    def close(self) -> None:
        """Takes no more callers; those being answered are not waited for."""
        self._stop_writer.close()
        self._thread.join(CALL_S)

    def _serve(self) -> None:
        poll = select.poll()
        for fd in (self._listener.fileno(), self._stop_reader.fileno()):
            poll.register(fd, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self._stop_reader.fileno() in ready:
                self._stop_reader.close()
                return
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:  # it went away before it was taken
                continue
            except OSError as exc:  # no descriptor is free: the caller still waits, and poll would return at once
                self._log(f"cannot take a control connection: {exc.strerror}")
                if select.select([self._stop_reader], [], [], SHORT_OF_DESCRIPTORS_MS / 1000)[0]:
                    return
                continue
            self._begin(sock)

    def _begin(self, sock: socket.socket) -> None:
        """A thread for the caller; one that cannot be had, or too many, end the connection and nothing else."""
        if not self._free.acquire(blocking=False):
            sock.close()
            return
        try:
            threading.Thread(target=self._call, args=[sock], name="control call", daemon=True).start()
        except RuntimeError as exc:  # the unit's TasksMax
            self._free.release()
            sock.close()
            self._log(f"cannot take a control connection: {exc}")

    def _call(self, sock: socket.socket) -> None:
        try:
            channel = Channel(Connection(sock), "operator")
            try:
                self._answer(channel, Operator.of(channel.connection))
            except PeerError as exc:
                if exc.code != "peer-closed":
                    self._log(f"a control connection ended: {exc.message}")
            finally:
                channel.close()
        finally:
            self._free.release()

    def _answer(self, channel: Channel, operator: Operator) -> None:
        channel.greet(self._room, timeout_s=CALL_S)
        received = channel.receive(Status, *COMMANDS, timeout_s=CALL_S)
        try:
            if not self._may(received.message, operator):
                raise PolicyDeniedError(
                    f"cannot answer {operator.name}: this command is not theirs to give",
                    code="command-refused",
                    hint="Ask whoever runs the node.",
                )
            files = _files_of(received, operator)
            if isinstance(received.message, Status):
                channel.tell(self._desk.report())
                return
            with self._one_command:
                done = self._desk.do(received.message, operator, files)
            channel.tell(done)
        except ScaleoutError as exc:
            channel.tell(Refused.of(exc))
        finally:
            received.close()


def _files_of(received: Received, operator: Operator) -> dict[str, int]:
    names = received.message.credentials if isinstance(received.message, Reload) else ()
    if len(names) != len(received.descriptors) or len(set(names)) != len(names):
        raise PeerError(f"cannot take a command: {len(received.descriptors)} descriptors for {len(names)} credentials")
    if names and operator.uid != 0:
        raise PolicyDeniedError(
            f"cannot take credentials of {operator.name}: only root hands them over", code="command-refused", hint="Use sudo."
        )
    return dict(zip(names, received.descriptors, strict=True))


NOBODY = 2**32 - 1  # (uid_t) -1: no login is known


def login_uid() -> int | None:
    """Who this process's user logged in as; None where nobody keeps that (pam_loginuid(8))."""
    try:
        found = int(Path("/proc/self/loginuid").read_text())
    except (OSError, ValueError):
        return None
    return None if found == NOBODY else found


def refuse_command(room: str, command: Command) -> PolicyDeniedError:
    """For a desk that has no use for a command."""
    return PolicyDeniedError(f"cannot {COMMANDS[type(command)]} the {room}: it knows no such command", code="command-refused")


def event_of(command: Command, operator: Operator) -> dict[str, Json]:
    """The body of `operator-command`."""
    body: dict[str, Json] = {"command": COMMANDS[type(command)], "operator": operator.name, "peer_uid": operator.uid}
    if isinstance(command, Pause | ResetTrust):
        body["reason"] = command.reason
    if isinstance(command, ApproveSession):
        body["arguments"] = [command.session, command.combiner]
    if isinstance(command, Change):
        body |= {"command": command.command, "arguments": list(command.arguments)}
    if isinstance(command, Change | Pause) and command.login_uid is not None:
        body["login_uid"] = command.login_uid  # behind sudo the operator is root, and this is the person
    return body


def must_record(record: Callable[..., object], command: Command, operator: Operator) -> None:
    """`record` is the room's `LedgerClient.record`; LedgerError when the command cannot be put on record."""
    try:
        record("operator-command", **event_of(command, operator))
    except LedgerError as exc:
        raise LedgerError(
            f"cannot {COMMANDS[type(command)]}: it cannot be put on record ({exc.message})",
            hint="See the ledger: `scaleoutctl status`.",
        ) from exc


def call(
    path: str, room: str, request: Status | Command, *, descriptors: Sequence[int] = (), timeout_s: float = 30.0
) -> StatusReport | Done:
    """One command over the socket at `path`; raises the room's refusal, PeerError when nobody is there or it is not root's."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    sock.settimeout(timeout_s)
    try:
        sock.connect(path)
    except OSError as exc:
        sock.close()
        denied = isinstance(exc, PermissionError)
        raise PeerError(
            f"cannot reach the {room}: {exc.strerror or exc}",
            code="peer-denied" if denied else "peer-closed",
            hint="Be root or in group scaleoutd-admin." if denied else f"See `systemctl status scaleoutd-{room}`.",
        ) from exc
    channel = Channel(Connection(sock), room)
    try:
        hello = channel.greet("cli", timeout_s=timeout_s)
        if hello.room != room:
            raise PeerError(f"cannot talk to the {room}: room {hello.room[:64]} answers at its socket", code="peer-denied")
        channel.tell(request, descriptors)
        received = channel.receive(StatusReport if isinstance(request, Status) else Done, timeout_s=timeout_s)
        received.close()
        answer: StatusReport | Done = received.message
        return answer
    finally:
        channel.close()
