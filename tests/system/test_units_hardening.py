# SPDX-License-Identifier: Apache-2.0
"""Each directive of the units that protects something is shown to bite.

For each: the act (acts.py) succeeds in a bare unit; it fails in the same unit with this one directive; and it fails in the unit
as shipped, where several directives may forbid it.  A directive without an entry here fails the test: none is decoration.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.system.guest import Guest
from tests.system.image import SYSTEMD, TREE

SUITES = tuple(SYSTEMD)
UNITS = ("scaleoutd", "scaleoutd-runner", "scaleoutd-ledger", "scaleoutd-step@")
EXPOSURE = {"scaleoutd": 1.2, "scaleoutd-runner": 0.4, "scaleoutd-ledger": 0.4, "scaleoutd-step@": 1.5}
HEADLINE = "# What it may not do"
ERROR_NUMBER = "SystemCallErrorNumber=EPERM"

# directive → the acts that it alone forbids, tried as root unless the name is in AS_NOBODY.
BITES = {
    "CapabilityBoundingSet": ("chown",),
    "NoNewPrivileges": ("setuid-program",),
    "ProtectSystem": ("write-etc", "write-usr"),
    "ReadOnlyPaths": ("write-run",),
    "ProtectHome": ("read-home",),
    "PrivateTmp": ("see-tmp",),
    "PrivateDevices": ("see-device",),
    "DevicePolicy": ("open-tun",),
    "InaccessiblePaths": ("open-terminal",),
    "PrivateIPC": ("see-queue",),
    "PrivateMounts": ("mount-for-all",),
    "ProtectControlGroups": ("make-cgroup",),
    "ProtectHostname": ("set-hostname",),
    "ProtectKernelModules": ("see-modules",),
    "ProtectKernelTunables": ("write-tunable",),
    "ProtectProc": ("see-process",),
    "ProcSubset": ("see-cpuinfo",),
    "PrivateNetwork": ("connect",),
    "RestrictAddressFamilies": ("packet-socket",),
    "RestrictNamespaces": ("namespace",),
    "RestrictSUIDSGID": ("setuid-file",),
    "LockPersonality": ("personality",),
    "MemoryDenyWriteExecute": ("writable-code",),
    "SystemCallArchitectures": ("foreign-architecture",),
    "SystemCallFilter=@system-service": ("mount",),
    "SystemCallFilter=~@privileged": ("chown", "priority", "affinity", "add-key", "io-setup", "io-uring", "userfaultfd"),
    "SystemCallFilter=~@resources": ("priority", "affinity"),
}
AS_NOBODY = ("setuid-program", "see-process")
# These need a kernel of its own: a clock, a log, real-time classes, BPF on a cgroup v2.
BITES_IN_MACHINE = {
    "ProtectClock": ("clock",),
    "ProtectKernelLogs": ("read-kernel-log",),
    "RestrictRealtime": ("realtime",),
    "IPAddressDeny": ("connect",),
}
# What permits more than the default, and what has a test of its own below.
PERMITS = ("AmbientCapabilities", "MemoryDenyWriteExecute=no", "ProcSubset=all")
OWN_TEST = ("RemoveIPC", "SystemCallErrorNumber")
OUTSIDE = """\
cp /usr/bin/id /usr/local/bin/setuid-id; chmod 4755 /usr/local/bin/setuid-id
touch /srv/owned /root/secret /tmp/outside
mkdir -p /var/lib/scaleoutd/runner/store /var/lib/scaleoutd/runner/in
python3 -c 'import ctypes; ctypes.CDLL(None).msgget(4711, 0o1666)'
systemd-run -q --unit=listener python3 -c '
import socket
listener = socket.create_server(("127.0.0.1", 4711))
while True: listener.accept()[0].close()'
until (echo >/dev/tcp/127.0.0.1/4711) 2>/dev/null; do :; done
"""
# Lines of a shipped unit that are about its program and not about its confinement.
NOT_COPIED = (
    "ExecStart", "ExecReload", "Type", "NotifyAccess", "Sockets", "LoadCredential", "Restart", "RestartSec", "WatchdogSec",
    "RestartPreventExitStatus", "StandardOutput", "StandardError", "StandardInput",
)  # fmt: skip


def directives(unit: str, *, hardening: bool = True) -> list[str]:
    """The lines of [Service], or those of them below the headline."""
    text = (TREE / f"systemd/{unit}.service").read_text().partition("[Service]")[2].partition("[Install]")[0]
    if hardening:
        assert HEADLINE in text
        text = text.partition(HEADLINE)[2].partition("\n")[2]
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def entry(line: str) -> str | None:
    """The key of the tables for a directive."""
    known = {*BITES, *BITES_IN_MACHINE}
    return next((key for key in known if line == key or line.startswith((f"{key}=", f"{key} "))), None)


def every_line() -> Iterator[tuple[str, str]]:
    for unit in UNITS:
        for line in directives(unit):
            yield unit, line


def shown(guest: Guest, acts: tuple[str, ...], *properties: str) -> dict[str, str]:
    """What became of the acts in a bare unit with these properties."""
    result: dict[str, str] = {}
    for user in ("root", "nobody"):
        names = [name for name in acts if (name in AS_NOBODY) == (user == "nobody")]
        if names:
            options = [f"-p{line}" for line in (f"User={user}", *properties)]
            ran = guest.run(
                ["systemd-run", "-q", "--wait", "--pipe", *options, "/usr/bin/python3", "-I", "/usr/local/lib/acts.py", *names]
            )
            result |= json.loads(ran.stdout)
    return result


def shown_as_shipped(guest: Guest, unit: str, acts: list[str]) -> dict[str, str]:
    """What became of them in a unit with every line of the shipped one but its program."""
    lines = [line for line in directives(unit, hardening=False) if line.partition("=")[0] not in NOT_COPIED]
    start = f"ExecStart=/usr/bin/python3 -I /usr/local/lib/acts.py {' '.join(acts)}"
    text = "\n".join(["[Service]", "Type=oneshot", start, "StandardOutput=truncate:/srv/shown", *lines]) + "\n"
    guest.write("/run/systemd/system/shown.service", text)
    guest.run("systemctl daemon-reload && systemctl start shown.service", timeout_s=90)
    return dict(json.loads(guest.read("/srv/shown")))


def prepare(guest: Guest) -> None:
    guest.write("/usr/local/lib/acts.py", Path(__file__).with_name("acts.py").read_text())
    guest.script(OUTSIDE)


def check_that_they_bite(guest: Guest, table: Mapping[str, tuple[str, ...]]) -> None:
    acts = tuple(sorted({act for forbidden in table.values() for act in forbidden}))
    control = shown(guest, acts)
    assert set(control.values()) == {"done"}, control
    lines = sorted({line for _, line in every_line() if entry(line) in table and line not in PERMITS})
    assert {entry(line) for line in lines} == set(table)
    for line in lines:
        more = (ERROR_NUMBER,) if line.startswith("SystemCall") else ()
        found = shown(guest, table[str(entry(line))], line, *more)
        assert "done" not in found.values(), (line, found)
    for unit in UNITS:
        forbidden = [act for line in directives(unit) if line not in PERMITS for act in table.get(str(entry(line)), ())]
        found = shown_as_shipped(guest, unit, sorted(set(forbidden)))
        assert "done" not in found.values(), (unit, found)


@pytest.fixture(scope="module")
def prepared(node: Guest) -> Guest:
    prepare(node)
    return node


def test_every_directive_has_its_test() -> None:
    unknown = [
        (unit, line)
        for unit, line in every_line()
        if entry(line) is None and line not in PERMITS and line.partition("=")[0] not in (*PERMITS, *OWN_TEST)
    ]
    assert not unknown


def test_each_directive_bites(prepared: Guest) -> None:
    check_that_they_bite(prepared, BITES)


def test_a_forbidden_call_is_refused_and_does_not_kill(prepared: Guest) -> None:
    run = [
        "systemd-run",
        "-q",
        "--wait",
        "--pipe",
        "-pSystemCallFilter=~mount",
        "/usr/bin/python3",
        "-I",
        "/usr/local/lib/acts.py",
        "mount",
    ]
    assert prepared.run(run, check=False).status != 0
    assert json.loads(prepared.run([*run[:5], f"-p{ERROR_NUMBER}", *run[5:]]).stdout) == {"mount": "EPERM"}


def test_shared_memory_of_a_room_goes_with_it(prepared: Guest) -> None:
    leave = "import ctypes; assert ctypes.CDLL(None).shmget(0, 4096, 0o1666) >= 0"

    def left(*properties: str) -> int:
        options = [f"-p{line}" for line in ("User=nobody", *properties)]
        prepared.run(["systemd-run", "-q", "--wait", *options, "/usr/bin/python3", "-c", leave])
        return prepared.run("ipcs -m").stdout.count("nobody")

    assert left() == 1
    assert left("RemoveIPC=yes") == 0


@pytest.mark.parametrize("unit", UNITS)
def test_exposure(prepared: Guest, unit: str) -> None:
    """As loaded, and of the file alone as a reviewer sees it."""
    assert prepared.exposure(f"{unit}.service") <= EXPOSURE[unit]
    name = f"{unit}0.service" if unit.endswith("@") else f"{unit}.service"
    assert prepared.exposure(name, "--offline=yes") <= EXPOSURE[unit]


def test_systemd_has_no_word_against_the_units(prepared: Guest) -> None:
    told = prepared.run("systemd-analyze verify --man=no /usr/lib/systemd/system/scaleoutd*.{service,socket,slice} 2>&1")
    assert told.text == ""
    words = [line for line in prepared.journal("init.scope").splitlines() if "scaleoutd" in line and "gnoring" in line]
    assert not words


def test_in_a_machine_the_rest_bites_too(node_machine: Guest) -> None:
    prepare(node_machine)
    check_that_they_bite(node_machine, BITES_IN_MACHINE)
