# SPDX-License-Identifier: Apache-2.0
"""Tells a person what the sandbox had to do with a failure, beside the failure, and where in the script it happened.

It reads what a step prints (already escaped, one line at a time) and the counts of refused calls at its end.  Libraries say
"Temporary failure in name resolution" or "Permission denied" and leave out that there is a sandbox; here the sandbox is named,
with what it has instead and the next command.  A guess from text never hides the text, and each is told once a run.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from scaleoutd.cli.measures import duration, size
from scaleoutd.core.plan import Limits
from scaleoutd.core.policy import Policy
from scaleoutd.ipc.doors import TaskEnded

SEE = "`scaleoutctl explain` lists all that a step has"
_FRAME = re.compile(r'^[\s|]*File "([^"]+)", line (\d+)(?:, in (\S+))?')
_RAISED = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Warning|Interrupt|Exit)\b")
_PATH = re.compile(r"['\"](/[^'\"]+)['\"]")
_NAMED = re.compile(r"(?:directory|system|denied|permitted): b?['\"]([^'\"]+)['\"]")
_MODULE = re.compile(r"No module named '([^']+)'")
_COMMAND = re.compile(r"^\S*sh: (?:line )?(?:\d+: )?([^\s:]+): (?:command )?not found")
_DEVICE = re.compile(r"/dev/[\w/.-]+")

_NETWORK = re.compile(
    r"Temporary failure in name resolution|Name or service not known|Network is unreachable|No address associated with hostname"
    r"|Address family not supported by protocol|Failed to resolve|NameResolutionError|Max retries exceeded with url"
    r"|urlopen error|[Cc]ouldn't (?:reach|connect)|[Cc]ould not (?:resolve (?:host|proxy)|connect to)|Cannot connect to host"
    r"|Failed to establish a new connection|Connection refused|unable to resolve host|connection to server (?:at|on) "
    r"|Could not find a version that satisfies|Could not find a suitable TLS CA certificate bundle|LocalEntryNotFoundError",
)
_KINDS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("network", _NETWORK),
    ("read-only", re.compile(r"Read-only file system")),
    ("full", re.compile(r"No space left on device|Disk quota exceeded")),
    (
        "device",
        re.compile(
            r"/dev/(?:nvidia|kfd|dri|accel|video|infiniband|davinci)|No CUDA GPUs are available|Found no NVIDIA driver"
            r"|NVIDIA-SMI has failed|no CUDA-capable device|CUDA_ERROR_NO_DEVICE|CUDA driver initialization failed"
        ),
    ),
    ("permission", re.compile(r"Permission denied|Operation not permitted")),
    ("module", re.compile(r"ModuleNotFoundError: No module named '")),
    ("program", _COMMAND),
    ("absent", re.compile(r"No such file or directory: b?['\"]")),
    ("memory", re.compile(r"^MemoryError|Cannot allocate memory|can't allocate memory|std::bad_alloc|_ArrayMemoryError")),
    (
        "processes",
        re.compile(r"can't start new thread|Resource temporarily unavailable|Thread creation failed|pthread_create failed"),
    ),
    ("files", re.compile(r"Too many open files")),
    ("large", re.compile(r"\[Errno 27\] File too large")),
    ("keyboard", re.compile(r"^(?:\S+: )?EOFError: EOF when reading a line")),
)
# The run's own folders: what is missing there is the script's matter, not the sandbox's.
_OWN = ("/scratch/", "/tmp/", "/dev/shm/", "/in/")  # noqa: S108 - paths of the step's view
# Limit of the plan that a code stands for, and what a person does about it.
_LIMITS: Mapping[str, tuple[str, str]] = {
    "limit-memory": ("memory_bytes", "Use smaller batches or load less at once"),
    "limit-wall-clock": ("wall_clock_s", "Train for fewer epochs, or on fewer samples"),
    "limit-cpu": ("cpu_s", "Train for fewer epochs, or with fewer threads"),
    "limit-processes": ("processes", "Start fewer workers and threads"),
    "limit-file-size": ("file_size_bytes", "Write smaller files"),
    "limit-scratch": ("scratch_bytes", "Keep fewer checkpoints and caches"),
    "limit-output": ("output_bytes", "Write a smaller result"),
}
_KIND_OF_LIMIT: Mapping[str, str] = {"limit-memory": "memory", "limit-processes": "processes", "limit-file-size": "large"}
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
    limits: Limits
    development: bool

    @classmethod
    def of(cls, policy: Policy) -> SandboxFacts:
        return cls(
            pythons=tuple(rule.python for _, rule in sorted(policy.environments.items())),
            data_sets=tuple(sorted(policy.data_sets)),
            limits=policy.limits.of_run(),
            development=policy.development,
        )


@dataclass
class _Run:
    frame: str = ""  # "train.py:41" of the traceback being read
    starting: bool = False  # the traceback being read goes through the start of another program
    pending: tuple[str, str] | None = None  # kind and line, until its traceback reaches the project's own code
    told: set[str] = field(default_factory=set)


class Witness:
    """Give it each line that a step prints, and the end of each task; `tell(text, hint)` is what it says."""

    def __init__(self, facts: SandboxFacts, tell: Callable[[str, str], None]) -> None:
        self._facts, self._tell = facts, tell
        self._run = _Run()

    def line(self, text: str) -> None:
        run = self._run
        if "Traceback (most recent call last)" in text:
            run.frame, run.starting = "", False
            return
        frame = _FRAME.match(text)
        if frame is not None:
            run.frame = _place(frame[1], frame[2]) or run.frame
            run.starting = run.starting or frame[3] == "_execute_child"
            return
        kind = _kind_of(text, starting=run.starting)
        if kind is not None and (run.pending is None or run.frame):
            run.pending = (kind, text)
        if run.pending is not None and run.frame and (kind is not None or _RAISED.match(text)):
            self._tell_pending()

    def ended(self, ended: TaskEnded) -> None:
        """The run is over: what is still to be said, then all is forgotten."""
        if self._run.pending is not None:
            self._tell_pending(ended.task)
        self._tell_limit(ended)
        for call, count in sorted(ended.denied.items()):
            kind = "network" if call == "socket" else f"call {call}"
            if kind not in self._run.told:
                what = _CALLS.get(call, f"call {call}")
                times = f" {count} times" if count > 1 else ""
                self._say(kind, f"{ended.task} tried to {what}{times}; this sandbox {_has_not(call)}", self._advice(kind, ""))
        self._run = _Run()

    def _tell_limit(self, ended: TaskEnded) -> None:
        """How much it was: the failure itself names the limit only."""
        if ended.code not in _LIMITS:
            return
        name, advice = _LIMITS[ended.code]
        self._say(
            _KIND_OF_LIMIT.get(ended.code, ended.code),
            f"{ended.task} came to its limit: limits.{name} is {self._limit(name)}",
            f"{advice}, or raise limits.{name} in {self._policy()}; {SEE}.",
        )

    def _limit(self, name: str) -> str:
        value: int = getattr(self._facts.limits, name)
        return size(value) if name.endswith("_bytes") else duration(value) if name.endswith("_s") else str(value)

    def _policy(self) -> str:
        return "a policy (--policy)" if self._facts.development else "the policy"

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
        path = _path_in(text)
        if kind == "network":
            return "tried to open a network connection; this sandbox has no network"
        if kind == "read-only":
            return f"tried to write {path or 'where it may only read'}; project, data and system are read-only in this sandbox"
        if kind == "full":
            tmp, shm, scratch = (self._limit(name) for name in ("tmp_bytes", "shm_bytes", "scratch_bytes"))
            return f"filled its space: /tmp holds {tmp}, /dev/shm {shm}, the scratch folder {scratch}"
        if kind == "permission":
            if not path:
                return "asked for a right that no step has (over another user, priority or process, or a file not its own)"
            return f"was denied {path}; this sandbox lets a step write to its scratch folder, $HOME and /tmp only"
        if kind == "module":
            module = _MODULE.search(text)
            pythons = ", ".join(self._facts.pythons)
            return f"needs the package {module[1] if module else '?'}, and {pythons} has none of that name"
        if kind == "program":
            command = _COMMAND.match(text)
            program = command[1] if command else path or "a program"
            return f"tried to start {program}, which is not in this sandbox{_outside(shutil.which(program))}"
        if kind == "device":
            device = _DEVICE.search(text)
            return (
                f"looked for {device[0] if device else 'a GPU'}; this sandbox has no device but null, zero, full, urandom and"
                " what devices: in the policy grants"
            )
        if kind == "absent":
            if not path.startswith("/"):
                return f"looked for {path}, which is not among the project's signed files"
            return f"looked for {path}, which is not in this sandbox{_outside(path if _is_here(path) else None)}"
        if kind == "processes":
            return f"could not start a process or thread more; limits.processes allows {self._limit('processes')}, threads count"
        if kind == "files":
            return f"opened too many files; limits.open_files allows {self._limit('open_files')}"
        if kind == "large":
            return f"wrote a file larger than limits.file_size_bytes allows ({self._limit('file_size_bytes')})"
        if kind == "keyboard":
            return "asked for a line from the keyboard; a step has no terminal and no input"
        return f"asked for more memory than limits.memory_bytes allows ({self._limit('memory_bytes')})"

    def _advice(self, kind: str, text: str) -> str:
        mine = self._facts.development
        data = "give it with --data ID=PATH" if mine else "name it under data_sets: in the policy"
        if kind == "network":
            return f"Put what it needs into the project, or {data}; {SEE}."
        if kind == "read-only" or (kind == "permission" and _path_in(text)):
            return f"Write to the second argument (<out>), $TMPDIR or $HOME; {SEE}."
        if kind == "full":
            return f"Write less, or raise limits.tmp_bytes or limits.scratch_bytes in {self._policy()}; {SEE}."
        if kind == "module":
            if mine:
                return "Activate the venv or conda environment that has it, then start again."
            return "Install it there, or name another interpreter under environments: in the policy."
        if kind == "program":
            return f"It sees the programs of /usr and of its Python environment; install it there, or do without; {SEE}."
        if kind == "device":
            return f"Let the script fall back to the processor (torch: device='cpu'), or set devices: in a policy; {SEE}."
        if kind == "absent":
            if not _path_in(text).startswith("/"):
                return f"Put it into the project (does .scaleoutignore leave it out?); if it is data, {data}; {SEE}."
            known = f" (given: {', '.join(self._facts.data_sets)})" if self._facts.data_sets else ""
            return f"Data: {data}, its path is in $SCALEOUTD_DATA_<ID>{known}. Results: write them to <out>; {SEE}."
        if kind == "memory":
            return f"Use smaller batches, or raise limits.memory_bytes in {self._policy()}; {SEE}."
        if kind in ("processes", "files", "large"):
            what = {"processes": "processes", "files": "open_files", "large": "file_size_bytes"}[kind]
            return f"Use fewer, or raise limits.{what} in {self._policy()}; {SEE}."
        if kind == "keyboard":
            return "Take it from client_settings (<in>-metadata) or from a file of the project."
        return f"Not needed for training, as a rule; {SEE}."


def _kind_of(text: str, *, starting: bool) -> str | None:
    """Which wall of the sandbox a line speaks of; `starting`: it ends a traceback out of the start of a program."""
    kind = next((name for name, pattern in _KINDS if pattern.search(text)), None)
    if kind == "absent":
        if starting:
            return "program"
        path = _path_in(text)
        if path.startswith(_OWN) and not _is_here(path):
            return None
    return kind


def _is_here(path: str) -> bool:
    """Whether this computer has what a step named; Path.exists raises for what is too long, or in a folder of another's."""
    return os.path.exists(path)  # noqa: PTH110 - pathlib raises


def _outside(path: str | None) -> str:
    return " (it exists on this computer, outside the sandbox)" if path else ""


def _place(path: str, line: str) -> str:
    """`train.py:41` for a file of the project, "" for one of a library."""
    if path.startswith("/project/"):
        return f"{path.removeprefix('/project/')}:{line}"
    stored = re.search(r"/store/[0-9a-f]{64}(?:\.[^/]+)?/(.+)", path)  # without an own mount view
    if stored is not None:
        return f"{stored[1]}:{line}"
    return "" if path.startswith(("/", "<")) else f"{path}:{line}"


def _path_in(text: str) -> str:
    """What a message names in quotes: an absolute path, else the name after the error's words."""
    found = _PATH.search(text) or _NAMED.search(text)
    return found[1] if found is not None else ""


def _has_not(call: str) -> str:
    return "has no network" if call == "socket" else "refuses that call"
