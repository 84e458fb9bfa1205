# SPDX-License-Identifier: Apache-2.0
"""Proof of the outcomes: acts that must fail inside, each with a control that succeeds outside.

The launcher sets up an arena that would let everybody in: readable and writable files, listening sockets, a process of the
step's own uid.  It shows that each act works from where it stands, and lets the fully confined main process of a run (same
view, same uid, same filter, no exec) try the same acts.  An outcome is proven when all of its acts failed inside and all
of its controls succeeded outside; when one act succeeds the outcome is open.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, NoReturn

from scaleoutd.core import strictjson
from scaleoutd.core.devices import NODES, always_closed
from scaleoutd.core.plan import OUTCOMES, Enforcement, Outcome
from scaleoutd.errors import KernelSupportError, LaunchError
from scaleoutd.step import confine, devices, execute, orders, outcomes

_WALL_CLOCK_S = 20
_PIDS_INSIDE = 16  # no process of the probe has a higher number in its own pid namespace
_FOREIGN_DEVICES = ("/dev/kmsg", "/dev/mem", "/dev/tty", "/dev/ptmx", "/dev/fuse", "/dev/kvm", "/dev/vsock", "/dev/loop-control")
_CARDS = ("/dev/kfd", "/dev/dri/card0", "/dev/dri/renderD128", "/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia0")
_FAMILIES = {"inet": 2, "inet6": 10, "netlink": 16, "packet": 17, "alg": 38, "vsock": 40}
# What a step of a unit could reach if its view were not its own: sockets that every host with systemd has.
_SOCKETS_OF_A_HOST = (
    "/run/systemd/private",
    "/run/systemd/journal/stdout",
    "/run/dbus/system_bus_socket",
    "/run/scaleoutd/ledger.sock",
)
HINTS: dict[Outcome, str] = {
    "no-socket-out": "Needs a network namespace, or Landlock with ABI 6 and a view without sockets.",
    "no-signal-out": "Needs a pid namespace, an own uid, or Landlock with ABI 6 (Linux 6.12).",
    "no-write-outside": "Needs mount namespaces or Landlock (Linux 5.13).",
    "no-read-outside": "Needs mount namespaces or Landlock (Linux 5.13).",
    "no-foreign-device": "Needs mount namespaces or Landlock (Linux 5.13).",
    "no-survivor": "Needs a pid namespace.",
}


@dataclass(frozen=True)
class Arena:
    """What lies outside, open to everybody."""

    folder: str
    secret: str
    path_socket: str
    abstract_socket: str
    tcp_port: int  # 0: the launcher shares network and view with the step, and sockets of its own would not be outside
    victim: int
    launcher: int | None  # None: no number names it inside
    foreign_devices: tuple[str, ...]


def prove(order: orders.Order, begin: Callable[[orders.Order], execute.Execution]) -> tuple[Enforcement, ...]:
    """One Enforcement an outcome; KernelSupportError when one that the plan demands is open.

    `begin` makes the run of an order as that of any request is made, so what is proven is what runs.
    """
    with _arena(order) as arena:
        _check_controls(arena)
        bounds = replace(order.plan.limits, wall_clock_s=_WALL_CLOCK_S, stdout_bytes=64 * 1024)
        plan = replace(order.plan, limits=bounds, cwd="/" if order.own_namespaces else order.plan.scratch)
        answers, ended = _run(begin(replace(order, plan=plan, act=asdict(arena))))
    allowed = {name: [act for act, result in answers.get(name, {}).items() if result == "allowed"] for name in OUTCOMES}
    if not ended:
        allowed["no-survivor"].append("process")
    result, missing = [], []
    for outcome in OUTCOMES:
        done = answers.get(outcome) or {}
        names = outcomes.providers(
            outcome,
            own_namespaces=order.own_namespaces,
            own_uid=order.identity.change,
            landlock_abi=order.landlock_abi,
            unit=order.unit,
        )
        proven = bool(done) and not allowed[outcome]
        result.append(Enforcement(outcome, "proven" if proven else "open", names))
        if not proven and outcome in order.plan.outcomes:
            missing.append(f"{outcome} ({', '.join(allowed[outcome]) or 'not tried'})")
    if missing:
        raise KernelSupportError(
            f"cannot prove what the policy demands: {'; '.join(missing)}",
            hint=" ".join(HINTS[outcome] for outcome in OUTCOMES if any(text.startswith(outcome) for text in missing)),
        )
    return tuple(result)


def _run(run: execute.Execution) -> tuple[dict[str, dict[str, str]], bool]:
    log = os.memfd_create("probe", os.MFD_CLOEXEC)
    try:
        result = run.run(log, None)
        text = os.pread(log, 64 * 1024, 0)
    finally:
        os.close(log)
    if result.ended != "exited" or result.exit_status != 0:
        raise LaunchError(f"cannot prove the outcomes: the probe ended as {result.ended}, {result.code or result.exit_status}")
    value = strictjson.parse(text, max_bytes=64 * 1024, what="the answer of the probe")
    if not isinstance(value, dict) or not all(isinstance(acts, dict) for acts in value.values()):
        raise LaunchError("cannot prove the outcomes: the answer of the probe cannot be read")
    return value, run.output_ended


@contextmanager
def _arena(order: orders.Order) -> Iterator[Arena]:
    name = f"scaleoutd-probe-{os.getpid()}-{os.urandom(4).hex()}"  # not guessable
    # In a unit /tmp is the step's own; beside its scratch folder there is one of ours.
    folder = f"{os.path.dirname(order.scratch)}/probe/{name}" if order.unit else f"/tmp/{name}"  # noqa: S108
    secret, path = f"{folder}/secret", f"{folder}/socket"
    abstract = f"\0scaleoutd-probe-{os.urandom(8).hex()}"
    sockets: list[socket.socket] = []
    victim = 0
    os.mkdir(folder, 0o700)
    try:
        if not order.unit:  # there the folders of others are closed to the step by their owner and mode, and this one is such
            os.chmod(folder, 0o755)  # noqa: S103 - open to everybody is the point
        fd = os.open(secret, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        os.fchmod(fd, 0o666)
        os.close(fd)
        port = 0
        if not order.unit:
            for address in (path, abstract):
                sockets.append(_listen(socket.AF_UNIX, address))
            os.chmod(path, 0o777)  # noqa: S103
            sockets.append(_listen(socket.AF_INET, ("127.0.0.1", 0)))
            port = int(sockets[-1].getsockname()[1])
        # In a unit the step's uid is all that is inside: what is outside is another's, the launcher's.
        victim = _fork_victim(None if order.unit else order.identity)
        yield Arena(folder, secret, path, abstract, port, victim, _launcher_seen_from(order), _foreign_devices(order))
    finally:
        if victim:
            os.kill(victim, signal.SIGKILL)
            os.waitpid(victim, 0)
        for sock in sockets:
            sock.close()
        for name in os.listdir(folder):  # an act that went through may have made a file
            os.unlink(f"{folder}/{name}")
        os.rmdir(folder)


def _foreign_devices(order: orders.Order) -> tuple[str, ...]:
    """What must not open: devices of every host, and the nodes of drivers that this plan does not grant."""
    known = (*_FOREIGN_DEVICES, *_CARDS, *always_closed(), *devices.present(tuple(NODES)))
    granted = devices.present(order.plan.devices)
    return tuple(path for path in dict.fromkeys(known) if path not in granted)


def _listen(family: int, address: str | tuple[str, int]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.bind(address)
        sock.listen(8)
    except OSError as exc:
        sock.close()
        raise LaunchError(f"cannot prove the outcomes: no socket to try against: {exc.strerror}") from exc
    return sock


def _launcher_seen_from(order: orders.Order) -> int | None:
    """In a container the launcher's pid may be as small as those of the step's own pid namespace, and would name one of them."""
    pid = os.getpid()
    return None if order.own_namespaces and pid <= _PIDS_INSIDE else pid


def _fork_victim(identity: confine.Identity | None) -> int:
    """A process of `identity`, None: of ours, that only waits: numbered so that no process inside can have the same pid."""
    while True:
        read, write = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            _be_victim(identity, write)
        os.close(write)
        os.read(read, 1)
        os.close(read)
        if pid > _PIDS_INSIDE:
            return pid
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _be_victim(identity: confine.Identity | None, ready: int) -> NoReturn:
    try:
        if identity is not None:
            confine.become(identity)
        os.write(ready, b"1")
        while True:
            signal.pause()
    finally:
        os._exit(0)


def _acts(arena: Arena, scratch: str) -> dict[Outcome, dict[str, Callable[[], object]]]:
    """Every act by outcome and name; it returns when it succeeds and raises OSError when it is denied."""
    sockets: dict[str, Callable[[], object]] = {
        f"socket-{name}": functools.partial(_open_socket, family) for name, family in _FAMILIES.items()
    }
    if arena.tcp_port:
        sockets["tcp"] = functools.partial(_connect, socket.AF_INET, ("127.0.0.1", arena.tcp_port))
        sockets["unix-abstract"] = functools.partial(_connect, socket.AF_UNIX, arena.abstract_socket)
        sockets["unix-path"] = functools.partial(_connect, socket.AF_UNIX, arena.path_socket)
    else:
        sockets["interface"] = _find_interface
        sockets |= {f"unix-path {path}": functools.partial(_connect, socket.AF_UNIX, path) for path in _SOCKETS_OF_A_HOST}
    return {
        "no-socket-out": sockets,
        "no-signal-out": {
            "kill-victim": functools.partial(os.kill, arena.victim, 0),
            **({"kill-launcher": functools.partial(os.kill, arena.launcher, 0)} if arena.launcher else {}),
        },
        "no-write-outside": {
            "write": functools.partial(_open, arena.secret, os.O_WRONLY),
            "create": functools.partial(_open, f"{arena.folder}/new", os.O_WRONLY | os.O_CREAT),
            "chmod": functools.partial(os.chmod, arena.secret, 0o666),
            "utime": functools.partial(os.utime, arena.secret),
            "etc": functools.partial(_open, "/etc/scaleoutd-probe", os.O_WRONLY | os.O_CREAT),
        },
        "no-read-outside": {
            "read": functools.partial(_open, arena.secret, os.O_RDONLY),
            "list": functools.partial(os.listdir, arena.folder),
            **({"environ": functools.partial(_open, f"/proc/{arena.launcher}/environ", os.O_RDONLY)} if arena.launcher else {}),
            "root": functools.partial(_open, f"/proc/1/root{arena.secret}", os.O_RDONLY),
        },
        "no-foreign-device": {
            "mknod": functools.partial(os.mknod, f"{scratch}/probe-device", stat.S_IFCHR | 0o666, os.makedev(1, 5)),
            **{path: functools.partial(_open, path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY) for path in arena.foreign_devices},
        },
    }


def _check_controls(arena: Arena) -> None:
    """The acts against the arena, from outside: each must succeed, or its failure inside would prove nothing."""
    acts = _acts(arena, arena.folder)
    controls = [
        ("no-socket-out", ("tcp", "unix-abstract", "unix-path") if arena.tcp_port else ()),
        ("no-signal-out", ("kill-victim",)),
        ("no-write-outside", ("write", "chmod", "utime")),
        ("no-read-outside", ("read", "list")),
    ]
    for outcome, names in controls:
        for name in names:
            try:
                acts[outcome][name]()  # type: ignore[index]
            except OSError as exc:
                raise LaunchError(f"cannot prove {outcome}: the control {name} fails outside: {exc.strerror}") from exc


def act(arena_values: Mapping[str, Any], scratch: str) -> None:
    """In the confined main process, instead of an exec: tries everything and prints what happened."""
    arena = Arena(**arena_values)
    answers: dict[str, dict[str, str]] = {
        outcome: {name: _try(act) for name, act in acts.items()} for outcome, acts in _acts(arena, scratch).items()
    }
    _leave_survivor()
    answers["no-survivor"] = {"daemon": "left"}  # judged outside: does anything still hold the output pipe?
    os.write(1, json.dumps(answers).encode())


def _try(act: Callable[[], object]) -> str:
    try:
        act()
    except OSError as exc:
        return errno.errorcode.get(exc.errno or 0, "denied")
    return "allowed"


def _leave_survivor() -> None:
    """A daemon by the book: double fork, own session, deaf to signals, holding the output pipe."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            os.write(write, b"1")
            time.sleep(600)
        os._exit(0)
    os.read(read, 1)  # it lives now
    os.close(read)
    os.close(write)


def _open_socket(family: int) -> None:
    kinds = {16: socket.SOCK_RAW, 17: socket.SOCK_RAW, 38: socket.SOCK_SEQPACKET}  # netlink, packet, alg
    socket.socket(family, kinds.get(family, socket.SOCK_STREAM)).close()


def _find_interface() -> None:
    """Succeeds when there is a network interface beside the loopback one; a network namespace of its own has none."""
    with open("/proc/net/dev") as file:  # if_nameindex(3) would need a socket
        names = [line.partition(":")[0].strip() for line in file.readlines()[2:]]
    if names == ["lo"]:
        raise OSError(errno.ENODEV, "no interface but lo")


def _connect(family: int, address: str | tuple[str, int]) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(2.0)
        sock.connect(address)


def _open(path: str, flags: int) -> None:
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    os.close(fd)
