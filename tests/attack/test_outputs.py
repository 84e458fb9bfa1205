# SPDX-License-Identifier: Apache-2.0
"""Outputs that are not plain files, and processes that want to outlive their run."""

from __future__ import annotations

import json
import os
import signal
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scaleoutd.core.plan import GateRules, ModelRules
from scaleoutd.errors import ScaleoutError
from tests.attack.arena import USER
from tests.processes import processes
from tests.step_client import MIB, PYTHON, StepClient, plan_for
from tests.unit.step.models import npy, npz

WEIGHTS = npz({"0": npy("<f4", (3,), bytes(12))})
WRITE = f"import os; w = {WEIGHTS!r}; P = '/scratch/out/model.npz'; M = P + '-metadata'\n"
WRITE_METADATA = "open(M, 'w').write('{\"num_examples\": 3}')\n"
RULES = GateRules("train", MIB, model=ModelRules(("npz",), MIB))


@pytest.fixture(params=("root", "user") if os.geteuid() == 0 else ("user",))
def place(request: pytest.FixtureRequest) -> Iterator[tuple[StepClient, Path]]:
    with tempfile.TemporaryDirectory(prefix="scaleoutd-outputs-") as name:
        folder = Path(name)
        uid = USER if request.param == "user" and os.geteuid() == 0 else None
        if uid is not None:
            os.chown(folder, uid, uid)
        with StepClient(uid=uid) as client:
            yield client, folder / "scratch"


def gate(place: tuple[StepClient, Path], code: str) -> str:
    """Runs `code` and gates its outputs; "ok" or the code of the error."""
    client, scratch = place
    done = client.execute(plan_for(scratch, [PYTHON, "-c", WRITE + code]))
    assert done.result.exit_status == 0, done.output
    with tempfile.TemporaryDirectory() as name:
        model = Path(name) / "received"
        model.write_bytes(WEIGHTS)
        fd = os.open(model, os.O_RDONLY)
        try:
            facts, weights = client.gate(plan_for(scratch, ["true"]), RULES, fd)
        except ScaleoutError as exc:
            return exc.code
        finally:
            os.close(fd)
        assert weights is not None
        with os.fdopen(weights, "rb") as file:
            assert file.read() == WEIGHTS
        assert json.loads(facts.metadata) == {"num_examples": 3}
        return "ok"


def test_control_plain_files_pass(place: tuple[StepClient, Path]) -> None:
    assert gate(place, "open(P, 'wb').write(w)\n" + WRITE_METADATA) == "ok"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("os.symlink('/etc/passwd', P)", "output-unsafe"),
        ("open('/scratch/w', 'wb').write(w); os.symlink('/scratch/w', P)", "output-unsafe"),
        ("os.rmdir('/scratch/out'); os.symlink('/usr', '/scratch/out'); raise SystemExit(0)", "output-unsafe"),
        ("os.rmdir('/scratch/out'); open('/scratch/out', 'w'); raise SystemExit(0)", "output-unsafe"),
        ("open(P, 'wb').write(w); os.link(P, '/scratch/other')", "output-unsafe"),
        ("os.mkdir(P)", "output-unsafe"),
        ("import socket; s = socket.socket(socket.AF_UNIX); s.bind(P)", "output-unsafe"),
        ("open(P, 'wb').write(w); os.chmod(P, 0)", "output-unsafe"),
        (
            "open(P, 'wb').truncate(1 << 40) if False else os.truncate(os.open(P, os.O_CREAT | os.O_WRONLY), 60 << 20)",
            "limit-output",
        ),
        ("pass", "output-missing"),
        ("open(P, 'wb').write(w.replace(bytes(12), b'x' * 12))", "output-invalid"),  # the checksum differs
        ("open(P, 'wb').write(w.replace(bytes(12), bytes(8) + b'\\0\\0\\x80\\x7f'))", "output-invalid"),
        ("open(P, 'wb').write(w[:-9])", "output-invalid"),
        ("open(P, 'wb').write(b'')", "model-format-denied"),
        ("open(P, 'wb').write(w.replace(b'<f4', b'<i4'))", "output-shape"),
    ],
)
def test_output_that_is_no_plain_file_is_refused(place: tuple[StepClient, Path], code: str, expected: str) -> None:
    assert gate(place, code if "SystemExit" in code else code + "\n" + WRITE_METADATA) == expected


@pytest.mark.parametrize("number", ["inf", "-inf", "nan"])
def test_update_that_is_not_finite_is_refused(place: tuple[StepClient, Path], number: str) -> None:
    bad = npz({"0": npy("<f4", (3,), struct.pack("<3f", 1.0, float(number), 2.0))})
    assert gate(place, f"open(P, 'wb').write({bad!r})\n" + WRITE_METADATA) == "output-not-finite"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"num_examples": 0}', '{"num_examples": true}', '{"num_examples": 1.5}', "{}",
                                  '{"num_examples": 1, "num_examples": 2}', '{"num_examples": 1, "loss": NaN}'])  # fmt: skip
def test_metadata_that_is_not_what_the_contract_demands_is_refused(place: tuple[StepClient, Path], text: str) -> None:
    assert gate(place, f"open(P, 'wb').write(w); open(M, 'w').write({text!r})") == "metrics-invalid"


def test_fifo_as_output_cannot_be_made_and_does_not_hang(place: tuple[StepClient, Path]) -> None:
    code = "try: os.mkfifo(P)\nexcept PermissionError: pass\n"
    assert gate(place, code + WRITE_METADATA) == "output-missing"


@pytest.mark.parametrize("kind", ["fifo", "null", "zero"])
def test_fifo_or_device_in_the_place_of_an_output_is_refused_and_does_not_hang(place: tuple[StepClient, Path], kind: str) -> None:
    """A step cannot make one; whoever could all the same would have the gate wait, or read without end."""
    client, scratch = place
    assert client.execute(plan_for(scratch, [PYTHON, "-c", WRITE + WRITE_METADATA])).result.exit_status == 0
    target = scratch / "out/model.npz"
    if kind == "fifo":
        os.mkfifo(target)
    else:
        if os.geteuid() != 0:
            pytest.skip("only root makes device nodes")
        try:
            os.mknod(target, 0o666 | 0o020000, os.makedev(1, {"null": 3, "zero": 5}[kind]))
        except PermissionError:
            pytest.skip("this root may not make device nodes")
    os.chmod(target, 0o666)
    if os.geteuid() == 0:
        owner = (scratch / "out").stat()
        os.chown(target, owner.st_uid, owner.st_gid)
    with tempfile.TemporaryFile() as model, pytest.raises(ScaleoutError) as caught:
        model.write(WEIGHTS)
        model.flush()
        fd = os.open(f"/proc/self/fd/{model.fileno()}", os.O_RDONLY)
        try:
            client.gate(plan_for(scratch, ["true"]), RULES, fd)
        finally:
            os.close(fd)
    assert caught.value.code == "output-unsafe"


def test_a_metric_with_a_name_of_a_gigabyte_is_refused_unread(place: tuple[StepClient, Path]) -> None:
    client, scratch = place
    name = "f = open(M, 'w'); f.write('{\"num_examples\": 3, \"'); f.truncate(1 << 30)\n"
    limits = {"file_size_bytes": 2 << 30, "scratch_bytes": 4 << 30}
    plan = plan_for(scratch, [PYTHON, "-c", WRITE + "open(P, 'wb').write(w)\n" + name], limits=limits)
    assert client.execute(plan).result.exit_status == 0
    with tempfile.NamedTemporaryFile() as model:
        model.write(WEIGHTS)
        model.flush()
        fd = os.open(model.name, os.O_RDONLY)
        with pytest.raises(ScaleoutError) as caught:
            client.gate(plan, RULES, fd)
        os.close(fd)
    assert caught.value.code == "limit-output"


def test_names_of_files_that_add_up_to_megabytes_are_no_output_and_are_emptied(place: tuple[StepClient, Path]) -> None:
    code = "for n in range(4000): open('/scratch/out/' + f'{n:06}' + 'n' * 249, 'w').close()\n"
    assert gate(place, "open(P, 'wb').write(w)\n" + WRITE_METADATA + code) == "ok"
    client, scratch = place
    done = client.execute(plan_for(scratch, [PYTHON, "-c", "import os; print(os.listdir('/scratch/out'))"]))
    assert done.output == "[]\n"


def test_what_a_run_left_in_memory_is_gone_for_the_next(place: tuple[StepClient, Path]) -> None:
    client, scratch = place
    before = set(os.listdir("/dev/shm"))
    look = "import os; print(sorted(os.listdir('/dev/shm') + os.listdir('/tmp')), flush=True)\n"
    leave = "for p in ('/dev/shm/left', '/tmp/left'): open(p, 'w').write('rows of patients')\n"
    segment = "import ctypes; print(ctypes.CDLL(None).shmget(0x5CA1E, 4096, FLAGS), flush=True)\n"
    create, find = segment.replace("FLAGS", "0o1666"), segment.replace("FLAGS", "0")
    first = client.execute(plan_for(scratch, [PYTHON, "-c", look + leave + look + create]))
    assert first.output.splitlines()[:2] == ["[]", "['left', 'left']"]  # the control: there was something to find
    second = client.execute(plan_for(scratch, [PYTHON, "-c", look + find]))
    assert second.output.splitlines() == ["[]", "-1"]
    assert "left" not in set(os.listdir("/dev/shm")) - before


def test_output_is_not_replaced_while_it_is_collected(place: tuple[StepClient, Path]) -> None:
    """A daemon that swaps the output for ever is dead before the first byte is collected."""
    code = (
        "open(P, 'wb').write(w)\n" + WRITE_METADATA + "if os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0:\n"
        "    while True:\n      open('/scratch/n', 'wb').write(b'evil'); os.rename('/scratch/n', P); os.symlink('/etc/passwd', P + '2')\n"  # noqa: E501
        "os._exit(0)\n"
    )
    client, scratch = place
    done = client.execute(plan_for(scratch, [PYTHON, "-c", WRITE + code]))
    assert done.result.exit_status == 0
    first = (scratch / "out/model.npz").read_bytes()
    assert first in (WEIGHTS, b"evil", b"")
    time.sleep(0.05)
    assert (scratch / "out/model.npz").read_bytes() == first


def _alive(marker: str) -> list[int]:
    return [item.pid for item in processes() if item.lives and marker in item.command and item.pid != os.getpid()]


DAEMON = """
import os, signal, sys, time
for n in (1, 2, 3, 15): signal.signal(n, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    daemon = os.getpid()
    if os.fork() == 0:
        while os.getppid() == daemon: time.sleep(0.001)
        open("/scratch/ready", "w")
        time.sleep(600)
    os._exit(0)
while not os.path.exists("/scratch/end"): time.sleep(0.01)
"""


def _start(client: StepClient, scratch: Path, marker: str) -> None:
    """A step with a daemon, until a file `end` comes to its scratch folder."""
    with tempfile.TemporaryFile() as log:
        client.start(plan_for(scratch, [PYTHON, "-c", DAEMON, marker]), log.fileno())


def _wait_until_gone(marker: str) -> float:
    start = time.monotonic()
    while _alive(marker) and time.monotonic() - start < 60:
        time.sleep(0.005)
    assert not _alive(marker)
    return time.monotonic() - start


def _wait_for_daemon(scratch: Path, marker: str) -> None:
    """Until the daemon says that it is there; then it and the main process are two."""
    deadline = time.monotonic() + 30
    while not (scratch / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert len(_alive(marker)) == 2


def test_daemon_does_not_survive_the_main_process(place: tuple[StepClient, Path]) -> None:
    client, scratch = place
    marker = f"marker-{os.urandom(6).hex()}"
    _start(client, scratch, marker)
    _wait_for_daemon(scratch, marker)  # the control: it lives while the step lives
    (scratch / "end").touch()
    assert client.finish().killed_processes >= 1
    assert not _alive(marker)


def test_cancel_kills_all_of_the_run(place: tuple[StepClient, Path]) -> None:
    client, scratch = place
    marker = f"marker-{os.urandom(6).hex()}"
    _start(client, scratch, marker)
    _wait_for_daemon(scratch, marker)
    client.cancel()
    result = client.finish()
    assert (result.ended, result.code) == ("cancelled", "step-cancelled")
    assert not _alive(marker)


def test_end_of_the_connection_kills_all_of_the_run(place: tuple[StepClient, Path]) -> None:
    client, scratch = place
    marker = f"marker-{os.urandom(6).hex()}"
    _start(client, scratch, marker)
    _wait_for_daemon(scratch, marker)
    assert client.close() == 0
    assert not _alive(marker)
    assert os.listdir(scratch) == []


def test_killed_launcher_leaves_nothing_of_the_run(place: tuple[StepClient, Path]) -> None:
    client, scratch = place
    marker = f"marker-{os.urandom(6).hex()}"
    _start(client, scratch, marker)
    _wait_for_daemon(scratch, marker)
    os.kill(client.process.pid, signal.SIGKILL)
    _wait_until_gone(marker)


@pytest.mark.parametrize("deaf", [True, False], ids=["one-that-will-not-end", "control"])
def test_a_run_with_a_process_that_will_not_end_has_no_result(deaf: bool) -> None:
    """Without namespaces processes are hunted down one by one.  What outlives that could rewrite the outputs after the gate."""
    prelude = "from scaleoutd.step import init; init._KILL_S = 0.3; init._kill = lambda pid: None" if deaf else ""
    code = "import os, time\nif os.fork() == 0:\n  os.setsid()\n  time.sleep(4)\n  os._exit(0)\n"
    with tempfile.TemporaryDirectory(prefix="scaleoutd-outputs-") as name:
        folder = Path(name)
        uid = USER if os.geteuid() == 0 else None
        if uid is not None:
            os.chown(folder, uid, uid)
        scratch = folder / "scratch"
        plan = plan_for(scratch, [PYTHON, "-c", code], backend="inner", links=(), cwd=str(scratch))
        with StepClient(uid=uid, prelude=prelude) as client:
            if not deaf:
                assert client.execute(plan).result.killed_processes == 1
                return
            with pytest.raises(ScaleoutError) as caught:
                client.execute(plan)
    assert caught.value.code == "launch-failed"
    assert "still lives" in caught.value.message
