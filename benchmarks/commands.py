# SPDX-License-Identifier: Apache-2.0
"""Every command that an administrator or a data scientist types: wall and processor time of the whole process.

    python -m benchmarks.commands [--json] [--count N] [--only WORD]

A node in the foreground with a state in a temporary folder, connected over mTLS to a combiner in this process, has done one
training and one validation; then the commands run by turns, beside an interpreter that does nothing, while the node is at rest.
A command that ends with another status than it should stops the benchmark.  Medians and 95th percentiles in ms; processor time
is of all processes of the command.

Bars: `verify` of a small project 150 ms (issue 6).  Signing again after one edit among 1,000 files has 100 ms: that bar is the
development loop's, benchmarks/resign.py; `sign_1000_files` is the same as a whole process, which reads every file.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.figures import Taken, compile_package, options, show, spread
from scaleoutd.devcombiner.server import DevCombiner
from tests.e2e.site import SEED, Site

CTL = (sys.executable, "-m", "scaleoutd.cli.scaleoutctl")
FILES = 1000
TURN = "{turn}"  # in a word of a command: the number of the round, for what makes something new
LIMITS = {"wall_clock_s": 60, "cpu_s": 60, "memory_bytes": 1 << 30, "scratch_bytes": 64 << 20}


@dataclass(frozen=True)
class Command:
    """`ends`: the statuses that are right.  `before` runs ahead of it and is not timed."""

    name: str
    words: tuple[str, ...]
    ends: tuple[int, ...] = (0,)
    bar_ms: float | None = None
    before: Callable[[], object] = field(default=lambda: None)


class Place:
    """The site with its node at rest after two tasks, and what the commands work on."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.folder, self.site = folder, site
        self.environment = {**os.environ, "HOME": str(folder / "home"), "NO_COLOR": "1"}
        (folder / "home").mkdir()
        self.model = folder / "seed.npz"
        self.model.write_bytes(SEED)
        self.run("keygen", "--out", str(folder / "keys"), "--name", "science")
        self.run(
            "trust", "init", "--out", str(folder / "trust"), "--sign-with", self.key, "--key", f"ml={folder}/keys/science.pub"
        )
        self.small = self._project("small", 6)
        self.large = self._project("large", FILES - 1)
        self.changed = self._project("changed", 6)
        (self.changed / "module_0003.py").write_text("value = 'edited'\n")
        self.config = folder / "scaleoutd.yaml"
        self.config.write_text("version: 1\napi_url: https://api.example.org\n")

    @property
    def key(self) -> str:
        return str(self.folder / "keys/science.key")

    def run(self, *words: str, ends: tuple[int, ...] = (0,)) -> None:
        self.call((*CTL, *words), ends)

    def call(self, words: tuple[str, ...], ends: tuple[int, ...]) -> None:
        done = subprocess.run(
            words, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode not in ends:
            told = f"{done.stdout[-1000:]}{done.stderr[-1000:]}"
            raise SystemExit(f"cannot measure: {' '.join(words)} ended {done.returncode}, expected {ends}:\n{told}")

    def _project(self, name: str, files: int) -> Path:
        project = self.folder / name
        project.mkdir()
        (project / "scaleout.yaml").write_text("entry_points:\n  train: {command: python module_0000.py}\n")
        for number in range(files):
            (project / f"module_{number:04}.py").write_text(f"value = {number}\n" * 40)
        self.run("sign", str(project), "--key", self.key)
        return project


def commands(place: Place) -> list[Command]:
    site, turn = place.site, iter(range(1_000_000))
    step = ("--in", str(place.model), "--state-dir", str(place.folder / "run"))
    state, policy = ("--state-dir", str(site.state)), ("--policy", str(site.policy))
    project = ("--project", str(site.project.folder))
    small, large, trust = str(place.small), str(place.large), str(place.folder / "trust")

    def edit() -> None:
        (place.large / "module_0500.py").write_text(f"value = 'edit {next(turn)}'\n")

    return [
        Command("help", ("--help",)),
        Command("version", ("--version",)),
        Command("status", ("status", *state)),
        Command("status_json", ("status", *state, "--json")),
        Command("tasks", ("tasks", *state)),
        Command("audit_tail", ("audit", "tail", *state)),
        Command("audit_show", ("audit", "show", *state)),
        Command("audit_verify", ("audit", "verify", *state)),
        Command("why", ("why", "manifest-expired")),
        Command("explain", ("explain", "train", *project, *policy)),
        Command("doctor_quick", ("doctor", "--quick", *project, *policy), ends=(0, 1, 2)),
        Command("doctor", ("doctor", *project, *policy), ends=(0, 1, 2)),
        Command("policy_check", ("policy", "check", str(site.policy))),
        Command("config_check", ("config", "check", str(place.config))),
        Command("env_lock", ("env", "lock", *policy)),
        Command("trust_show", ("trust", "show", trust)),
        Command("verify", ("verify", small, "--trust-root", trust), bar_ms=150),
        Command("verify_1000_files", ("verify", large, "--trust-root", trust)),
        Command("diff", ("diff", str(place.changed)), ends=(1,)),
        Command("sign", ("sign", small, "--key", place.key)),
        Command("sign_1000_files", ("sign", large, "--key", place.key), before=edit),
        Command("keygen", ("keygen", "--out", str(place.folder / "more"), "--name", f"key-{TURN}")),
        Command("init", ("init", str(place.folder / f"made-{TURN}"))),
        Command("completion", ("completion", "bash")),
        Command("run_train", ("run", "train", *project, *policy, *step)),
    ]


@contextmanager
def place_after_a_round() -> Iterator[Place]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-commands-")))
        combiner = stack.enter_context(DevCombiner())
        site = stack.enter_context(Site(folder / "site", combiner, limits=LIMITS))
        site.start(poll_interval="2")
        for task in ("train", "validate"):
            site.task(task)
        if len(combiner.updates) != 1:
            raise SystemExit(f"cannot measure: the round before brought {len(combiner.updates)} updates, expected 1")
        yield Place(site, folder)


def measure(count: int, only: str) -> dict[str, object]:
    compile_package()
    with place_after_a_round() as place:
        chosen = [command for command in commands(place) if only in command.name]
        taken = {command.name: Taken() for command in chosen} | {"python_that_does_nothing": Taken()}
        for turn in range(count + 1):
            for command in chosen:
                command.before()
                words = (*CTL, *(word.replace(TURN, str(turn)) for word in command.words))
                taken[command.name].time(functools.partial(place.call, words, command.ends))
            taken["python_that_does_nothing"].time(functools.partial(place.call, (sys.executable, "-c", "pass"), (0,)))
        found = {name: summary(of) for name, of in taken.items()}
    bars = {command.name: command.bar_ms for command in chosen if command.bar_ms is not None}
    return {
        "benchmark": "commands",
        "n": count,
        "ms": found,
        "met": {f"{name} <= {bar} ms": found[name]["p50"] <= bar for name, bar in bars.items()},
        "load_average": round(os.getloadavg()[0], 2),
    }


def summary(taken: Taken) -> dict[str, float]:
    """Without the first, which is warm-up: files are read from disk, bytecode is written."""
    return {**spread(taken.wall_ms[1:]), "cpu": spread(taken.cpu_ms[1:])["p50"]}


def main() -> int:
    parser = options(__doc__ or "", 7)
    parser.add_argument("--only", default="", metavar="WORD", help="only commands whose name holds it")
    given = parser.parse_args()
    show(measure(given.count, given.only), given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
