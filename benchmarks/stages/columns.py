# SPDX-License-Identifier: Apache-2.0
"""Five ways to run one command, by turns: a plain spawn, bubblewrap, a launcher of ours that is cold, warm, or has prepared.

Every way runs from the request to the command's end, its output in a file.  Every launcher is used once, as a task uses it.
Processor time is that of every process which was waited for, the launcher's start and its clean-up included.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Protocol

from benchmarks.bubblewrap import Bubblewrap
from benchmarks.figures import children_cpu_s
from scaleoutd.core.plan import ModelRules, SandboxPlan
from scaleoutd.ipc.step import Prepare
from scaleoutd.step import syscalls
from tests.step_client import MIB, StepClient

REST_S = 0.05  # for the inspector's end, which comes after its answer


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


class Warm(Waited):
    """A launcher for each command, connected before the request as a spare is; it has done what it does while nobody waits."""

    _client: StepClient

    def ready(self) -> None:
        super().ready()
        self._client = StepClient(unit=self._plan.backend == "systemd")
        self._prepare()
        # Requests are served in order: the answer of one says that all before it is done, what comes after the hello too.
        with _model() as model:
            self._client.inspect(self._plan, ModelRules(("raw",), MIB), model.fileno())
        time.sleep(REST_S)

    def _prepare(self) -> None:
        """What a task asks for before the request."""

    def run(self, output: IO[bytes]) -> None:
        execute(self._client, self._plan, output)

    def settle(self) -> None:
        self._client.close()
        super().settle()


class Prepared(Warm):
    """The sandbox is built before the request too, as in a task, where that happens while the model arrives."""

    def _prepare(self) -> None:
        self._client.channel.tell(Prepare(self._plan))


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
