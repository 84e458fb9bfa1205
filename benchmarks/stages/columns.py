# SPDX-License-Identifier: Apache-2.0
"""Five ways to run one command, by turns: a plain spawn, bubblewrap, a launcher of ours that is cold, warm, or has prepared.

Every way runs from the request to the command's end, its output in a file.  Processor time is that of every process which was
waited for; a warm launcher's counts over the whole run, its clean-up after each command included.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from benchmarks.bubblewrap import Bubblewrap
from benchmarks.figures import children_cpu_s
from scaleoutd.core.plan import ModelRules, SandboxPlan
from scaleoutd.ipc.step import Prepare
from scaleoutd.step import syscalls
from tests.step_client import MIB, StepClient

CPUCLOCK_SCHED = 2  # linux/posix-timers.h; the clock of a process is its inverted number with this in the low three bits


class Column(Protocol):
    """`cpu_s`: of all runs so far, clean-up too.  `ready` is before the request, `settle` after the result: not timed."""

    def ready(self) -> None: ...

    def run(self, output: IO[bytes]) -> None: ...

    def settle(self) -> None: ...

    @property
    def cpu_s(self) -> float: ...

    def close(self) -> None: ...


class Waited:
    """A column whose processes are all waited for when it has settled."""

    def __init__(self, plan: SandboxPlan) -> None:
        self._plan, self.cpu_s = plan, 0.0

    def ready(self) -> None:
        self.cpu_s -= children_cpu_s()

    def settle(self) -> None:
        self.cpu_s += children_cpu_s()

    def close(self) -> None:
        pass


class Plain(Waited):
    def run(self, output: IO[bytes]) -> None:
        subprocess.run(self._plan.command, check=True, env=dict(self._plan.environment), stdin=subprocess.DEVNULL, stdout=output)


class Wrapped(Waited):
    def __init__(self, plan: SandboxPlan) -> None:
        super().__init__(plan)
        self._sandbox, self._first = Bubblewrap(plan), 0
        # bubblewrap ends without waiting for its pid 1, in which the command's time is: it is to become our child.
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)

    def run(self, output: IO[bytes]) -> None:
        self._first = self._sandbox.run(output)

    def settle(self) -> None:
        os.waitpid(self._first, 0)
        super().settle()

    def close(self) -> None:
        self._sandbox.close()


class Cold(Waited):
    """A launcher by exec for each command, as systemd starts one; settled when it has ended."""

    _client: StepClient

    def run(self, output: IO[bytes]) -> None:
        self._client = StepClient()
        execute(self._client, self._plan, output)

    def settle(self) -> None:
        self._client.close()
        super().settle()


class Warm:
    """One launcher that is connected; its first command is warm-up."""

    def __init__(self, plan: SandboxPlan) -> None:
        self._plan, self._client = plan, StepClient()
        with tempfile.TemporaryFile() as output:
            execute(self._client, plan, output)
        self._before_s = self._used_s()

    def ready(self) -> None:
        pass

    def run(self, output: IO[bytes]) -> None:
        execute(self._client, self._plan, output)

    def settle(self) -> None:
        pass

    @property
    def cpu_s(self) -> float:
        return self._used_s() - self._before_s

    def _used_s(self) -> float:
        pid = self._client.process.pid
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        reaped_s = (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(~pid << 3 | CPUCLOCK_SCHED) + reaped_s

    def close(self) -> None:
        self._client.close()


class Prepared(Warm):
    """The sandbox is built before the request, as in a task, where that happens while the model arrives."""

    def ready(self) -> None:
        self._client.channel.tell(Prepare(self._plan))
        # Prepare has no answer; requests are served in order, so that of the next one says that it is done.
        with _model() as model:
            self._client.inspect(self._plan, ModelRules(("raw",), MIB), model.fileno())


@contextmanager
def _model() -> Iterator[IO[bytes]]:
    """Open for reading only, as an inspection demands."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"model")
        file.flush()
        with open(file.name, "rb") as model:
            yield model


def execute(client: StepClient, plan: SandboxPlan, output: IO[bytes]) -> None:
    client.start(plan, output.fileno())
    result = client.finish()
    if result.exit_status != 0:
        raise SystemExit(f"cannot measure: {' '.join(plan.command)} did not end with status 0: {result}")
