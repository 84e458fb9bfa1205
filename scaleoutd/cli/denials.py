# SPDX-License-Identifier: Apache-2.0
"""Tells a person what the sandbox had to do with a failure, beside the failure, and where in the script it happened.

It reads what a step prints (already escaped, one line at a time) and the counts of refused calls at its end.  Libraries say
"Temporary failure in name resolution" or "Permission denied" and leave out that there is a sandbox; here the sandbox is named,
with what it has instead and the next command.  A guess from text never hides the text, and each is told once a run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from scaleoutd.cli.measures import size
from scaleoutd.core.policy import Policy
from scaleoutd.ipc.doors import TaskEnded

SEE = "`scaleoutctl explain` lists all that a step has"
_FRAME = re.compile(r'^\s+File "([^"]+)", line (\d+)')
_RAISED = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Warning|Interrupt|Exit)\b")
_PATH = re.compile(r"['\"](/[^'\"]+)['\"]")
_MODULE = re.compile(r"No module named '([^']+)'")

_NETWORK = re.compile(
    r"Temporary failure in name resolution|Name or service not known|Network is unreachable|No address associated with hostname"
    r"|Address family not supported by protocol|Failed to resolve|NameResolutionError|Max retries exceeded with url"
    r"|urlopen error|Couldn't reach|Cannot connect to host|Could not find a version that satisfies",
)
_KINDS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("network", _NETWORK),
    ("read-only", re.compile(r"Read-only file system")),
    ("full", re.compile(r"No space left on device|Disk quota exceeded")),
    ("permission", re.compile(r"Permission denied|Operation not permitted")),
    ("module", re.compile(r"ModuleNotFoundError: No module named '")),
    ("absent", re.compile(r"No such file or directory: ['\"]/")),
    ("memory", re.compile(r"^MemoryError|Cannot allocate memory|DefaultCPUAllocator: can't allocate memory")),
)
# Of the calls that are counted and refused: what a person would call them.
_CALLS: Mapping[str, str] = {
    "socket": "open a network connection",
    "socketpair": "open a socket of a kind that is not allowed",
    "ptrace": "look into another process (ptrace)",
    "process_vm_readv": "read another process's memory",
    "process_vm_writev": "write another process's memory",
    "mount": "mount a file system",
    "unshare": "make a namespace of its own (unshare)",
    "setns": "enter another namespace (setns)",
    "bpf": "load a BPF program",
    "io_uring_setup": "use io_uring",
    "userfaultfd": "use userfaultfd",
    "keyctl": "use the kernel's keyring",
    "perf_event_open": "use performance counters",
}


@dataclass(frozen=True)
class SandboxFacts:
    """What of a policy an explanation names."""

    pythons: tuple[str, ...]
    data_sets: tuple[str, ...]
    tmp_bytes: int
    shm_bytes: int
    scratch_bytes: int
    memory_bytes: int
    development: bool

    @classmethod
    def of(cls, policy: Policy) -> SandboxFacts:
        limits = policy.limits.of_run()
        return cls(
            pythons=tuple(rule.python for _, rule in sorted(policy.environments.items())),
            data_sets=tuple(sorted(policy.data_sets)),
            tmp_bytes=limits.tmp_bytes,
            shm_bytes=limits.shm_bytes,
            scratch_bytes=limits.scratch_bytes,
            memory_bytes=limits.memory_bytes,
            development=policy.development,
        )


@dataclass
class _Run:
    frame: str = ""  # "train.py:41" of the traceback being read
    last: str = ""  # kind and place seen last, for the calls counted at the end
    pending: tuple[str, str] | None = None  # kind and line, until its traceback reaches the project's own code
    told: set[str] = field(default_factory=set)


class Witness:
    """Give it each line that a step prints, and the end of each task; `tell(text, hint)` is what it says."""

    def __init__(self, facts: SandboxFacts, tell: Callable[[str, str], None]) -> None:
        self._facts, self._tell = facts, tell
        self._run = _Run()

    def line(self, text: str) -> None:
        run = self._run
        if text.startswith("Traceback (most recent call last)"):
            run.frame = ""
            return
        frame = _FRAME.match(text)
        if frame is not None:
            run.frame = _place(frame[1], frame[2]) or run.frame
            return
        kind = next((name for name, pattern in _KINDS if pattern.search(text)), None)
        if kind is not None and (run.pending is None or run.frame):
            run.pending = (kind, text)
        if run.pending is not None and run.frame and (kind is not None or _RAISED.match(text)):
            self._tell_pending()

    def ended(self, ended: TaskEnded) -> None:
        """The run is over: what is still to be said, then all is forgotten."""
        if self._run.pending is not None:
            self._tell_pending(ended.task)
        for call, count in sorted(ended.denied.items()):
            kind = "network" if call == "socket" else f"call {call}"
            if kind not in self._run.told:
                what = _CALLS.get(call, f"call {call}")
                times = f" {count} times" if count > 1 else ""
                self._say(kind, f"{ended.task} tried to {what}{times}; this sandbox {_has_not(call)}", self._advice(kind, ""))
        self._run = _Run()

    def _tell_pending(self, who: str = "the step") -> None:
        run = self._run
        if run.pending is None:
            return
        (kind, text), run.pending = run.pending, None
        self._say(kind, f"{run.frame or who} {self._what(kind, text)}", self._advice(kind, text))

    def _say(self, kind: str, text: str, hint: str) -> None:
        if kind not in self._run.told:
            self._run.told.add(kind)
            self._tell(text, hint)

    def _what(self, kind: str, text: str) -> str:
        facts = self._facts
        path = _path_in(text)
        if kind == "network":
            return "tried to open a network connection; this sandbox has no network"
        if kind == "read-only":
            return f"tried to write {path or 'where it may only read'}; project, data and system are read-only in this sandbox"
        if kind == "full":
            return (
                f"filled its space: /tmp holds {size(facts.tmp_bytes)}, /dev/shm {size(facts.shm_bytes)},"
                f" the scratch folder {size(facts.scratch_bytes)}"
            )
        if kind == "permission":
            return f"was denied {path or 'something'}; this sandbox lets a step write to its scratch folder, $HOME and /tmp only"
        if kind == "module":
            module = _MODULE.search(text)
            return f"needs the package {module[1] if module else '?'}, and {', '.join(facts.pythons)} has none of that name"
        if kind == "absent":
            there = " (it exists on this computer, outside the sandbox)" if path and Path(path).exists() else ""
            return f"looked for {path}, which is not in this sandbox{there}"
        return f"asked for more memory than limits.memory_bytes allows ({size(facts.memory_bytes)})"

    def _advice(self, kind: str, text: str) -> str:
        mine = self._facts.development
        data = "give it with --data ID=PATH" if mine else "name it under data_sets: in the policy"
        if kind == "network":
            return f"Put what it needs into the project, or {data}; {SEE}."
        if kind in ("read-only", "permission"):
            return f"Write to the second argument (<out>), $TMPDIR or $HOME; {SEE}."
        if kind == "full":
            where = "the policy" if not mine else "a policy (--policy; limits.tmp_bytes, limits.scratch_bytes)"
            return f"Write less, or raise the limit in {where}; {SEE}."
        if kind == "module":
            if mine:
                return "Activate the venv or conda environment that has it, then start again."
            return "Install it there, or name another interpreter under environments: in the policy."
        if kind == "absent":
            known = f" (given: {', '.join(self._facts.data_sets)})" if self._facts.data_sets else ""
            return f"If it is data, {data}; its path is in $SCALEOUTD_DATA_<ID>{known}; {SEE}."
        if kind == "memory":
            return f"Use smaller batches, or raise limits.memory_bytes in a policy; {SEE}."
        return f"Not needed for training, as a rule; {SEE}."


def _place(path: str, line: str) -> str:
    """`train.py:41` for a file of the project, "" for one of a library."""
    if path.startswith("/project/"):
        return f"{path.removeprefix('/project/')}:{line}"
    stored = re.search(r"/store/[0-9a-f]{64}(?:\.[^/]+)?/(.+)", path)  # without an own mount view
    if stored is not None:
        return f"{stored[1]}:{line}"
    return "" if path.startswith(("/", "<")) else f"{path}:{line}"


def _path_in(text: str) -> str:
    found = _PATH.search(text)
    return found[1] if found is not None else ""


def _has_not(call: str) -> str:
    return "has no network" if call == "socket" else "refuses that call"
