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
HUGGING_FACE = MINE + LIBRARY + "OSError: We couldn't connect to 'https://huggingface.co' to load this file, couldn't find it"
POSTGRES = MINE + 'psycopg2.OperationalError: connection to server on socket "/run/x" failed: No such file or directory'
REFUSED = MINE + "ConnectionRefusedError: [Errno 111] Connection refused"
CERTIFICATES = MINE + LIBRARY + "OSError: Could not find a suitable TLS CA certificate bundle, invalid path: /etc/ssl/certs/x.crt"
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
    [URLLIB, REQUESTS, TORCH_HUB, DATASETS, HUGGING_FACE, POSTGRES, REFUSED, CERTIFICATES, SOCKET, UNREACHABLE],
    ids=[
        "urllib",
        "requests",
        "torch-hub",
        "datasets",
        "hugging-face",
        "postgres",
        "refused",
        "certificates",
        "socket",
        "unreachable",
    ],
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
        ("OSError: [Errno 30] Read-only file system: 'metrics.json'", "train.py:41 tried to write metrics.json; "),
        ("PermissionError: [Errno 1] Operation not permitted", "train.py:41 asked for a right that no step has"),
        ("OSError: [Errno 28] No space left on device", "train.py:41 filled its space: /tmp holds 256 MiB"),
        ("ModuleNotFoundError: No module named 'torch'", "train.py:41 needs the package torch, and /opt/venv/bin/python has"),
        ("FileNotFoundError: [Errno 2] No such file or directory: '/home/x.csv'", "train.py:41 looked for /home/x.csv"),
        (
            "FileNotFoundError: [Errno 2] No such file or directory: 'data.csv'",
            "train.py:41 looked for data.csv, which is not among",
        ),
        ("FileNotFoundError: [Errno 2] No such file or directory: '/dev/nvidia0'", "train.py:41 looked for /dev/nvidia0; "),
        ("RuntimeError: No CUDA GPUs are available", "train.py:41 looked for a GPU; this sandbox has no device"),
        ("MemoryError", "train.py:41 asked for more memory than limits.memory_bytes"),
        (
            "numpy.core._exceptions._ArrayMemoryError: Unable to allocate 8.00 GiB for an array",
            "train.py:41 asked for more memory",
        ),
        (
            "RuntimeError: can't start new thread",
            "train.py:41 could not start a process or thread more; limits.processes allows 256",
        ),
        (
            "BlockingIOError: [Errno 11] Resource temporarily unavailable",
            "train.py:41 could not start a process or thread more; ",
        ),
        (
            "OSError: [Errno 24] Too many open files: '/dev/null'",
            "train.py:41 opened too many files; limits.open_files allows 1024",
        ),
        ("OSError: [Errno 27] File too large", "train.py:41 wrote a file larger than limits.file_size_bytes allows (4 GiB)"),
        ("EOFError: EOF when reading a line", "train.py:41 asked for a line from the keyboard"),
    ],
)
def test_other_walls_of_the_sandbox(text: str, expected: str) -> None:
    ((line, hint),) = told(MINE + text)
    assert line.startswith(expected)
    assert hint


SPAWN = '  File "/usr/lib/python3.11/subprocess.py", line 1901, in _execute_child\n    raise child_exception_type(errno_num)\n'


@pytest.mark.parametrize(
    "text",
    [
        MINE + SPAWN + "FileNotFoundError: [Errno 2] No such file or directory: 'nvidia-smi-9'",
        "/bin/sh: 1: nvidia-smi-9: not found\n"
        + MINE
        + "subprocess.CalledProcessError: Command 'x' returned non-zero exit status 127.",
        "bash: line 1: nvidia-smi-9: command not found\n" + MINE + "subprocess.CalledProcessError: Command 'x' returned 127.",
    ],
    ids=["subprocess", "sh", "bash"],
)
def test_a_program_that_is_not_there_is_no_missing_data(text: str) -> None:
    ((line, hint),) = told(text)
    assert line == "train.py:41 tried to start nvidia-smi-9, which is not in this sandbox"
    assert "--data" not in hint


def test_a_program_that_exists_outside_is_said_to() -> None:
    ((line, _),) = told(MINE + SPAWN + "FileNotFoundError: [Errno 2] No such file or directory: 'sh'")
    assert line.endswith("sh, which is not in this sandbox (it exists on this computer, outside the sandbox)")


@pytest.mark.parametrize("path", ["/scratch/out/x.npz", "/tmp/of-the-run/x", "/in/other"])
def test_a_file_missing_in_the_run_s_own_folders_is_the_script_s_matter(path: str) -> None:
    assert told(MINE + f"FileNotFoundError: [Errno 2] No such file or directory: '{path}'") == []


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("limit-memory", "train came to its limit: limits.memory_bytes is 4 GiB"),
        ("limit-wall-clock", "train came to its limit: limits.wall_clock_s is 1 h"),
        ("limit-processes", "train came to its limit: limits.processes is 256"),
    ],
)
def test_a_limit_is_told_with_its_value_and_where_it_is_raised(code: str, expected: str) -> None:
    ((line, hint),) = told("epoch 1", TaskEnded("train", "r1", code))
    assert line == expected
    assert "a policy (--policy)" in hint


def test_a_limit_that_the_traceback_has_told_is_not_told_again() -> None:
    told_once = told(
        MINE + "BlockingIOError: [Errno 11] Resource temporarily unavailable", TaskEnded("train", "r", "limit-processes")
    )
    assert len(told_once) == 1


def test_a_prompt_before_a_traceback_does_not_hide_it() -> None:
    ((line, _),) = told("name? " + MINE + "EOFError: EOF when reading a line")
    assert line.startswith("train.py:41 ")


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
