# SPDX-License-Identifier: Apache-2.0
"""Processes, threads and shared memory of numeric programs in the sandbox: multiprocessing, joblib and loky, OpenMP, BLAS."""

from __future__ import annotations

import subprocess

import pytest

from tests.kernel.real_work import MODES, sandbox
from tests.step_client import PYTHON

HAS_SKLEARN = subprocess.run([PYTHON, "-c", "import sklearn"], capture_output=True).returncode == 0
needs_sklearn = pytest.mark.skipif(not HAS_SKLEARN, reason="the system's python has no sklearn; root installs python3-sklearn")
pytestmark = pytest.mark.timeout(200)

POOL = """\
import multiprocessing

def square(number):
    return number * number

if __name__ == "__main__":
    with multiprocessing.get_context("{method}").Pool(3) as pool:
        print("sum", sum(pool.map(square, range(100))))
"""
SHARED = """\
import multiprocessing
from multiprocessing import shared_memory

def fill(name, lock, counter):
    block = shared_memory.SharedMemory(name)
    with lock:
        counter.value += 1
        block.buf[counter.value] = counter.value
    block.close()

if __name__ == "__main__":
    block = shared_memory.SharedMemory(create=True, size=1 << 20)
    lock, counter = multiprocessing.Lock(), multiprocessing.Value("i", 0)
    children = [multiprocessing.Process(target=fill, args=(block.name, lock, counter)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    print("bytes", list(block.buf[1:5]))
    block.close()
    block.unlink()
    with multiprocessing.Manager() as manager:
        kept = manager.dict()
        child = multiprocessing.Process(target=kept.__setitem__, args=("key", 7))
        child.start()
        child.join()
        print("manager", kept["key"])
"""
# What knows pidfd_open(2), which the filter answers as an old kernel does, and what changes its own priority.
CHILDREN = """\
import asyncio, errno, multiprocessing.connection, os, subprocess, sys
from concurrent.futures import ProcessPoolExecutor

async def run():
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", "print(6 * 7)", stdout=subprocess.PIPE)
    printed, _ = await child.communicate()
    late = await asyncio.create_subprocess_exec("sleep", "600")
    late.terminate()
    return int(printed), child.returncode, await asyncio.wait_for(late.wait(), 20)

if __name__ == "__main__":
    print("asyncio", *asyncio.run(run()))
    try:
        subprocess.run(["sleep", "600"], timeout=0.2)
    except subprocess.TimeoutExpired:
        print("subprocess timeout")
    print("subprocess", subprocess.run(["sh", "-c", "exit 3"], timeout=20).returncode)
    with ProcessPoolExecutor(2) as pool:
        print("executor", *pool.map(abs, [-1, -2]))
    child = multiprocessing.get_context("spawn").Process(target=abs, args=(1,))
    child.start()
    print("sentinel", multiprocessing.connection.wait([child.sentinel], 20) == [child.sentinel])
    child.join()
    print("nice", os.nice(5))
    try:
        os.pidfd_open(os.getpid())
    except OSError as exc:
        print("pidfd", errno.errorcode[exc.errno])
"""
JOBLIB = """\
import joblib, math, os

def work(number):
    return math.factorial(number % 50), os.getpid()

if __name__ == "__main__":
    for backend in ("loky", "multiprocessing", "threading"):
        found = joblib.Parallel(n_jobs=2, backend=backend)(joblib.delayed(work)(number) for number in range(40))
        print(backend, len(found), "processes", len({pid for _, pid in found} - {os.getpid()}) > 0)
"""
FOREST = """\
import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.model_selection import cross_val_score
from threadpoolctl import threadpool_info

x, y = load_digits(return_X_y=True)
x, y = x[:600], y[:600]
print("threads", RandomForestClassifier(20, n_jobs=2, random_state=1).fit(x, y).score(x, y) > 0.99)
print("loky", cross_val_score(RandomForestClassifier(10, random_state=1), x, y, cv=3, n_jobs=2).mean() > 0.8)
print("openmp", HistGradientBoostingClassifier(max_iter=5).fit(x, y).score(x, y) > 0.9)
pools = {info["user_api"]: info["num_threads"] for info in threadpool_info()}
print("pools", pools.get("openmp"), pools.get("blas"))
a = np.random.default_rng(1).normal(size=(400, 400))
print("blas", np.allclose(a @ np.linalg.inv(a), np.eye(400), atol=1e-6))
"""


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_pool_of_processes(method: str, mode: str) -> None:
    with sandbox(mode, POOL.format(method=method)) as work:
        done = work.run()
        assert "sum 328350" in done.output, done


@pytest.mark.parametrize("mode", MODES)
def test_shared_memory_semaphores_and_a_manager(mode: str) -> None:
    with sandbox(mode, SHARED) as work:
        done = work.run()
        assert "bytes [1, 2, 3, 4]" in done.output, done
        assert "manager 7" in done.output, done


@pytest.mark.parametrize("mode", MODES)
def test_children_are_waited_for_without_pidfd(mode: str) -> None:
    with sandbox(mode, CHILDREN) as work:
        done = work.run()
        told = (
            "asyncio 42 0 -15",
            "subprocess timeout",
            "subprocess 3",
            "executor 1 2",
            "sentinel True",
            "nice 5",
            "pidfd ENOSYS",
        )
        for line in told:
            assert line in done.output, done


@needs_sklearn
@pytest.mark.parametrize("mode", MODES)
def test_joblib_with_every_backend(mode: str) -> None:
    with sandbox(mode, JOBLIB) as work:
        done = work.run()
        for backend, processes in (("loky", True), ("multiprocessing", True), ("threading", False)):
            assert f"{backend} 40 processes {processes}" in done.output, done


@needs_sklearn
@pytest.mark.parametrize("mode", MODES)
def test_scikit_learn_with_threads_loky_openmp_and_blas(mode: str) -> None:
    with sandbox(mode, FOREST) as work:
        done = work.run()
        for line in ("threads True", "loky True", "openmp True", "pools 2 2", "blas True"):
            assert line in done.output, done
        assert "warning" not in done.output.lower(), done
