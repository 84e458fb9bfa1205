# SPDX-License-Identifier: Apache-2.0
"""Real numeric work, as steps do it, and what it prints: run in the sandbox by test_real_work.py, in the shipped unit of a booted
node by tests/system/test_units_real_work.py.  Each has two processors by its policy, and must notice.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
    return int(printed), child.returncode, await asyncio.wait_for(late.wait(), 100)

if __name__ == "__main__":
    print("asyncio", *asyncio.run(run()))
    try:
        subprocess.run(["sleep", "600"], timeout=0.2)
    except subprocess.TimeoutExpired:
        print("subprocess timeout")
    print("subprocess", subprocess.run(["sh", "-c", "exit 3"], timeout=100).returncode)
    with ProcessPoolExecutor(2) as pool:
        print("executor", *pool.map(abs, [-1, -2]))
    child = multiprocessing.get_context("spawn").Process(target=abs, args=(1,))
    child.start()
    print("sentinel", multiprocessing.connection.wait([child.sentinel], 100) == [child.sentinel])
    child.join()
    try:
        before = os.nice(0)  # these tests may be niced themselves
        print("nice", os.nice(5) - before)
    except PermissionError:
        print("nice refused")
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
LOADER = """\
import os

import torch
from torch.utils.data import DataLoader, Dataset

class Squares(Dataset):
    def __len__(self):
        return 64
    def __getitem__(self, index):
        return torch.full((3, 32, 32), float(index)), os.getpid()

if __name__ == "__main__":
    torch.multiprocessing.set_sharing_strategy("{strategy}")
    loader = DataLoader(Squares(), batch_size=8, num_workers=2, multiprocessing_context="{method}")
    total, workers = 0, set()
    for batch, numbers in loader:
        total += int(batch[:, 0, 0, 0].sum().item())
        workers |= set(numbers.tolist())
    print("workers", len(workers - {{os.getpid()}}), "sum", total)
"""
TRAINING = """\
import os

import torch
torch.manual_seed(1)
net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 30 * 30, 10))
optimizer = torch.optim.Adam(net.parameters())
x, y = torch.randn(16, 3, 32, 32), torch.arange(16) % 10
losses = []
for _ in range(5):
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(net(x), y)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
os.makedirs(os.environ["HOME"], exist_ok=True)
kept = os.path.expanduser("~/net.pt")
torch.save(net.state_dict(), kept)
net.load_state_dict(torch.load(kept))
traced = torch.jit.trace(net, x)
assert torch.allclose(traced(x), net(x), atol=1e-5)
print("falls", losses[-1] < losses[0], "threads", torch.get_num_threads())
"""
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
SHOW = """\
import json, os, pwd, sys
caches = ("HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "NUMBA_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
for name in caches:
    folder = os.environ[name]
    os.makedirs(folder, exist_ok=True)
    open(folder + "/written", "w").close()
    assert folder.startswith("/scratch/"), folder
me = pwd.getpwuid(os.getuid())
try:
    import mine
    own = mine.NAME
except ImportError:
    own = ""
told = {"prefix": sys.prefix, "user": me.pw_name, "home": os.path.expanduser("~"), "own": own}
print(json.dumps({**told, "threads": os.environ["OMP_NUM_THREADS"]}))
"""


@dataclass(frozen=True)
class Work:
    """`lines` of its output, without which it did not do its work; `needs`: modules that are not the standard library's."""

    program: str
    lines: tuple[str, ...]
    needs: tuple[str, ...] = ()


METHODS = ("fork", "spawn", "forkserver")
STRATEGIES = ("file_descriptor", "file_system")  # how torch hands tensors from process to process
WORK: Mapping[str, Work] = {
    **{f"pool-{method}": Work(POOL.format(method=method), ("sum 328350",)) for method in METHODS},
    "shared-memory-and-manager": Work(SHARED, ("bytes [1, 2, 3, 4]", "manager 7")),
    "children-without-pidfd": Work(
        CHILDREN,
        (
            *("asyncio 42 0 -15", "subprocess timeout", "subprocess 3", "executor 1 2", "sentinel True", "nice 5"),
            "pidfd ENOSYS",
        ),
    ),
    "joblib": Work(
        JOBLIB,
        ("loky 40 processes True", "multiprocessing 40 processes True", "threading 40 processes False"),
        ("joblib",),
    ),
    "scikit-learn": Work(
        FOREST, ("threads True", "loky True", "openmp True", "pools 2 2", "blas True"), ("sklearn", "threadpoolctl")
    ),
    "torch-training": Work(TRAINING, ("falls True threads 2",), ("torch",)),
    **{
        f"data-loader-{method}-{strategy}": Work(
            LOADER.format(method=method, strategy=strategy), ("workers 2 sum 2016",), ("torch",)
        )
        for method in METHODS
        for strategy in STRATEGIES
    },
    "numba": Work(COMPILED, ("threads 2", "made here True"), ("numba",)),
    "numba-cache": Work(CACHED, ("hits 0 misses 1", "hits 1 misses 0"), ("numba",)),
}


def lacks(python: str, modules: Sequence[str]) -> str:
    """What an interpreter cannot import, and what to do; "" when it can."""
    asked = subprocess.run([python, "-c", f"import {', '.join(modules)}"], capture_output=True, text=True) if modules else None
    if asked is None or asked.returncode == 0:
        return ""
    return f"{python}: {asked.stderr.splitlines()[-1]}; `tools/setup.sh official` installs Debian's packages as root"
