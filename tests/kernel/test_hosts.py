# SPDX-License-Identifier: Apache-2.0
"""Hosts that cannot do everything: without user namespaces, with an older Landlock, with other backends."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scaleoutd.core.plan import OUTCOMES, SandboxPlan
from scaleoutd.errors import KernelSupportError, LaunchError
from tests.attack.arena import USER
from tests.attack.hosts import forbid_user_namespaces
from tests.step_client import PROJECT, PYTHON, StepClient, plan_for, readable_copy

ROOT = os.geteuid() == 0
UID = USER if ROOT else None


@pytest.fixture
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="scaleoutd-kernel-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        if UID is not None:
            os.chown(folder, UID, UID)
        yield folder / "scratch"


def inner_plan(scratch: Path, command: list[str], **changes: Any) -> SandboxPlan:
    return plan_for(scratch, command, backend="inner", links=(), cwd=str(scratch), **changes)


@pytest.mark.parametrize("abi", [0, 1, 2, 5, 7])
@pytest.mark.parametrize("uid", [None, UID] if ROOT else [None])
def test_outcomes_are_proven_by_the_view_whatever_landlock_can_do(scratch: Path, uid: int | None, abi: int) -> None:
    prelude = f"import scaleoutd.step.syscalls as s; real = s.landlock_abi(); s.landlock_abi = lambda: min({abi}, real)"
    with StepClient(uid=uid, prelude=prelude) as client:
        probed = client.probe(plan_for(scratch, ["true"]))
        assert [item.name for item in probed.outcomes] == list(OUTCOMES)
        assert all(item.status == "proven" for item in probed.outcomes)
        assert probed.landlock_abi <= abi
        assert client.execute(plan_for(scratch, ["sh", "-c", "echo done"])).output == "done\n"


@pytest.mark.parametrize(
    ("abi", "open_names"), [(0, {"no-write-outside", "no-read-outside", "no-signal-out"}), (2, {"no-signal-out"})]
)
def test_without_namespaces_what_is_open_is_refused_or_named(scratch: Path, abi: int, open_names: set[str]) -> None:
    prelude = f"import scaleoutd.step.syscalls as s; s.landlock_abi = lambda: {abi}"
    with StepClient(uid=UID, prelude=prelude) as client:
        with pytest.raises(KernelSupportError) as caught:
            client.probe(inner_plan(scratch, ["true"]))
        assert all(name in caught.value.message for name in open_names)
        assert caught.value.hint
        probed = client.probe(inner_plan(scratch, ["true"], outcomes=()))
        assert open_names <= {item.name for item in probed.outcomes if item.status == "open"}


@pytest.mark.skipif(
    not ROOT, reason="only root can set max_user_namespaces for the launcher, and these tests run as an ordinary user"
)
def test_host_without_user_namespaces_refuses_and_says_how_to_allow_them(scratch: Path) -> None:
    readable_copy()
    with StepClient(uid=UID, before_exec=forbid_user_namespaces) as client:
        for ask in (client.probe, client.execute):
            with pytest.raises(KernelSupportError, match="user namespace") as caught:
                ask(plan_for(scratch, ["true"]))
            assert "max_user_namespaces" in caught.value.hint
        done = client.execute(inner_plan(scratch, ["sh", "-c", "echo inner"]))
        assert done.output == "inner\n"
        assert any(item.status == "partial" for item in done.result.enforced)


def test_backend_systemd_is_refused_where_no_unit_is_around_it(scratch: Path) -> None:
    with StepClient(uid=UID) as client, pytest.raises(KernelSupportError, match="is no unit of systemd"):
        client.execute(plan_for(scratch, ["true"], backend="systemd"))


def test_plan_that_demands_another_filter_is_refused(scratch: Path) -> None:
    with StepClient(uid=UID) as client, pytest.raises(LaunchError, match="filter"):
        client.execute(plan_for(scratch, ["true"], seccomp_sha256="0" * 64))


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"command": ("/nonexistent",)}, "No such file"),
        ({"cwd": "/nowhere"}, "working folder"),
        ({"more": ("/no/such/source", "/data")}, "/no/such/source"),
        ({"more": ("/usr", "/data/../etc")}, "plain absolute path"),
        ({"more": ("/usr/bin", "/bin/x")}, "/bin/x"),
    ],
)
def test_stage_that_fails_means_no_run_and_is_named(scratch: Path, changes: dict[str, Any], cause: str) -> None:
    from scaleoutd.core.plan import Bind

    more = changes.pop("more", None)
    if more:
        changes["more_binds"] = (Bind(*more),)
    command = changes.pop("command", ("true",))
    with StepClient(uid=UID) as client:
        with pytest.raises(LaunchError) as caught:
            client.execute(plan_for(scratch, command, **changes))
        assert cause in caught.value.message
        assert client.execute(plan_for(scratch, ["true"])).result.exit_status == 0


def test_two_slots_have_two_uids(scratch: Path) -> None:
    if not ROOT:
        pytest.skip("only root gives each slot a uid of its own, and these tests run as an ordinary user")
    seen = set()
    for slot in (0, 7):
        with StepClient() as client:
            seen.add(client.execute(plan_for(scratch.parent / f"slot{slot}", ["id", "-u"], slot=slot)).output)
    assert len(seen) == 2


def test_interpreter_below_a_closed_home_runs_as_root() -> None:
    if not ROOT:
        pytest.skip("only root can use what lies below somebody else's closed home, and these tests run as an ordinary user")
    from scaleoutd.core.plan import Bind

    with tempfile.TemporaryDirectory() as name:
        home = Path(name) / "home"
        (home / "env").mkdir(parents=True)
        (home / "env/tool").write_text("#!/bin/sh\necho reached\n")
        (home / "env/tool").chmod(0o755)
        home.chmod(0o700)
        with StepClient() as client:
            bind = Bind(str(home / "env"), f"{home}/env", executable=True)
            done = client.execute(plan_for(Path(name) / "scratch", [f"{home}/env/tool"], more_binds=(bind,)))
        assert done.output == "reached\n"


PROBE_AMONG_FEW = """
import os, tempfile
from pathlib import Path
from tests.step_client import StepClient, plan_for

with tempfile.TemporaryDirectory() as name, StepClient() as client:
    assert client.process.pid <= 16, client.process.pid
    print(*(item.status for item in client.probe(plan_for(Path(name) / "scratch", ["true"])).outcomes))
"""


@pytest.mark.skipif(not ROOT, reason="a pid namespace in which the launcher's uid stays as it is needs root")
def test_launcher_of_a_container_whose_pid_is_one_inside_the_step_too() -> None:
    """The probe once took its own process for the launcher, and a node in a small container refused to start."""
    command = ["unshare", "-m", "-p", "-f", "--mount-proc", "--kill-child", PYTHON, "-c", PROBE_AMONG_FEW]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.split() == ["proven"] * len(OUTCOMES), done.stdout + done.stderr
