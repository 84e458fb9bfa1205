# SPDX-License-Identifier: Apache-2.0
"""What the runner has at hand for every task: its folders, the ledger, the step instances, the table, the clock, the floors.

STATE/store/           content store: snapshots by manifest digest
STATE/in/              models on their way to a step
STATE/runs/            the run-once table
STATE/outbox/          what may leave
STATE/output/          what steps printed, one bounded file a run
STATE/scratch/<slot>/  scratch folders of the slots (in the service they lie outside the runner's own state)
STATE/approvals.json   sessions that wait and sessions that were approved (budget.py)
STATE/floors.json      highest versions and latest time ever accepted; the ledger keeps its own, the higher one counts
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from scaleoutd.core import clock, records, strictjson
from scaleoutd.core.clock import Now
from scaleoutd.core.manifest import VerifiedManifest
from scaleoutd.core.plan import Outcome
from scaleoutd.core.strictjson import Json
from scaleoutd.core.trust import RootPin, TrustRoot
from scaleoutd.durable import make_private_folder, replace_file, storage_errors
from scaleoutd.hold import HoldFile
from scaleoutd.hostclock import HostClock
from scaleoutd.ipc.doors import TaskEnded
from scaleoutd.ipc.ledger_client import LedgerClient
from scaleoutd.runner.budget import Approvals
from scaleoutd.runner.instances import Instances
from scaleoutd.runner.outbox import Outbox
from scaleoutd.runner.runs import Run, Runs

# The time floor is written when it rose by this much: a write for every task would be a barrier for every task.
FLOOR_STEP_MS = 60_000


def read_floors(path: Path) -> clock.Floors:
    """The floors in `path`; none at all when there is no such file."""
    if not path.exists():
        return clock.Floors()
    with storage_errors(f"read {path}"):
        data = path.read_bytes()
    return records.decode(clock.Floors, strictjson.parse(data, max_bytes=1 << 20, what="the floors"), "floors")


def write_floors(path: Path, floors: clock.Floors) -> None:
    replace_file(path, strictjson.canonical(records.encode(floors)))


def reset_floors(path: Path, *, root: RootPin | None = None, clock_to: Now | None = None) -> None:
    """Another root counts as the one accepted last; the latest time falls to `clock_to`, never rises to it."""
    after = read_floors(path)
    if root is not None:
        after = replace(after, root_version=root.version, root_sha256=root.sha256)
    if clock_to is not None:
        after = replace(after, time_ms=min(after.time_ms, clock_to.wall_ms))
    write_floors(path, after)


@dataclass
class Room:
    """The runner's belongings.

    In the foreground: `terminal` is a pipe to whoever watches, `watcher` hears how tasks end, `ask_to_sign` has the parent sign
    a development project again.  `compute_lock` is the official client's SCALEOUT_CLIENT_COMPUTE_LOCK: a file that clients
    lock (flock) while they compute, so that one does at a time.
    """

    state: Path
    policy_file: Path
    ledger: LedgerClient
    instances: Instances
    backend: Literal["namespaces", "systemd", "inner"] = "namespaces"
    terminal: int | None = None
    watcher: Callable[[TaskEnded], None] | None = None
    ask_to_sign: Callable[[], object] | None = None
    compute_lock: Path | None = None
    host_clock: HostClock = field(default_factory=HostClock)
    left_open: tuple[Outcome, ...] = ()  # outcomes that the probe at start could not prove
    started_up: tuple[str, ...] = ()  # for which manifest, policy and environment `startup` ended well
    last_model: tuple[str, int] = ("", 0)  # session and bytes: the next one of the session needs as much
    hold: HoldFile = field(init=False)  # what an administrator said
    runs: Runs = field(init=False)
    outbox: Outbox = field(init=False)

    def __post_init__(self) -> None:
        # An installed node has made them, with the modes that its readers and its step unit need.
        for folder in (self.state, self.state / "store", self.state / "output", self.scratch):
            if not folder.is_dir():
                make_private_folder(folder)
        with storage_errors("make the folder of models"):
            (self.state / "in").mkdir(mode=0o711, exist_ok=True)
            for path in (self.state / "in").iterdir():  # models of runs that a crash ended
                shutil.rmtree(path)
        self.hold = HoldFile(self.state)
        self.approvals = Approvals(self.state)
        self.runs = Runs(self.state / "runs")
        self.outbox = Outbox(self.state / "outbox")

    @property
    def scratch(self) -> Path:
        """Folders of the slots: ours in the foreground, beside ours in the service, where we cannot look into them."""
        return self.state.parent / "scratch" if self.backend == "systemd" else self.state / "scratch"

    def seen_by_step(self, path: Path) -> str:
        """`path`, a folder below store, in or scratch, as the step sees it: the view of its unit has them below /."""
        if self.backend != "systemd":
            return str(path)
        for host, seen in ((self.state / "store", "/store"), (self.state / "in", "/in"), (self.scratch, "/scratch")):
            if path.is_relative_to(host):
                return str(Path(seen) / path.relative_to(host))
        raise ValueError(f"{path} is in no folder of the step's view")

    def now(self) -> Now:
        return self.host_clock()

    def enter(self, run: Run, state: str, fields: Mapping[str, Json] | None = None, *, sync: bool = True) -> None:
        """Goes on to `state` in the run-once table; durable when this returns, without `sync` when `run.sync` does."""
        run.enter(state, self.now().wall_ms, fields, sync=sync)

    @contextmanager
    def output_file(self, run: str) -> Iterator[int]:
        """The file that takes what a step prints; a second attempt appends."""
        path = self.state / "output" / f"{run}.log"
        with storage_errors(f"open {path}"):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        try:
            yield fd
        finally:
            os.close(fd)

    # --- floors -----------------------------------------------------------------------------------------------

    def own_floors(self) -> clock.Floors:
        return read_floors(self.state / "floors.json")

    def floors(self) -> clock.Floors:
        """The higher of ours and the ledger's: restoring one of the two folders does not bring old code back."""
        return clock.highest(self.own_floors(), self.ledger.floors())

    def accept_root(self, root: TrustRoot, now: Now) -> None:
        """Keeps the root as the one that every later root must follow.  Of a development root only the version: it is this
        user's own, and made anew under the same number when its folder is removed."""
        sha256 = "" if root.development else root.digest()
        self._keep(clock.raised(self.own_floors(), now, root_version=root.version, root_sha256=sha256))

    def accept(self, manifest: VerifiedManifest, now: Now) -> None:
        """Keeps what was accepted as the new floor."""
        project, version = manifest.manifest.project, manifest.manifest.version
        self._keep(clock.raised(self.own_floors(), now, project=project, manifest_version=version))

    def reset(self, *, root: RootPin | None = None, clock_to: Now | None = None) -> None:
        """A person's word against what was accepted; the caller has put it on record."""
        reset_floors(self.state / "floors.json", root=root, clock_to=clock_to)

    def _keep(self, after: clock.Floors) -> None:
        before = self.own_floors()
        if replace(after, time_ms=before.time_ms) != before or after.time_ms >= before.time_ms + FLOOR_STEP_MS:
            write_floors(self.state / "floors.json", after)
