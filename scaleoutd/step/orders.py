# SPDX-License-Identifier: Apache-2.0
"""What the two processes of a run are told, and how they answer: packets of JSON on `control` (pid 1) and `door` (main process).

An order is the plan and what the launcher alone can find out; whoever gets one makes the rest of it as the launcher did.
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from scaleoutd.core import records, strictjson
from scaleoutd.core.plan import Bind, Limits, SandboxPlan
from scaleoutd.errors import ScaleoutError
from scaleoutd.step import confine, namespaces, view
from scaleoutd.step.confine import Identity

GO = b"go"
_ORDER_BYTES = 128 * 1024
_PASSED_AT_ONCE = 250  # the kernel passes 253 (unix(7))
_PROCESSES_OF_OURS = 3  # launcher, pid 1, and the main process before its exec


class Gone(Exception):
    """The launcher has ended, or has no use for what waits."""


@dataclass(frozen=True)
class Order:
    """All that a run needs, made from its plan: by the launcher, and by pid 1 and the main process in the same way."""

    plan: SandboxPlan
    nodes: tuple[str, ...]  # of the plan's devices, as the launcher found them on the host
    view: view.View
    identity: Identity
    program: bytes
    landlock_abi: int
    watch_memory: bool
    watch_processes: bool
    own_namespaces: bool
    scratch: str  # as pid 1 sees it
    unit: bool = False  # backend systemd: the unit's view, and a uid that nobody else has
    act: Mapping[str, Any] | None = None  # given to `Base.act`, which the confined main process calls instead of the exec
    person: int | None = None  # standard input, output and error for a person, instead of /dev/null and the output pipe


@dataclass(frozen=True)
class Base:
    """What pid 1 and the main process know before there is a plan."""

    own_namespaces: bool
    unit: bool
    order_of: Callable[[SandboxPlan, Sequence[str]], Order]
    act: Callable[[Mapping[str, Any], str], None]  # the probes: gets `Order.act` and the scratch folder


def send(order: Order, control: int, door: int) -> None:
    """The launcher's order: to pid 1 with the mounts that it is to attach, to the main process with a person's terminal.

    One that is gone is seen where its words are read.
    """
    body: dict[str, Any] = {"plan": records.encode(order.plan), "nodes": order.nodes, "act": order.act}
    with confine.stage("namespaces and view"):
        trees = namespaces.open_sources(order.view) if order.own_namespaces else []
    try:
        parts = [trees[start : start + _PASSED_AT_ONCE] for start in range(0, len(trees), _PASSED_AT_ONCE)] or [[]]
        for part in parts[:-1]:
            _send(control, {}, part)
        _send(control, body, parts[-1])
        # Second, and read while pid 1 makes the view.
        _send(door, body, [] if order.person is None else [order.person])
    except (BrokenPipeError, ConnectionResetError):
        pass
    finally:
        for tree in trees:
            os.close(tree)


def rehearse(base: Base) -> None:
    """Reads an order that nobody gave: what a process does for the first time takes three times as long, most of it for pages
    that are copied when they are first written."""
    limits = Limits(1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1)
    backend: Literal["namespaces", "systemd", "inner"] = "namespaces" if base.own_namespaces else "inner"
    if base.unit:
        backend = "systemd"
    binds = (Bind("/usr", "/usr", executable=True), Bind("/in", "/in"))
    plan = SandboxPlan("rehearsal", backend, 0, ("true",), "/", {"LANG": "C"}, binds, "/scratch/0", limits)
    data = json.dumps({"plan": records.encode(plan)}).encode()
    body = strictjson.parse(data, max_bytes=_ORDER_BYTES, what="a rehearsal")
    base.order_of(records.decode(SandboxPlan, body["plan"], "plan"), ())


def take(base: Base, fd: int) -> tuple[Order, list[int]]:
    """Waits for it, with the descriptors that come with it."""
    passed = array.array("i")
    body: dict[str, Any] = {}
    with socket.socket(fileno=os.dup(fd)) as sock:
        while "plan" not in body:
            try:
                data, control, _, _ = sock.recvmsg(_ORDER_BYTES, socket.CMSG_SPACE(4 * _PASSED_AT_ONCE), socket.MSG_CMSG_CLOEXEC)
            except ConnectionResetError:
                data, control = b"", []
            if not data:
                raise Gone
            for _, _, payload in control:
                passed.frombytes(payload)
            body = strictjson.parse(data, max_bytes=_ORDER_BYTES, what="an order of the launcher")
    order = base.order_of(records.decode(SandboxPlan, body["plan"], "plan"), body["nodes"])
    return replace(order, act=body["act"]), list(passed)


def tell_go(*ends: socket.socket) -> None:
    """The launcher's word that what waits at these ends may go on."""
    for sock in ends:
        try:
            sock.send(GO, socket.MSG_NOSIGNAL)
        except BrokenPipeError:
            pass  # its end is seen where its words are read


def process_bound(order: Order) -> int:
    """RLIMIT_NPROC of the step: its own, and those of ours that count as its uid."""
    return order.plan.limits.processes + _PROCESSES_OF_OURS


def tell(fd: int, body: dict[str, Any], descriptors: list[int] | None = None) -> None:
    """One packet to the launcher; when it is gone there is nobody to tell, and the caller ends."""
    try:
        _send(fd, body, descriptors or [])
    except BrokenPipeError:
        os._exit(70)


def _send(fd: int, body: dict[str, Any], descriptors: list[int]) -> None:
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    with socket.socket(fileno=os.dup(fd)) as sock:
        sock.sendmsg([json.dumps(body).encode()], control, socket.MSG_NOSIGNAL)


def failure(exc: BaseException) -> dict[str, str]:
    if isinstance(exc, ScaleoutError):
        return {"code": exc.code, "message": exc.message[:2000], "hint": exc.hint[:2000]}
    return {"code": "launch-failed", "message": f"cannot run the step: {type(exc).__name__}: {exc}"[:2000], "hint": ""}
