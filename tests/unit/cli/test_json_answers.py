# SPDX-License-Identifier: Apache-2.0
"""Every command that answers has `--json`: one object on standard output, everything else on standard error, also in failure.

A table over both programs: a command that is added without a row, or without `--json`, fails here.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from tests.unit.cli.test_commands import TABLE, call
from tests.unit.cli.test_status import Person

# Why a command has no JSON.
WITHOUT = {
    ("scaleoutd", "client", "start"): "a service: --log-format json has its lines",
    ("scaleoutd", "client", "enroll"): "prints the client id and nothing else, as the official client does",
    ("scaleoutctl", "completion"): "prints a script",
    ("scaleoutctl", "demo"): "a show for people",
    ("scaleoutctl", "combiner", "start"): "a server for people",
    ("scaleoutctl", "combiner", "round"): "a line a round, for people",
}
ROOT = {"file", "version", "expires_ms", "sha256", "fingerprint", "roles", "missing"}
# Command → arguments for a call that goes well in the folder of `person`, keys of the answer.
ANSWERS: dict[tuple[str, ...], tuple[list[str], set[str]]] = {
    ("build",): ([], {"ok", "file", "bytes", "sha256", "format", "arrays", "parameters", "trail"}),
    ("run",): (["train", "--in", "seed.npz"], {"ok", "run", "result", "sha256", "bytes", "withheld", "trail"}),
    ("explain",): (["train"], {"task", "project", "refusals", "sees", "limits", "leaves"}),
    ("doctor",): ([], {"status", "findings", "uid"}),
    ("status",): ([], {"time_ms", "nodes"}),
    ("tasks",): ([], {"tasks", "problems"}),
    ("why",): (["manifest-expired"], {"code"}),
    ("init",): (["../another"], {"folder", "files"}),
    ("keygen",): (["--out", "../keys", "--name", "k"], {"private_key", "public_key", "keyid", "algorithm"}),
    ("trust", "init"): (
        ["--out", "../trust", "--sign-with", "../keys/k.key", "--key", "ml=../keys/m.pub"],
        {"file", "version", "expires_ms", "sha256", "roles"},
    ),
    ("env", "lock"): (["--policy", "../policy.yaml"], {"ok", "items"}),
    ("env", "check"): (["--policy", "../policy.yaml"], {"ok", "items"}),
    ("trust", "add"): (["../trust", "--key", "security=../keys/m2.pub", "--sign-with", "../keys/k.key"], ROOT),
    ("trust", "rotate"): (["../trust", "--old", "m", "--new", "../keys/m2.pub", "--sign-with", "../keys/k.key"], ROOT),
    ("trust", "revoke"): (["../trust", "--manifest", "0" * 64, "--sign-with", "../keys/k.key"], ROOT),
    ("trust", "sign"): (["../drafted", "--sign-with", "../keys/k.key"], ROOT),
    ("trust", "show"): (["../trust"], {"roots", "draft", "expired"}),
    ("sign",): (["../signed", "--key", "../keys/m.key"], {"project", "version", "keyid", "files", "changed"}),
    ("verify",): (["../signed", "--trust-root", "../trust"], {"verified", "project", "roles", "differences"}),
    ("diff",): (["../signed", "../signed"], {"same", "changes", "old", "new"}),
    ("audit", "verify"): (["AUDIT"], {"ok", "warnings"}),
    ("audit", "show"): (["AUDIT"], {"runs"}),
}
LINES = {("audit", "tail")}  # one object a line
# Commands of an installed node; test_node_*.py, test_policy_command.py and runner/test_budget.py ask for their answers.
OF_A_NODE = {
    tuple(words.split())
    for words in (
        "approve-session", "config check", "config init", "config show",
        "drain", "enroll", "identity csr", "identity install", "identity show",
        "pause", "policy apply", "policy check", "policy show", "project install", "project rollback", "project show",
        "reload", "resume", "trust reset",
    )
}  # fmt: skip


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Person:
    someone = Person(tmp_path_factory.mktemp("person"))
    assert someone.call("run", "train", "--in", "seed.npz").returncode == 0
    assert someone.call("init", "../signed").returncode == 0
    for name in ("k", "m", "m2"):
        assert someone.call("keygen", "--out", "../keys", "--name", name).returncode == 0
    trust = ["--out", "../trust", "--sign-with", "../keys/k.key", "--key", "ml=../keys/m.pub"]
    assert someone.call("trust", "init", *trust).returncode == 0
    (someone.project.parent / "policy.yaml").write_text(
        "version: 1\nproject: {name: p, path: /srv/p}\ntrust_root: /srv/trust\n"
        "environments: {default: {python: /usr/bin/python3}}\ndata_sets: {samples: {path: /etc/hostname, mode: full}}\n"
    )
    # A root that still lacks its signature.
    assert someone.call("trust", "init", "--out", "../drafted", *trust[2:]).returncode == 0
    assert someone.call("trust", "revoke", "../drafted", "--manifest", "1" * 64).returncode == 0
    assert someone.call("sign", "../signed", "--key", "../keys/m.key").returncode == 0
    return someone


def leaves() -> list[tuple[str, ...]]:
    return [path for path, command in TABLE.items() if not isinstance(command, click.Group)]


@pytest.mark.parametrize("path", leaves(), ids=" ".join)
def test_every_command_has_json_or_a_reason_and_a_row(path: tuple[str, ...]) -> None:
    flags = {flag for parameter in TABLE[path].params for flag in parameter.opts}
    assert ("--json" in flags) != (path in WITHOUT)
    if path not in WITHOUT:
        assert path[1:] in ANSWERS or path[1:] in LINES | OF_A_NODE, "give it a row in ANSWERS"


def ask(person: Person, path: tuple[str, ...], *more: str) -> subprocess.CompletedProcess[str]:
    arguments = [str(person.state / "audit") if word == "AUDIT" else word for word in ANSWERS[path][0]]
    if path == ("keygen",):
        arguments[-1] = "fresh"
    if path == ("trust", "init"):
        arguments[1] = "../fresh-trust"
    if path in (("trust", "add"), ("trust", "rotate"), ("trust", "revoke")):
        shutil.copytree(person.project.parent / "trust", person.project.parent / f"{path[1]}-trust", dirs_exist_ok=True)
        arguments[0] = f"../{path[1]}-trust"
    return person.call(*path, *arguments, *more)


@pytest.mark.parametrize("path", ANSWERS, ids=" ".join)
def test_the_answer_is_one_object_with_its_keys(person: Person, path: tuple[str, ...]) -> None:
    run = ask(person, path, "--json")
    told: dict[str, Any] = json.loads(run.stdout)
    assert ANSWERS[path][1] <= told.keys(), run.stderr
    assert "\x1b" not in run.stdout + run.stderr and "\r" not in run.stderr
    # The host's state and the node's are no failure of the command.
    assert run.returncode == 0 or path in (("doctor",), ("status",)), run.stderr


FAILURES: dict[tuple[str, ...], Callable[[Path], list[str]]] = {
    ("build",): lambda folder: ["--project", str(folder)],
    ("run",): lambda folder: ["train", "--in", "seed.npz", "--project", str(folder)],
}


@pytest.mark.parametrize("path", FAILURES, ids=" ".join)
def test_a_failure_is_one_object_too(person: Person, tmp_path: Path, path: tuple[str, ...]) -> None:
    run = person.call(*path, *FAILURES[path](tmp_path), "--json")
    assert run.returncode == 78
    told = json.loads(run.stdout)
    assert told.keys() == {"ok", "code", "message", "hint"} and told["code"] == "config-missing" and not told["ok"]
    assert "[config-missing]" in run.stderr


def test_without_json_nothing_but_what_was_asked_for_is_on_standard_output(person: Person) -> None:
    """`run` and `build` answer to people, on standard error; standard output stays free for what is piped."""
    for arguments in (["run", "train", "--in", "seed.npz"], ["build", "--out", "../other.npz"]):
        run = person.call(*arguments)
        assert (run.returncode, run.stdout) == (0, "") and run.stderr, run.stderr


def test_the_table_is_of_commands_that_exist() -> None:
    assert {("scaleoutctl", *path) for path in ANSWERS.keys() | LINES | OF_A_NODE} | WITHOUT.keys() == set(leaves())
    assert call(("scaleoutctl",), "--version").returncode == 0
