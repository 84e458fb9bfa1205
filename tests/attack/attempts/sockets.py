# SPDX-License-Identifier: Apache-2.0
"""Sockets out of the step."""

from __future__ import annotations

import os
import socket

from .registry import SOCKET_OUT, Targets, attempt, number, reach, simple, syscall


def _open(family: int, kind: int) -> None:
    protocol = socket.IPPROTO_ICMP if (family, kind) == (socket.AF_INET, socket.SOCK_RAW) else 0
    socket.socket(family, kind, protocol).close()


for _name, _family, _kind, _control, _absent in (
    ("inet", socket.AF_INET, socket.SOCK_STREAM, "step", ""),
    ("inet-dgram", socket.AF_INET, socket.SOCK_DGRAM, "step", ""),
    ("inet6", socket.AF_INET6, socket.SOCK_STREAM, "step", "IPv6"),
    ("netlink", socket.AF_NETLINK, socket.SOCK_RAW, "step", ""),
    ("packet", socket.AF_PACKET, socket.SOCK_RAW, "root", ""),
    ("vsock", socket.AF_VSOCK, socket.SOCK_STREAM, "step", "AF_VSOCK"),
    ("alg", 38, socket.SOCK_SEQPACKET, "step", "AF_ALG"),
    ("bluetooth", 31, socket.SOCK_RAW, "root", "AF_BLUETOOTH"),
    ("can", 29, socket.SOCK_RAW, "root", "AF_CAN"),
    ("xdp", 44, socket.SOCK_RAW, "root", "AF_XDP"),
    ("tipc", 30, socket.SOCK_SEQPACKET, "step", "AF_TIPC"),
    ("inet-raw", socket.AF_INET, socket.SOCK_RAW, "root", ""),
    ("unix-dgram", socket.AF_UNIX, socket.SOCK_DGRAM, "step", ""),
    ("unix-seqpacket", socket.AF_UNIX, socket.SOCK_SEQPACKET, "step", ""),
):
    simple(f"socket-{_name}", SOCKET_OUT, _control, lambda _, f=_family, k=_kind: _open(f, k), _absent)  # type: ignore[misc]


@attempt("socketpair-dgram", SOCKET_OUT, "step")
def _socketpair_dgram(_: Targets) -> None:
    for sock in socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM):
        sock.close()


@attempt("socket-high-bits", SOCKET_OUT, "step")
def _socket_high_bits(_: Targets) -> object:
    """The kernel reads the family as an int; a filter that compares 64 bits may be fooled."""
    return syscall(number(41, 198), 0x1_0000_0000 | socket.AF_INET, socket.SOCK_STREAM, 0)


@attempt("connect-tcp", SOCKET_OUT, "step")
def _connect_tcp(t: Targets) -> None:
    socket.create_connection(("127.0.0.1", t["tcp_port"]), 2).close()


@attempt("connect-unix-abstract", SOCKET_OUT, "step")
def _connect_abstract(t: Targets) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("\0" + t["abstract_socket"])


@attempt("connect-unix-path", SOCKET_OUT, "step")
def _connect_path(t: Targets) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(t["path_socket"])


@attempt("bind-unix-path", SOCKET_OUT)
def _bind_path(t: Targets) -> None:
    """A door of one's own where others would look for one."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(t["folder_writable"] + "/door.sock")
    os.unlink(t["folder_writable"] + "/door.sock")


simple("socket-by-io-uring", SOCKET_OUT, "step", lambda _: reach(426, -1, 1, 0, 0, 0, 0))  # io_uring_enter; EBADF outside
