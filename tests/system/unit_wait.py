# SPDX-License-Identifier: Apache-2.0
"""Runs in the guest, `UNIT NAME|NAME REGEX SECONDS`: waits until a property of a unit has a value, prints the properties.

PID 1 sends every change of a unit to whoever is connected to its private socket, so the handshake of D-Bus is enough to be woken.
What changed is asked of systemctl: once after connecting, so nothing is missed, and again at each wake.
"""

from __future__ import annotations

import re
import select
import socket
import subprocess
import sys
import time

SHOWN = {"ActiveState", "SubState", "Result", "StatusText", "MainPID", "NRestarts"}


def changes() -> socket.socket:
    bus = socket.socket(socket.AF_UNIX)
    bus.connect("/run/systemd/private")
    bus.sendall(b"\0AUTH EXTERNAL 30\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n")
    bus.setblocking(False)
    return bus


def main() -> None:
    unit, names, value, seconds = sys.argv[1], set(sys.argv[2].split("|")), re.compile(sys.argv[3]), float(sys.argv[4])
    end_s = time.monotonic() + seconds
    bus = changes()
    while True:
        ask = ["systemctl", "show", unit, f"-p{','.join(names | SHOWN)}"]
        shown = subprocess.run(ask, capture_output=True, text=True).stdout
        now = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
        if any(value.fullmatch(now.get(name, "")) for name in names):
            print(shown)
            return
        left_s = end_s - time.monotonic()
        if left_s <= 0 or not select.select([bus], [], [], left_s)[0]:
            sys.exit(f"it is now:\n{shown}")
        try:
            while bus.recv(65536):
                pass
            bus = changes()  # PID 1 was executed anew
        except BlockingIOError:
            pass
