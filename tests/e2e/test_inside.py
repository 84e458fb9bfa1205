# SPDX-License-Identifier: Apache-2.0
"""What a step that a real node started can reach: the same probe, inside as `train`, outside as a control.

The probe prints one JSON object: for each thing that it tried "done" or the error it met.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scaleoutd.devcombiner.server import DevCombiner
from scaleoutd.runner.runs import run_name
from tests.e2e.site import SEED, NodeProcess, Site, wait_until
from tests.living import files_below

CANARY = "canary-3f9a17c2"
OWN_NUMBERS = 16  # of processes that a run may have: where the tests are in a young pid namespace too, these say nothing
PROBE = """
import os, socket
asked = {key: [] for key in ("read", "list", "write", "connect", "pids")}
asked.update(json.load(open(source + "-metadata")))
found = {"read": {}, "list": {}, "write": {}, "connect": {}}

def tried(act, *arguments):
    try:
        act(*arguments)
        return "done"
    except Exception as exc:
        return type(exc).__name__ + ": " + str(getattr(exc, "strerror", exc))

def read(path):
    with open(path, "rb") as file:
        file.read(1)

def write(path):
    with open(path, "ab"):
        pass

def connect(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as end:
        end.settimeout(2)
        end.connect(address)

for path in asked["read"]:
    found["read"][path] = tried(read, path)
for path in asked["list"]:
    found["list"][path] = tried(os.listdir, path)
for path in asked["write"]:
    found["write"][path] = tried(write, path)
for family, address in asked["connect"]:
    address = "\\0" + address[1:] if isinstance(address, str) and address[:1] == "@" else address
    address = tuple(address) if isinstance(address, list) else address
    found["connect"][f"{family} {address!r}"] = tried(connect, getattr(socket, family), address)
found["families"] = {}
for name in dir(socket):
    if name.startswith("AF_") and name not in ("AF_UNSPEC", "AF_UNIX"):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
            found["families"][f"{name} {int(kind)}"] = tried(lambda: socket.socket(getattr(socket, name), kind).close())
found["datagram"] = tried(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).close())

def is_open(fd):
    try:
        os.fstat(fd)
        return True
    except OSError:
        return False

found["descriptors"] = [fd for fd in range(4096) if is_open(fd)]
found["links"] = [os.readlink(f"/proc/self/fd/{fd}") for fd in found["descriptors"]]
found["pids"] = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
found["foreign"] = [pid for pid in asked["pids"] if os.path.exists(f"/proc/{pid}/stat")]
found["environment"] = dict(os.environ)
found["status"] = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
found["root"] = sorted(os.listdir("/"))
print("FOUND " + json.dumps(found))
"""
# All that a step is given, beside LC_CTYPE, which Python sets for itself (PEP 538).
ENVIRONMENT = {
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "TMPDIR", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "PYTHONNOUSERSITE",
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "SCALEOUTD_TASK", "SCALEOUTD_RUN",
    "LOKY_MAX_CPU_COUNT", "PYTHON_CPU_COUNT",
    "XDG_CACHE_HOME", "MPLCONFIGDIR", "NUMBA_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR",
}  # fmt: skip


class Listening:
    """A TCP port, a socket with a name in the file system and one with an abstract name, all of which accept."""

    def __init__(self, folder: Path) -> None:
        self.name = f"scaleoutd-test-{secrets.token_hex(8)}"
        self.path = str(folder / "listening.sock")
        self._ends = [socket.socket(family, socket.SOCK_STREAM) for family in (socket.AF_INET, socket.AF_UNIX, socket.AF_UNIX)]
        for end, address in zip(self._ends, (("127.0.0.1", 0), self.path, f"\0{self.name}"), strict=True):
            end.bind(address)  # type: ignore[arg-type]  # a tuple, a path, an abstract name
            end.listen(16)
        Path(self.path).chmod(0o777)
        self.port = self._ends[0].getsockname()[1]
        self.came = 0
        for end in self._ends:
            threading.Thread(target=self._accept, args=[end], daemon=True).start()

    def _accept(self, end: socket.socket) -> None:
        while True:
            try:
                end.accept()[0].close()
            except OSError:
                return
            self.came += 1

    def close(self) -> None:
        for end in self._ends:
            end.shutdown(socket.SHUT_RDWR)
            end.close()


def leave_own_numbers() -> None:
    """What starts from here on has a number that no process of a run has."""
    number = 0
    while number <= OWN_NUMBERS:
        with subprocess.Popen(["/bin/true"]) as child:
            number = child.pid


def wanted(site: Site, node: NodeProcess, listening: Listening) -> dict[str, Any]:
    """What the probe shall try: everything that the node has."""
    words = list(node.arguments)
    named = [words[words.index(option) + 1] for option in ("--key", "--cert", "--ca", "--policy")]
    goes = ("store", "spool", "scratch")  # the project itself, and what goes with its task
    kept = [str(path) for path in files_below(site.state, leave_out=goes)]
    of_project = [str(path) for path in site.project.folder.iterdir()]
    rooms = node.children()
    assert set(rooms) >= {"agent", "runner", "ledger"}
    pids = [node.process.pid, os.getpid(), *(pid for room, pid in rooms.items() if room != "step")]  # a step instance goes
    pids = [pid for pid in pids if pid > OWN_NUMBERS]
    # The container's own host files that nobody outside root may read.
    secret = [path for path in ("/etc/shadow",) if os.access(path, os.R_OK)]  # only root can reach it outside
    reads = [*named, *kept, *of_project, str(site.trust_root), *secret]
    proc = [f"/proc/{pid}/{name}" for pid in pids for name in ("environ", "cmdline", "maps")]
    return {
        "read": [*reads, *proc],
        "list": [str(site.folder), str(site.state), *(str(path) for path in site.state.iterdir() if path.is_dir())],
        "write": [str(site.state / "canary"), str(site.project.folder / "canary"), "/usr/canary", "/etc/canary", "/canary"],
        "connect": [
            ["AF_INET", ["127.0.0.1", listening.port]],
            ["AF_UNIX", listening.path],
            ["AF_UNIX", f"@{listening.name}"],
        ],
        "pids": pids,
    }


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, dict[str, Any], dict[str, Any]]]:
    """The site, what the probe found inside, and what it found outside."""
    folder = tmp_path_factory.mktemp("site")
    listening = Listening(folder)
    leave_own_numbers()
    with DevCombiner() as combiner, Site(folder, combiner, train_body=PROBE) as site:
        node = NodeProcess(site.arguments(), combiner.mint_enrollment(), {"CANARY": CANARY})
        site.nodes.append(node)
        site._client = "ward-7"
        assert combiner.board.wait_until(lambda: bool(combiner.board.connected()), 90), node.text
        assert site.task().status == "COMPLETED"  # so that there is a store, a run, an outbox to look for
        settings = wanted(site, node, listening)
        offer = site.task(client_settings=settings)
        assert offer.status == "COMPLETED", (offer, node.text)
        output = site.state / "runner" / "output" / f"{run_name(offer.correlation_id)}.log"
        inside = _found(output.read_text())
        came = listening.came
        assert came == 0
        yield site, inside, outside(site, folder / "outside", settings)
        assert listening.came == 3
    listening.close()


def outside(site: Site, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    folder.mkdir()
    (folder / "model").write_bytes(SEED)
    (folder / "model-metadata").write_text(json.dumps({**settings, "write": [str(site.state / "canary-outside")]}))
    command = ["/usr/bin/python3", str(site.project.folder / "train.py"), str(folder / "model"), str(folder / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "CANARY": CANARY})
    return _found(done.stdout)


def _found(text: str) -> dict[str, Any]:
    (line,) = [line for line in text.splitlines() if line.startswith("FOUND ")]
    return dict(json.loads(line.removeprefix("FOUND ")))


Probed = tuple[Site, dict[str, Any], dict[str, Any]]


@pytest.mark.parametrize("kind", ["read", "list", "write", "connect"])
def test_nothing_of_the_node_is_reached_from_inside(kind: str, probed: Probed) -> None:
    _, inside, out = probed
    reached = {what: told for what, told in inside[kind].items() if told == "done"}
    assert inside[kind] and not reached
    failed_outside = {what: told for what, told in out[kind].items() if told != "done"}
    assert not failed_outside, "control: outside, each of them can be reached"


def test_the_things_that_were_tried_are_those_that_matter(probed: Probed) -> None:
    _, inside, _ = probed
    tried = " ".join(inside["read"])
    for part in (
        ".key",
        "policy.yaml",
        "policy.lock",
        "/agent/",
        "/runner/runs/",
        "/runner/outbox/",
        "/audit/",
        "train.py",
        "environ",
    ):
        assert part in tried or part == "/runner/outbox/", part


def test_there_is_no_socket_of_any_family(probed: Probed) -> None:
    _, inside, out = probed
    assert [name for name, told in inside["families"].items() if told == "done"] == []
    assert inside["datagram"] != "done"
    assert out["families"]["AF_INET 1"] == out["datagram"] == "done"


def test_no_descriptor_is_inherited(probed: Probed) -> None:
    _, inside, _ = probed
    assert inside["descriptors"] == [0, 1, 2]
    assert inside["links"][0] == "/dev/null"


def test_no_other_process_is_seen(probed: Probed) -> None:
    _, inside, out = probed
    assert inside["foreign"] == []
    assert len(inside["pids"]) <= 3, inside["pids"]
    assert len(out["foreign"]) >= 4


def test_the_environment_is_what_the_plan_gives_and_holds_no_secret(probed: Probed) -> None:
    site, inside, out = probed
    environment = inside["environment"]
    assert set(environment) - {"LC_CTYPE"} == ENVIRONMENT
    assert CANARY not in json.dumps(inside)
    assert not [key for key in environment if "TOKEN" in key or key.startswith("SCALEOUT_")]
    assert str(site.folder) not in " ".join(environment.values())
    assert out["environment"]["CANARY"] == CANARY


def test_the_step_has_no_privilege(probed: Probed) -> None:
    _, inside, _ = probed
    status = {key: value.strip() for key, value in inside["status"].items()}
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[kind], 16) == 0, (kind, status[kind])
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    if os.geteuid() == 0:
        assert "0" not in status["Uid"].split()
        assert "0" not in status["Gid"].split()


def test_the_view_has_no_folder_of_the_host_but_the_system_s_own(probed: Probed) -> None:
    _, inside, _ = probed
    assert not {"root", "home", "run", "var", "boot", "srv", "mnt", "media", "opt"} & set(inside["root"])


def test_a_surprising_call_from_inside_is_counted_on_record(probed: Probed) -> None:
    site, _, _ = probed
    (*_, event) = wait_until(lambda: site.events("run-ended"), 60, lambda: "no run-ended")
    assert event["denied"].get("socket", 0) > 0, event["denied"]
