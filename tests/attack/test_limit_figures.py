# SPDX-License-Identifier: Apache-2.0
"""What a run that was ended before its time used: the result says it, whatever ended it."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator

import pytest

from tests.attack.test_limits import Place, place  # noqa: F401  a fixture
from tests.step_client import MIB, PYTHON, Finished, plan_for

# Says what it has used so far: the result may not say less.
BUSY = "import time\nwhile True:\n  for _ in range(200000): pass\n  print(int(time.process_time() * 1000), flush=True)\n"
HOLD = "x = bytearray(b'x') * (64 << 20)\n"


def last_number(done: Finished) -> int:
    return int(done.output.split()[-1])


@pytest.fixture
def place_again(place: Place) -> Iterator[Place]:  # noqa: F811
    yield place


def test_processor_time_memory_and_output_at_the_wall_clock(place_again: Place) -> None:
    done = place_again.run(HOLD + BUSY, limits={"wall_clock_s": 5})
    assert done.result.code == "limit-wall-clock"
    assert done.result.cpu_ms >= last_number(done) > 0
    assert done.result.max_rss_bytes >= 64 * MIB
    assert done.result.exit_status is None and done.result.signal is None
    assert done.result.stdout_bytes == len(done.output)


def test_processor_time_of_all_processes_together(place_again: Place) -> None:
    code = "import os\nfor _ in range(3): os.fork()\n" + BUSY
    done = place_again.run(code, limits={"wall_clock_s": 5})
    assert done.result.code == "limit-wall-clock"
    assert done.result.cpu_ms > last_number(done) * 2
    assert done.result.killed_processes == 8


def test_processor_time_of_children_that_nobody_waits_for(place_again: Place) -> None:
    code = "import os, signal, time\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\nif os.fork(): time.sleep(600)\n" + BUSY
    done = place_again.run(code, limits={"wall_clock_s": 5})
    assert done.result.cpu_ms >= last_number(done) - 100


def test_a_fork_bomb_has_used_what_it_has_used(place_again: Place) -> None:
    code = (
        "import os, time\nbegan = time.monotonic()\nwhile time.monotonic() - began < 1.5:\n"
        "  try: os.fork()\n  except OSError: time.sleep(0.01)\ntime.sleep(600)"
    )
    done = place_again.run(code, limits={"processes": 20, "wall_clock_s": 6})
    assert done.result.code == "limit-wall-clock"
    assert done.result.cpu_ms >= 100 and done.result.killed_processes >= 10


def test_scratch_and_largest_file_at_the_scratch_limit(place_again: Place) -> None:
    code = "n = 0\nwhile True:\n  n += 1\n  open(f'f{n}', 'wb').write(bytes(4 << 20))"
    done = place_again.run(code, limits={"scratch_bytes": 24 * MIB})
    assert done.result.code == "limit-scratch"
    assert done.result.scratch_bytes > 24 * MIB


def test_a_cancelled_run_has_its_figures(place_again: Place) -> None:
    client, slot = place_again.client, place_again.slot
    with tempfile.TemporaryFile() as log:
        code = "open('f', 'wb').write(bytes(1 << 20))\n" + BUSY
        client.start(plan_for(place_again.scratch, [PYTHON, "-c", code], slot=slot), log.fileno())
        while not os.fstat(log.fileno()).st_size:
            time.sleep(0.01)
        client.cancel()
        result = client.finish()
        log.seek(0)
        printed = int(log.read().split()[-1])
    assert (result.ended, result.code) == ("cancelled", "step-cancelled")
    assert result.cpu_ms >= printed and result.scratch_bytes >= MIB


def test_a_pid_1_that_does_not_answer_is_killed_with_all_of_the_run(place_again: Place) -> None:
    """The fallback: the verdict stands, the figures are those of the kernel, and the launcher is not held up."""
    client, slot = place_again.client, place_again.slot
    start = time.monotonic()
    with tempfile.TemporaryFile() as log:
        plan = plan_for(place_again.scratch, [PYTHON, "-c", BUSY], slot=slot, limits={"wall_clock_s": 1})
        pid = client.start(plan, log.fileno())
        os.kill(pid, signal.SIGSTOP)
        result = client.finish()
    assert (result.ended, result.code) == ("limit", "limit-wall-clock")
    assert time.monotonic() - start < 120
    assert place_again.run("print('alive')").output == "alive\n"


def test_control_a_run_that_ends_by_itself_has_the_same_figures(place_again: Place) -> None:
    done = place_again.run(HOLD + "import time\nfor _ in range(3000000): pass\nprint(int(time.process_time() * 1000))")
    assert (done.result.ended, done.result.exit_status) == ("exited", 0)
    assert done.result.cpu_ms >= last_number(done) > 0
    assert done.result.max_rss_bytes >= 64 * MIB and done.result.killed_processes == 0
