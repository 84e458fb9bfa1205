# SPDX-License-Identifier: Apache-2.0
"""Where namespaces are denied: what still works, what is refused, what still holds, and that what is told to be open is open."""

from __future__ import annotations

import json
import secrets
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from scaleoutd.devcombiner.npz import flat, write_npz
from scaleoutd.devcombiner.server import DevCombiner
from scaleoutd.runner.openings import ALWAYS_OPEN, NOT_THERE
from tests.e2e.site import TRAIN, Project, events, write_policy
from tests.kernel.without_namespaces import Host, host_without_namespaces

SEED = write_npz({"0": flat("f8", (3,), [1.0, 2.0, 3.0])})
ATTEMPT = '''
import ctypes, errno, os, socket, subprocess
given = json.loads(open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "targets.json")).read())
libc = ctypes.CDLL(None, use_errno=True)

def read(path): open(path).read()
def write(path): open(path, "w").write("x")
def link(path): os.link(path, os.path.join(os.environ.get("TMPDIR", "."), "link"))
def inet(port): socket.create_connection(("127.0.0.1", port), 3).close()
def udp(port): socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", port))
def abstract(name):
    s = socket.socket(socket.AF_UNIX); s.connect("\\0" + name)
def path_socket(path):
    s = socket.socket(socket.AF_UNIX); s.connect(path)
def ptrace(pid):
    if libc.ptrace(16, pid, None, None): raise OSError(ctypes.get_errno(), "ptrace")
    os.waitpid(pid, 0)
    libc.ptrace(17, pid, None, None)
def environ(pid): open(f"/proc/{pid}/environ", "rb").read()
def memory(pid): open(f"/proc/{pid}/mem", "rb").close()
def kill(pid): os.kill(pid, 0)
def pidfd(pid): os.close(os.pidfd_open(pid))
def priority(pid): os.setpriority(os.PRIO_PROCESS, pid, 5)
def affinity(pid): os.sched_setaffinity(pid, os.sched_getaffinity(pid))
def chmod(path): os.chmod(path, 0o640)
def utimes(path): os.utime(path)
def exists(path): os.stat(path)
def watch(path):
    if libc.inotify_add_watch(libc.inotify_init(), path.encode(), 0xFFF) < 0: raise OSError(ctypes.get_errno(), "watch")
def in_use(pid): os.getpgid(pid)
def how_full(path): os.statvfs(path)
def urgency(pid): os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0))

for name, act, target in given:
    try:
        globals()[act](target)
        print("attempt", name, "allowed", flush=True)
    except OSError as exc:
        print("attempt", name, errno.errorcode.get(exc.errno, "denied"), flush=True)
'''  # fmt: skip
DENIED = {
    "token": "read", "policy": "read", "key": "read", "outside-write": "write", "trail-write": "write", "hard-link": "link",
    "inet": "inet", "udp": "udp", "abstract": "abstract", "ptrace": "ptrace", "environ": "environ", "memory": "memory",
    "pidfd": "pidfd", "priority": "priority",
}  # fmt: skip
OPEN = {
    "path-socket": "path_socket", "chmod": "chmod", "utimes": "utimes", "exists": "exists", "affinity": "affinity",
    "watch": "watch", "in-use": "in_use", "how-full": "how_full", "urgency": "urgency",
}  # fmt: skip


@pytest.fixture
def host() -> Iterator[Host]:
    with host_without_namespaces() as made:
        yield made


@pytest.fixture
def project(host: Host) -> Path:
    """A development project of the user, and a model beside it."""
    made = Project(host.home / "project")
    made.write()
    (host.home / "seed.npz").write_bytes(SEED)
    host.give(host.home)
    return made.folder


def run_train(host: Host, project: Path, *more: str) -> subprocess.CompletedProcess[str]:
    arguments = ("run", "train", "--in", str(host.home / "seed.npz"), "--out", str(host.home / "update.zip"))
    return host.run(host.command("scaleoutctl", *arguments, "--state-dir", str(host.home / "state"), *more), project)


def test_control_the_host_gives_no_namespaces(host: Host) -> None:
    refused = host.run(["unshare", "--user", "true"], host.home)
    assert refused.returncode != 0, refused.stdout


def test_a_training_runs_and_every_start_says_by_name_what_is_open_and_how_to_close_it(host: Host, project: Path) -> None:
    for start in (1, 2):
        done = run_train(host, project)
        assert done.returncode == 0, done.stdout
        assert "steps run without namespaces" in done.stdout
        recorded = events(host.home / "state", "outcome-open")
        assert len(recorded) == start
        assert recorded[-1]["backend"] == "inner"
        assert "no-write-outside" in recorded[-1]["outcomes"]
        for name in recorded[-1]["outcomes"]:
            assert f"OPEN {name}: " in done.stdout
        assert "to close them: " in done.stdout
        assert "max_user_namespaces" in done.stdout
    began = events(host.home / "state", "run-about-to-start")[-1]
    assert began["backend"] == "inner"
    assert not set(began["outcomes"]) & set(recorded[-1]["outcomes"]), "what is open is not claimed"
    assert (host.home / "update.zip").stat().st_size > 0


def test_a_whole_round(host: Host, project: Path) -> None:
    with DevCombiner(client_certificate="none") as combiner, development_node(host, project, combiner) as log:
        combiner.start_session(SEED, rounds=1, min_clients=1, round_timeout_s=60)
        session = combiner.wait_session(90)
        assert session.status == "completed", log.read_text()
        record = combiner.history[0]
        assert record.status == "completed"
        assert list(record.validations.values()) == [{"accuracy": 0.75, "loss": 0.25}]
        assert list(combiner.arrays(record.new_model_id)["0"].values) == [1.0, 2.0, 3.0]
    assert "OPEN no-write-outside" in log.read_text()


@contextmanager
def development_node(host: Host, project: Path, combiner: DevCombiner) -> Iterator[Path]:
    """A node without --policy that is connected; its output."""
    ca = host.home / "ca.pem"
    ca.write_bytes(combiner.ca_file.read_bytes())
    ca.chmod(0o644)
    arguments = ("client", "start", "--local-package", "--api-url", combiner.api_url, "--ca", str(ca), "--poll-interval", "0.2")
    log = host.home / "node.log"
    with log.open("wb") as file:
        process = host.start(
            host.command("scaleoutd", *arguments, "--name", "ward", "--state-dir", str(host.home / "state")),
            project,
            file.fileno(),
            SCALEOUT_AUTH_TOKEN=combiner.mint_enrollment(),
        )
    try:
        assert combiner.board.wait_until(lambda: bool(combiner.board.connected()), 30), log.read_text()
        yield log
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def with_policy(host: Host, project: Path, **changes: Any) -> subprocess.CompletedProcess[str]:
    made = Project(project)
    made.sign()
    root = made.write_trust_root(host.home / "root.json")
    policy = write_policy(host.home / "policy.yaml", made, root, client_certificate="none", **changes)
    host.give(project, root, policy)
    return run_train(host, project, "--policy", str(policy))


def test_with_a_policy_nothing_starts_by_itself_without_namespaces(host: Host, project: Path) -> None:
    refused = with_policy(host, project)
    assert refused.returncode != 0, refused.stdout
    assert "namespaces-denied" in refused.stdout
    assert "backend: inner" in refused.stdout


def test_a_policy_that_says_inner_and_demands_what_cannot_be_proven_is_refused_by_name(host: Host, project: Path) -> None:
    refused = with_policy(host, project, backend="inner")
    assert refused.returncode != 0, refused.stdout
    assert "kernel-support" in refused.stdout
    assert "no-write-outside" in refused.stdout


def test_control_a_policy_that_says_inner_and_demands_what_can_be_proven_runs(host: Host, project: Path) -> None:
    done = with_policy(host, project, backend="inner", outcomes=["no-read-outside", "no-foreign-device"])
    assert done.returncode == 0, done.stdout
    assert "OPEN, as the policy allows: " in done.stdout
    assert f"OPEN also: {ALWAYS_OPEN[0]}" in done.stdout
    assert events(host.home / "state", "outcome-open")


def test_attacks_of_a_step_fail_but_for_what_was_told_to_be_open(host: Host, project: Path) -> None:
    own = host.home / "own"
    own.mkdir()
    names = ("token", "policy", "key", "writable", "trail", "mode")
    for name in names:
        (own / name).write_text("secret")
        (own / name).chmod(0o600)
    abstract = f"scaleoutd-none-{secrets.token_hex(8)}"
    with listening(own / "socket", abstract) as port:
        paths = {name: str(own / name) for name in ("token", "policy", "key")}
        targets: dict[str, Any] = {
            **paths, "outside-write": str(own / "writable"), "trail-write": str(own / "trail"), "hard-link": str(own / "token"),
            "inet": port, "udp": port, "abstract": abstract, "ptrace": "VICTIM", "environ": "VICTIM", "memory": "VICTIM",
            "path-socket": str(own / "socket"), "chmod": str(own / "mode"), "utimes": str(own / "mode"),
            "exists": str(own / "token"), "pidfd": "VICTIM", "priority": "VICTIM", "affinity": "VICTIM",
            "watch": str(own), "in-use": "VICTIM", "how-full": str(own), "urgency": "VICTIM",
        }  # fmt: skip
        acts = [(name, act, targets[name]) for name, act in {**DENIED, **OPEN}.items()]
        (host.home / "targets.json").write_text(json.dumps(acts))
        (host.home / "attempt.py").write_text("import json, os\n" + ATTEMPT)
        (host.home / "victim.py").write_text(VICTIM)
        (project / "train.py").write_text(TRAIN.format(body=ATTEMPT))
        (host.home / "both.sh").write_text(BOTH)
        (host.home / "scratch").mkdir()
        host.give(host.home)
        command = host.command("scaleoutctl", "run", "train", "--in", str(host.home / "seed.npz"))
        state = ["--state-dir", str(host.home / "state")]
        both = host.run(["sh", str(host.home / "both.sh"), *command, *state], host.home)
    outside, mark, inside = both.stdout.partition("--- as the step\n")
    assert mark
    assert attempts(outside) == dict.fromkeys(targets, "allowed"), "the control: the same acts by the same user outside"
    found = attempts(inside)
    assert set(found) == set(targets), inside
    assert {name for name, outcome in found.items() if outcome == "allowed"} == set(OPEN), inside
    assert "OPEN no-socket-out" in inside
    assert "OPEN no-write-outside" in inside
    assert "; ".join((*ALWAYS_OPEN, NOT_THERE)) in inside
    assert (own / "writable").read_text() == "secret"


# Victim, control and step are in one user namespace, or that alone would keep them apart.  The victim lets itself be traced
# where Yama would want a descendant for that.
VICTIM = """\
import ctypes, time
ctypes.CDLL(None).prctl(0x59616D61, -1, 0, 0, 0)
print("ready", flush=True)
time.sleep(300)
"""
BOTH = """\
python3 victim.py >victim.out &
victim=$!
trap "kill $victim" EXIT
until grep -q ready victim.out; do sleep 0.01; done
sed "s/\\"VICTIM\\"/$victim/g" targets.json >project/targets.json
cp attempt.py project/targets.json scratch/
TMPDIR=scratch python3 scratch/attempt.py
printf secret >own/writable
echo "--- as the step"
cd project && "$@"
"""


@contextmanager
def listening(path: Path, abstract: str) -> Iterator[int]:
    """A TCP port on the loopback interface, a socket in the file system and one without a name there."""
    with socket.socket(socket.AF_INET) as tcp, socket.socket(socket.AF_UNIX) as named, socket.socket(socket.AF_UNIX) as bare:
        tcp.bind(("127.0.0.1", 0))
        named.bind(str(path))
        bare.bind("\0" + abstract)
        for sock in (tcp, named, bare):
            sock.listen(16)
        yield int(tcp.getsockname()[1])


def attempts(text: str) -> dict[str, str]:
    lines = [line.partition("attempt ")[2].split() for line in text.splitlines() if "attempt " in line]
    return {line[0]: line[1] for line in lines}
