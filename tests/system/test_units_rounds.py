# SPDX-License-Identifier: Apache-2.0
"""A node of real units at work: rounds over mTLS, what a step is and sees, sockets and their modes, limits, what is on record."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.system.guest import Guest
from tests.system.hospital import Hospital
from tests.system.image import SYSTEMD
from tests.system.promises import check_node, check_task

SUITES = tuple(SYSTEMD)

# What the step finds about itself, on its standard output, which the runner keeps.
SELF = """
import os, socket
def connect(path):
    socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).connect(path)
def attempt(act):
    try:
        return repr(act())
    except OSError as exc:
        return exc.strerror
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
names = ("Uid", "Gid", "Groups", "CapPrm", "CapInh", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")
facts = {name: status[name] for name in names}
facts["others"] = [pid for pid in os.listdir("/proc") if pid.isdigit() and os.stat("/proc/" + pid).st_uid != os.getuid()]
facts["environment"] = sorted(os.environ)
facts["descriptors"] = sorted(os.listdir("/proc/self/fd"))
facts["interfaces"] = [line.partition(":")[0].strip() for line in open("/proc/net/dev").readlines()[2:]]
facts["oom"] = open("/proc/self/oom_score_adj").read().strip()
facts["folder"] = os.getcwd()
facts["name"] = __import__("pwd").getpwuid(os.getuid()).pw_name
facts["tried"] = {
    "list /": attempt(lambda: os.listdir("/")),
    "list /data": attempt(lambda: os.listdir("/data")),
    "list /store": attempt(lambda: os.listdir("/store")),
    "list /in": attempt(lambda: os.listdir("/in")),
    "list another slot": attempt(lambda: os.listdir("/scratch/7")),
    "write the store": attempt(lambda: open("train.py", "a")),
    "write /run": attempt(lambda: open("/run/probe", "w")),
    "write /home": attempt(lambda: open("/home/probe", "w")),
    "connect to the ledger": attempt(lambda: connect("/run/scaleoutd/ledger.sock")),
    "connect out": attempt(lambda: socket.create_connection(("127.0.0.1", 1))),
}
own = [path + "/probe" for path in ("/tmp", "/dev/shm", os.path.dirname(target))]
facts["written"] = [attempt(lambda: open(path, "w").close()) for path in own]
for path in own:
    os.unlink(path)
print("FACTS " + __import__("json").dumps(facts), flush=True)
"""
# The view of every instance, whatever its task; nothing else of the machine.
VIEW = "bin data dev etc home in lib lib64 proc root run sbin scratch store sys tmp usr"
EMPTY = ("/home", "/root", "/run/user", "/tmp", "/dev/shm")
SYS = {"/sys", "/sys/fs", "/sys/fs/cgroup", *(f"/sys/devices{below}" for below in ("", "/system", "/system/cpu", "/system/node"))}
SOCKETS = {
    "runner.sock": "root scaleoutd 660",
    "ledger.sock": "root scaleoutd-trail 660",
    "step.sock": "root scaleoutd-runner 660",
    "agent.control": "root scaleoutd-admin 660",
    "runner.control": "root scaleoutd-admin 660",
    "ledger.control": "root scaleoutd-admin 660",
}


@pytest.fixture(scope="module")
def hospital(node: Guest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    with Hospital(node, tmp_path_factory.mktemp("site"), train_body=SELF) as site:
        site.bring()
        site.start()
        yield site


@pytest.fixture(scope="module")
def facts(hospital: Hospital) -> dict[str, Any]:
    """What a training step found."""
    task = hospital.offer()
    assert check_task(hospital, task) == "COMPLETED"
    run = next(event["run"] for event in hospital.trail("run-about-to-start") if event["correlation_id"] == task)
    printed = hospital.guest.read(f"/var/lib/scaleoutd/runner/output/{run}.log")
    line = next(line for line in printed.splitlines() if line.startswith("FACTS "))
    return dict(json.loads(line.removeprefix("FACTS ")))


def launcher(guest: Guest) -> int:
    """The process of the spare instance; the older ones, that ran, are about to end."""
    return int(guest.run("until pgrep -n -u scaleoutd-launch; do sleep 0.05; done").text)


def test_two_rounds_over_mtls(hospital: Hospital) -> None:
    hospital.rounds(2)
    connected = hospital.trail("connected")
    assert any(event["service"] == "combiner" and event["tls_version"] == "TLSv1.3" for event in connected)
    hospital.guest.wait_units("scaleoutd.service", "StatusText=connected to localhost:[0-9]+, idle")
    hospital.guest.wait_units("scaleoutd-runner.service", "StatusText=waits for tasks, [1-9][0-9]* runs in the last 24 hours")
    check_node(hospital)


def test_the_step_has_no_privilege(facts: dict[str, Any]) -> None:
    uid = facts["Uid"].split()
    assert set(uid) == {uid[0]} and 2_100_000_000 <= int(uid[0]) < 2_100_000_008
    assert facts["Gid"].split() == uid and facts["Groups"].strip() == ""
    assert {facts[name] for name in ("CapPrm", "CapInh", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert facts["NoNewPrivs"] == "1" and facts["Seccomp"] == "2" and facts["oom"] == "1000"


def test_the_step_sees_itself_and_its_task_only(facts: dict[str, Any]) -> None:
    assert facts["others"] == [] and facts["interfaces"] == ["lo"]
    assert re.fullmatch(r"/store/[0-9a-f]{64}", facts["folder"])
    assert facts["name"] == f"scaleoutd-step-{int(facts['Uid'].split()[0]) - 2_100_000_000}"
    assert not [name for name in facts["environment"] if re.search("LISTEN|NOTIFY|INVOCATION|JOURNAL|CREDENTIAL|DIGEST", name)]
    assert set(facts["descriptors"]) <= {"0", "1", "2", "3"}  # the fourth is that of the listing itself
    assert set(facts["tried"].values()) <= {
        "Permission denied", "Operation not permitted", "Read-only file system", "No such file or directory",
        "Address family not supported by protocol",
    }, facts["tried"]  # fmt: skip
    assert facts["written"] == ["None"] * 3  # the control: what is the step's own can be written


def test_the_view_of_an_instance_is_the_list_and_nothing_else(hospital: Hospital) -> None:
    inside = ["nsenter", "-t", str(launcher(hospital.guest)), "-m"]
    assert hospital.guest.run([*inside, "ls", "-A", "/"]).stdout.split() == VIEW.split()
    assert hospital.guest.run([*inside, "ls", "-A", "/etc"]).stdout.split() == [
        "alternatives", "group", "hosts", "ld.so.cache", "localtime", "nsswitch.conf", "passwd",
    ]  # fmt: skip
    found = set(hospital.guest.run([*inside, "find", "/sys", "-maxdepth", "3"]).stdout.split()) - SYS
    assert not found
    for folder in EMPTY:
        assert hospital.guest.run([*inside, "ls", "-A", folder]).text == ""
    for folder in ("/", "/run", "/home", "/root", "/run/user", "/usr", "/etc", "/store", "/in", "/data", "/sys/fs/cgroup"):
        assert "ead-only" in hospital.guest.run([*inside, "touch", f"{folder}/probe"], check=False).stderr, folder
    options = hospital.guest.run([*inside, "findmnt", "-no", "OPTIONS", "/tmp"]).text
    assert {"noexec", "nosuid", "nodev"} <= set(options.split(","))
    assert hospital.guest.run([*inside, "sh", "-c", "touch /tmp/probe && rm /tmp/probe"]).status == 0  # the control


def test_sockets_are_roots_and_each_of_one_group(hospital: Hospital) -> None:
    guest = hospital.guest
    assert guest.run("stat -c '%U %G %a' /run/scaleoutd").text == "root root 755"
    assert {name: guest.run(["stat", "-c", "%U %G %a", f"/run/scaleoutd/{name}"]).text for name in SOCKETS} == SOCKETS
    assert guest.run("ls /run/scaleoutd").stdout.split() == sorted(SOCKETS)


CONNECT = """\
import socket, sys
try:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(sys.argv[1])
    sock.settimeout(5)
    print("spoken to" if sock.recv(65536) else "closed")
except OSError as exc:
    print(exc.strerror)
"""


@pytest.mark.parametrize(
    ("user", "reached"),
    [
        ("scaleoutd", ["runner.sock", "ledger.sock"]),
        ("scaleoutd-runner", ["ledger.sock", "step.sock"]),
        ("scaleoutd-ledger", []),
        ("scaleoutd-launch", []),
        ("scaleoutd-step-0", []),
        ("nobody", []),
    ],
)
def test_who_reaches_which_socket(hospital: Hospital, user: str, reached: list[str]) -> None:
    answers = {name: hospital.guest.python(CONNECT, f"/run/scaleoutd/{name}", user=user).text for name in SOCKETS}
    assert sorted(name for name, text in answers.items() if text == "spoken to") == sorted(reached)
    assert {text for name, text in answers.items() if name not in reached} == {"Permission denied"}


def test_what_is_another_slots_is_closed(hospital: Hospital) -> None:
    """By modes alone, for a kernel without Landlock; the control is the owner."""
    guest = hospital.guest
    store = guest.run("ls -d /var/lib/scaleoutd/runner/store/*/ | head -1").text
    with hospital.step_held() as held:
        task = hospital.offer()
        held()
        running = guest.run("ps -eo user:32 | grep -m1 scaleoutd-step-").text
        model = guest.run("ls -d /var/lib/scaleoutd/runner/in/*/").text
        for folder in (store, model):
            assert guest.run(["ls", folder], user=running).status == 0
            assert guest.run(["ls", folder], user="scaleoutd-step-7", check=False).status != 0
            assert guest.run(["ls", folder], user="scaleoutd-runner").status == 0
    assert check_task(hospital, task) == "COMPLETED"
    hospital.guest.wait_units("scaleoutd-runner.service", "StatusText=waits for tasks.*")
    assert guest.run(["ls", store], user=running, check=False).status != 0  # and after the run for this one too
    check_node(hospital)


def test_this_systemd_has_run_them_and_has_no_word_against_them(hospital: Hospital, suite: str) -> None:
    """From the boot to here: of PID 1, of what makes users and folders, and of the rooms."""
    guest = hospital.guest
    assert guest.run("systemctl --version | head -1").text.split()[1] == str(SYSTEMD[suite])
    warned = guest.run("journalctl -b -q --no-pager -p warning").text.splitlines()
    assert not [line for line in warned if "scaleout" in line or "sysusers" in line or "tmpfiles" in line]
    assert guest.run("systemctl list-units --failed --plain --no-legend 'scaleoutd*'").text == ""


def test_readers_have_their_groups(hospital: Hospital, facts: dict[str, Any]) -> None:
    guest = hospital.guest
    for group, path in (
        ("scaleoutd-audit", "/var/lib/scaleoutd/audit/*.jsonl"),
        ("scaleoutd-data", "/var/lib/scaleoutd/runner/output/*.log"),
    ):
        read = f"setpriv --reuid=nobody --regid=nogroup {{}} sh -c 'ls {path} >/dev/null 2>&1; cat {path} >/dev/null'"
        assert guest.run(read.format(f"--groups={group}")).status == 0
        assert guest.run(read.format("--clear-groups"), check=False).status != 0
