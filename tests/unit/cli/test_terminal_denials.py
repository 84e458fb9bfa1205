# SPDX-License-Identifier: Apache-2.0
"""A denied call is told where it hurts: output of common libraries in, one sentence with file and line out."""

from __future__ import annotations

from pathlib import Path

import pytest

from scaleoutd.cli.denials import SandboxFacts, Witness
from scaleoutd.core.policy import development_policy
from scaleoutd.ipc.doors import TaskEnded

FACTS = SandboxFacts.of(development_policy("/p", "/opt/venv/bin/python", {"samples": "/d"}, "p"))
MINE = 'Traceback (most recent call last):\n  File "/project/train.py", line 41, in main\n    load()\n'
LIBRARY = '  File "/usr/lib/python3/dist-packages/lib/api.py", line 9, in get\n    raise\n'
CHAIN = "\nDuring handling of the above exception, another exception occurred:\n\n"

URLLIB = MINE + LIBRARY + "urllib.error.URLError: <urlopen error [Errno -3] Temporary failure in name resolution>"
REQUESTS = (
    "Traceback (most recent call last):\n" + LIBRARY + "socket.gaierror: [Errno -3] Temporary failure in name resolution\n"
    + CHAIN + MINE + LIBRARY + "requests.exceptions.ConnectionError: HTTPSConnectionPool(host='x', port=443):"
    " Max retries exceeded with url: / (Caused by NameResolutionError(...))"
)  # fmt: skip
TORCH_HUB = MINE + LIBRARY + "urllib.error.URLError: <urlopen error [Errno -2] Name or service not known>"
DATASETS = MINE + LIBRARY + "ConnectionError: Couldn't reach 'mnist' on the Hub (LocalEntryNotFoundError)"
SOCKET = MINE + "OSError: [Errno 97] Address family not supported by protocol"
UNREACHABLE = MINE + "OSError: [Errno 101] Network is unreachable"
NETWORK = "train.py:41 tried to open a network connection; this sandbox has no network"


def told(text: str, ended: TaskEnded | None = None) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    witness = Witness(FACTS, lambda line, hint: found.append((line, hint)))
    for line in text.split("\n"):
        witness.line(line)
    witness.ended(ended or TaskEnded("train", "r1", "step-failed"))
    return found


@pytest.mark.parametrize(
    "text",
    [URLLIB, REQUESTS, TORCH_HUB, DATASETS, SOCKET, UNREACHABLE],
    ids=["urllib", "requests", "torch hub", "datasets", "socket", "unreachable"],
)
def test_a_library_without_a_network(text: str) -> None:
    ((line, hint),) = told(text)
    assert line == NETWORK
    assert "--data ID=PATH" in hint and "scaleoutctl explain" in hint


def test_pip_without_a_network_has_no_line_of_the_project() -> None:
    ((line, _),) = told("ERROR: Could not find a version that satisfies the requirement numpy (from versions: none)")
    assert line == "train tried to open a network connection; this sandbox has no network"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("OSError: [Errno 30] Read-only file system: '/project/cache'", "train.py:41 tried to write /project/cache; "),
        ("PermissionError: [Errno 13] Permission denied: '/etc/shadow'", "train.py:41 was denied /etc/shadow; "),
        ("OSError: [Errno 28] No space left on device", "train.py:41 filled its space: /tmp holds 256 MiB"),
        ("ModuleNotFoundError: No module named 'torch'", "train.py:41 needs the package torch, and /opt/venv/bin/python has"),
        ("FileNotFoundError: [Errno 2] No such file or directory: '/home/x.csv'", "train.py:41 looked for /home/x.csv"),
        ("MemoryError", "train.py:41 asked for more memory than limits.memory_bytes"),
    ],
)
def test_other_walls_of_the_sandbox(text: str, expected: str) -> None:
    ((line, hint),) = told(MINE + text)
    assert line.startswith(expected)
    assert hint


def test_a_file_that_exists_outside_is_said_to(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("")
    ((line, _),) = told(MINE + f"FileNotFoundError: [Errno 2] No such file or directory: '{path}'")
    assert "it exists on this computer, outside the sandbox" in line


def test_a_swallowed_failure_is_told_by_the_calls_that_were_counted() -> None:
    found = told("epoch 1", TaskEnded("train", "r1", "", denied={"socket": 3, "ptrace": 1}))
    assert [line for line, _ in found] == [
        "train tried to look into another process (ptrace); this sandbox refuses that call",
        "train tried to open a network connection 3 times; this sandbox has no network",
    ]


def test_what_the_text_has_told_the_counts_do_not_repeat() -> None:
    assert [line for line, _ in told(URLLIB, TaskEnded("train", "r", "step-failed", denied={"socket": 2}))] == [NETWORK]


def test_the_same_wall_is_told_once_a_run_and_again_in_the_next() -> None:
    found: list[str] = []
    witness = Witness(FACTS, lambda line, hint: found.append(line))
    for _ in range(2):
        for line in (URLLIB + "\n" + URLLIB).split("\n"):
            witness.line(line)
        witness.ended(TaskEnded("train", "r"))
    assert found == [NETWORK, NETWORK]


@pytest.mark.parametrize("text", ["loss 0.5", "ValueError: bad", MINE + "KeyError: 'x'", "connection pooled features"])
def test_ordinary_output_is_left_alone(text: str) -> None:
    assert told(text) == []
