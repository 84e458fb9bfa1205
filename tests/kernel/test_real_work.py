# SPDX-License-Identifier: Apache-2.0
"""Real numeric work in the sandbox: processes by every start method, DataLoader workers by every sharing strategy, joblib and
loky, OpenMP and BLAS, shared memory, a compiler that writes machine code and runs it (numba).
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.kernel.programs import WORK, lacks
from tests.kernel.real_work import LIMITS, MODES, sandbox
from tests.step_client import PYTHON

pytestmark = pytest.mark.timeout(200)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", WORK)
def test_it_does_its_work(name: str, mode: str) -> None:
    work = WORK[name]
    if reason := lacks(PYTHON, work.needs):
        pytest.skip(reason)
    with sandbox(mode, work.program) as place:
        done = place.run()
    assert done.result.exit_status == 0, done
    assert set(work.lines) <= set(done.output.splitlines()), done
    assert "warning" not in done.output.lower(), done


def test_threads_of_libraries_follow_the_quota() -> None:
    work = WORK["scikit-learn"]
    if reason := lacks(PYTHON, work.needs):
        pytest.skip(reason)
    with sandbox(MODES[0], work.program) as place:
        done = place.run(replace(LIMITS, cpus=1))
    assert "pools 1 1" in done.output.splitlines(), done
