# SPDX-License-Identifier: Apache-2.0
"""Limits from inside: each attack on a resource ends, is named by its code, and leaves the node alive."""

from __future__ import annotations

import os
import random
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scaleoutd.core.plan import STEP_UID_BASE
from tests.attack.arena import USER
from tests.step_client import MIB, PYTHON, Finished, StepClient, plan_for

MODES = ("root", "user") if os.geteuid() == 0 else ("user",)


class Place:
    def __init__(self, mode: str, folder: Path) -> None:
        self.mode = mode
        # Of its own: without a pids cgroup the kernel counts by user, over all that run tests on this machine.
        self.slot = random.randrange(100, 1024)
        self.scratch = folder / "home" / "scratch"
        self.scratch.parent.mkdir()
        uid = USER if mode == "user" and os.geteuid() == 0 else None
        if uid is not None:
            os.chown(self.scratch.parent, uid, uid)
        self.client = StepClient(uid=uid)

    def run(self, code: str, **changes: Any) -> Finished:
        return self.client.execute(plan_for(self.scratch, [PYTHON, "-c", code], slot=self.slot, **changes))


def processes_of(uid: int) -> list[int]:
    """Running processes of a user, those that have ended but were not waited for left out."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            lines = Path(f"/proc/{name}/status").read_text().splitlines()
        except OSError:
            continue  # it is gone
        fields = dict(line.partition(":")[::2] for line in lines)
        if int(fields["Uid"].split()[0]) == uid and not fields["State"].strip().startswith(("Z", "X")):
            found.append(int(name))
    return found


@pytest.fixture(params=MODES)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = Path("/tmp") / f"scaleoutd-limits-{secrets.token_hex(8)}"
    folder.mkdir(mode=0o755)
    found = Place(request.param, folder)
    yield found
    # After each of the limits: the launcher ends well, no process and no file is left.
    assert found.client.close() == 0
    if request.param == "root":
        assert not processes_of(STEP_UID_BASE + found.slot)
    for path in (found.scratch, found.scratch.parent, folder):
        if path.exists():
            path.rmdir()  # the launcher emptied it


def test_control_a_modest_step_is_left_alone(place: Place) -> None:
    done = place.run("x = bytearray(50 << 20); open('f', 'wb').write(bytes(1 << 20)); print('done')")
    assert (done.result.ended, done.result.exit_status, done.result.code) == ("exited", 0, None)
    assert done.output == "done\n"
    assert done.result.scratch_bytes >= MIB
    assert not done.result.denied


def test_endless_step_ends_at_the_wall_clock(place: Place) -> None:
    start = time.monotonic()
    done = place.run("import time; time.sleep(600)", limits={"wall_clock_s": 1})
    assert (done.result.ended, done.result.code) == ("limit", "limit-wall-clock")
    assert 0.9 < time.monotonic() - start < 120


def test_step_deaf_to_signals_ends_at_the_wall_clock(place: Place) -> None:
    code = "import signal, time\nfor n in range(1, 65):\n  try: signal.signal(n, signal.SIG_IGN)\n  except (OSError, ValueError): pass\ntime.sleep(60)"  # noqa: E501
    done = place.run(code, limits={"wall_clock_s": 1})
    assert done.result.code == "limit-wall-clock"


def test_busy_step_ends_at_the_cpu_limit(place: Place) -> None:
    done = place.run("while True: pass", limits={"cpu_s": 1})
    assert (done.result.ended, done.result.code) == ("limit", "limit-cpu")
    assert done.result.cpu_ms < 4000


def test_busy_children_count_against_the_cpu_limit_together(place: Place) -> None:
    code = "import os\nfor _ in range(4):\n  if os.fork() == 0:\n    while True: pass\nos.wait()"
    done = place.run(code, limits={"cpu_s": 1})
    assert (done.result.ended, done.result.code) == ("limit", "limit-cpu")
    assert done.result.cpu_ms < 3500  # each alone would have had a second of its own


def test_memory_hog_ends_at_the_memory_limit(place: Place) -> None:
    code = "a = []\nwhile True: a.append(bytearray(b'x') * (8 << 20))"
    done = place.run(code, limits={"memory_bytes": 128 * MIB})
    assert (done.result.ended, done.result.code) == ("limit", "limit-memory"), done
    entry = next(item for item in done.result.enforced if item.name == "memory")
    assert entry.status == ("enforced" if any("cgroup" in name for name in entry.providers) else "partial")


def test_memory_hog_in_many_processes_ends_at_the_memory_limit(place: Place) -> None:
    code = "import os, time\nfor _ in range(8):\n  if os.fork() == 0:\n    x = bytearray(b'x') * (40 << 20); time.sleep(600)\nos.wait(); raise SystemExit(9)"  # noqa: E501
    done = place.run(code, limits={"memory_bytes": 128 * MIB})
    assert done.result.code == "limit-memory", done


def test_fork_bomb_is_bounded_named_and_gone(place: Place) -> None:
    code = "import os, time\nwhile True:\n  try: os.fork()\n  except OSError: time.sleep(0.01)"
    start = time.monotonic()
    done = place.run(code, limits={"processes": 20, "wall_clock_s": 2})
    assert done.result.code in ("limit-wall-clock", "limit-processes")
    assert time.monotonic() - start < 120
    assert place.run("print('alive')").output == "alive\n"


def test_too_many_processes_is_named_when_the_step_gives_up(place: Place) -> None:
    code = "import os, time\nfor _ in range(40):\n  if os.fork() == 0:\n    time.sleep(600)"
    done = place.run(code, limits={"processes": 10})
    assert (done.result.ended, done.result.code) == ("limit", "limit-processes"), done
    assert done.result.exit_status == 1


def test_thread_bomb_is_bounded(place: Place) -> None:
    code = "import threading, time\nfor _ in range(200): threading.Thread(target=time.sleep, args=(20,), daemon=True).start()"
    done = place.run(code, limits={"processes": 16})
    assert done.result.exit_status != 0 or done.result.code == "limit-processes"
    # Without a pids cgroup a refused fork leaves no trace; threads that are gone within a tick were never seen.
    (entry,) = (item for item in done.result.enforced if item.name == "processes")
    assert done.result.code == ("limit-processes" if any("cgroup" in name for name in entry.providers) else done.result.code)


def test_processes_of_others_with_the_same_user_do_not_count(place: Place) -> None:
    """Two nodes of root on one host have slots of the same uids.  Where a cgroup holds the limit, it is the run's own."""
    if place.mode == "user":
        pytest.skip("an ordinary user's launcher counts in a user namespace of its own")
    code = "import os\nfor _ in range(5):\n  if os.fork() == 0: os._exit(0)\n  os.wait()"
    control = place.run(code, limits={"processes": 10})
    assert control.result.exit_status == 0
    (entry,) = (item for item in control.result.enforced if item.name == "processes")
    if not any("cgroup" in name for name in entry.providers):
        pytest.skip("no pids cgroup can be made here, so the kernel counts by user")

    def become() -> None:
        user = STEP_UID_BASE + place.slot
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)

    others = [subprocess.Popen(["sleep", "600"], preexec_fn=become) for _ in range(20)]
    try:
        done = place.run(code, limits={"processes": 10})
    finally:
        for process in others:
            process.kill()
            process.wait()
    assert (done.result.exit_status, done.result.code) == (0, None), done


@pytest.mark.parametrize("how", ["python", "default-signal"])
def test_large_file_is_named(place: Place, how: str) -> None:
    restore = "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n" if how == "default-signal" else ""
    done = place.run(restore + "f = open('big', 'wb')\nwhile True: f.write(bytes(1 << 20))", limits={"file_size_bytes": 4 * MIB})
    assert (done.result.ended, done.result.code) == ("limit", "limit-file-size")
    assert done.result.scratch_bytes <= 5 * MIB


def test_disk_filler_ends_at_the_scratch_limit(place: Place) -> None:
    code = "n = 0\nwhile True:\n  n += 1\n  open(f'f{n}', 'wb').write(bytes(4 << 20))"
    done = place.run(code, limits={"scratch_bytes": 24 * MIB})
    assert (done.result.ended, done.result.code) == ("limit", "limit-scratch")


def test_sparse_files_count_with_their_apparent_size(place: Place) -> None:
    code = (
        "import os, time\nfor n in range(8): os.truncate(os.open(f'f{n}', os.O_CREAT | os.O_WRONLY), 32 << 20)\ntime.sleep(600)"
    )
    done = place.run(code, limits={"scratch_bytes": 100 * MIB})
    assert (done.result.ended, done.result.code) == ("limit", "limit-scratch")


def test_scratch_over_the_limit_at_the_end_is_named_too(place: Place) -> None:
    done = place.run("open('f', 'wb').write(bytes(8 << 20))", limits={"scratch_bytes": 4 * MIB})
    assert (done.result.ended, done.result.code) == ("limit", "limit-scratch")


def test_deep_and_many_folders_are_emptied(place: Place) -> None:
    code = (
        "import os\nfor n in range(2000):\n  os.mkdir('d'); os.chdir('d')\n"
        "os.chdir('/scratch')\nfor n in range(300): os.mkdir(f'x{n}'); os.chmod(f'x{n}', 0)\nos.symlink('/', 'link')"
    )
    assert place.run(code).result.code == "limit-scratch"  # nobody can say what is in there (test_scratch.py)
    assert place.run("import os; print(sorted(os.listdir('.')))").output == "['out']\n"


def test_open_files_are_bounded(place: Place) -> None:
    done = place.run("import os\na = [os.open('/dev/null', 0) for _ in range(1000)]", limits={"open_files": 32})
    assert done.result.exit_status == 1
    assert "Too many open files" in done.output


@pytest.mark.parametrize(("path", "name"), [("/tmp", "tmp_bytes"), ("/dev/shm", "shm_bytes")])
def test_own_tmp_and_shm_are_of_the_stated_size(place: Place, path: str, name: str) -> None:
    done = place.run(f"f = open('{path}/f', 'wb')\nwhile True: f.write(bytes(1 << 20))", limits={name: 4 * MIB})
    assert done.result.exit_status == 1
    assert "No space left" in done.output


def test_flood_of_output_is_cut_and_counted(place: Place) -> None:
    done = place.run("import os\nfor _ in range(256): os.write(1, b'x' * 65536)", limits={"stdout_bytes": 100_000})
    assert done.result.exit_status == 0
    assert len(done.output) == done.result.stdout_bytes == 100_000
    assert done.result.stdout_dropped_bytes == 256 * 65536 - 100_000


def test_flood_of_refused_calls_does_not_stop_the_wall_clock(place: Place) -> None:
    code = "import os\nwhile True:\n  try: os.setuid(0)\n  except OSError: pass"
    done = place.run(code, limits={"wall_clock_s": 5})
    assert done.result.code == "limit-wall-clock"
    assert done.result.denied["setuid"] > 100


def test_refused_calls_are_counted_by_name(place: Place) -> None:
    code = "import os, socket\nfor _ in range(7):\n  try: os.setuid(0)\n  except OSError: pass\nfor _ in range(3):\n  try: socket.socket(socket.AF_INET)\n  except OSError: pass"  # noqa: E501
    assert place.run(code).result.denied == {"setuid": 7, "socket": 3}
