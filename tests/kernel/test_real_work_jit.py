# SPDX-License-Identifier: Apache-2.0
"""A compiler that writes machine code and runs it (numba, by LLVM) as a step: compiled, in threads, cached in scratch."""

from __future__ import annotations

import subprocess

import pytest

from tests.kernel.real_work import MODES, sandbox
from tests.step_client import PYTHON

HAS_NUMBA = subprocess.run([PYTHON, "-c", "import numba"], capture_output=True).returncode == 0
pytestmark = [
    pytest.mark.skipif(not HAS_NUMBA, reason="the system's python has no numba; root installs python3-numba"),
    pytest.mark.timeout(200),
]

COMPILED = """\
import numba
import numpy as np

def executable():  # mappings of code that come from no file
    return sum("x" in line.split()[1] and line.split()[4:] == ["0"] for line in open("/proc/self/maps"))

before = executable()

def total(x):
    found = 0.0
    for i in range(x.size):
        found += x[i] * x[i]
    return found

@numba.njit(parallel=True)
def squares(x):
    found = np.empty_like(x)
    for i in numba.prange(x.size):
        found[i] = x[i] * x[i]
    return found

x = np.arange(100_000, dtype=np.float64)
fast = numba.njit(total)
assert fast(x) == total(x)
assert "mulsd" in next(iter(fast.inspect_asm().values()))
assert (squares(x) == x * x).all()
print("threads", numba.get_num_threads())
print("made here", executable() > before)
"""
CACHED = """\
import os
import subprocess
import sys

import numba

@numba.njit(cache=True)
def twice(x):
    return 2 * x

assert twice(21) == 42
stats = twice.stats
print("hits", sum(stats.cache_hits.values()), "misses", sum(stats.cache_misses.values()), flush=True)
assert stats.cache_path.startswith("/scratch/"), stats.cache_path
if "AGAIN" not in os.environ:
    subprocess.run([sys.executable, __file__], env=os.environ | {"AGAIN": "1"}, check=True)
"""


@pytest.mark.parametrize("mode", MODES)
def test_machine_code_made_in_the_step_runs_also_in_threads(mode: str) -> None:
    with sandbox(mode, COMPILED) as work:
        done = work.run()
        assert (done.result.exit_status, done.output) == (0, "threads 2\nmade here True\n"), done


@pytest.mark.parametrize("mode", MODES)
def test_a_cache_of_machine_code_lies_in_scratch_and_is_read_back(mode: str) -> None:
    with sandbox(mode, CACHED) as work:
        done = work.run()
        assert (done.result.exit_status, done.output) == (0, "hits 0 misses 1\nhits 1 misses 0\n"), done
