# SPDX-License-Identifier: Apache-2.0
"""A node whose every process is an ordinary user's: rounds, a refusal under policy, Ctrl-C that leaves nothing, the README alone.

A test run of root drops to a user without an entry in /etc/passwd; one of an ordinary user is that user.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scaleoutd.devcombiner.server import DevCombiner
from tests.attack.arena import USER
from tests.e2e.site import Site, wait_until
from tests.living import below
from tests.processes import descendants, is_alive, processes
from tests.step_client import readable_copy

ROOT = os.geteuid() == 0
UID = USER if ROOT else os.geteuid()
ASLEEP = 'print("asleep", flush=True)\nimport time; time.sleep(300)'


class User:
    """Home and command lines of the user.  The checkout may lie below a closed home, so a copy of the package is used, and the
    environment of the tests is shown below the user's home, in a mount namespace of the process."""

    def __init__(self, home: Path) -> None:
        self.home = home
        for name in ("venv", "tmp"):
            (home / name).mkdir()
        package, prefix = readable_copy(), home / "venv" if ROOT and sys.prefix != sys.base_prefix else Path(sys.prefix)
        python = prefix / "bin" / "python" if sys.prefix != sys.base_prefix else Path(sys.executable)
        inside = f"cd {shlex.quote(str(home))}; shift; exec "
        if ROOT:
            mount = f"mount --bind {shlex.quote(sys.prefix)} {shlex.quote(str(prefix))}; " if prefix == home / "venv" else ""
            inside = f"set -e; {mount}{inside}setpriv --reuid {UID} --regid {UID} --clear-groups -- "
        own = f"env HOME={home} TMPDIR={home / 'tmp'} PYTHONPATH={package} PYTHONDONTWRITEBYTECODE=1 "
        unshare = ("unshare", "--mount", "--propagation", "private") if ROOT else ()
        # What follows is a command whose first word, this test's own interpreter, is replaced; every step is an exec.
        self.wrapper = (*unshare, "sh", "-c", f'{inside}{own}{python} "$@"', "sh")

    def give(self) -> None:
        if ROOT:
            for path in (self.home, *below(self.home)):
                os.chown(path, UID, UID, follow_symlinks=False)

    def control(self, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*self.wrapper, sys.executable, "-c", "import os, sys; os.chdir(sys.argv.pop(1)); "
                   "from scaleoutd.cli.scaleoutctl import main; main()", str(folder), *arguments]  # fmt: skip
        dropped = ("VIRTUAL_ENV", "CONDA_PREFIX", "XDG_STATE_HOME")
        environment = {key: value for key, value in os.environ.items() if key not in dropped}
        return subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)


@pytest.fixture
def user() -> Iterator[User]:
    # Not rmtree: folders of the content store are read-only, for their owner too.
    with tempfile.TemporaryDirectory(prefix="scaleoutd-user-") as folder:
        home = Path(folder)
        home.chmod(0o755)
        made = User(home)
        made.give()
        yield made


class Node:
    """A site below the user's home and its one node, connected."""

    def __init__(self, user: User, combiner: DevCombiner, **more: Any) -> None:
        self.site = Site(user.home / "site", combiner, **more)
        self.site.wrapper = user.wrapper
        certificate, key = combiner.issue_client_certificate("ward-7")
        files = {"ca": combiner.ca_file, "cert": certificate, "key": key}
        for name, path in files.items():
            shutil.copyfile(path, user.home / name)
            (user.home / name).chmod(0o600)
        user.give()
        self.process = self.site.start(**{name: str(user.home / name) for name in files})  # type: ignore[arg-type]  # flags by name

    def descendants(self) -> dict[int, str]:
        """Pid → command line of everything below the node."""
        return descendants(self.process.process.pid)


def _has_own_user_namespace(pid: int) -> bool:
    """A launcher is the root of a namespace of its own, and of nothing else; its user may not even look into it."""
    try:
        return os.readlink(f"/proc/{pid}/ns/user") != os.readlink("/proc/self/ns/user")
    except PermissionError:
        return True


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def test_rounds_complete_a_changed_file_is_refused_and_no_room_has_a_privilege(user: User) -> None:
    with DevCombiner() as combiner:
        node = Node(user, combiner)
        with node.site as site:
            for pid in (node.process.process.pid, *node.process.children().values()):
                status = _status(pid)
                assert set(status["Uid"].split()) == {str(UID)}, status
                assert _has_own_user_namespace(pid) or int(status["CapEff"], 16) == 0, status
            assert site.task("train").status == "COMPLETED"
            assert site.task("validate").status == "COMPLETED"
            (update,) = combiner.updates
            wait_until(lambda: len(site.events("sent")) == 2, 60, lambda: node.process.text)
            assert site.events("sent")[0]["model_update_id"] == update.model_update_id
            script = site.project.folder / "train.py"
            script.write_text(script.read_text() + "# one line more\n")
            refused = site.task("train")
            assert (refused.status, json.loads(refused.response)["code"]) == ("FAILED", "file-changed")
            assert len(combiner.updates) == 1
        assert user.control(user.home, "audit", "verify", str(site.state / "audit")).returncode == 0


def test_ctrl_c_in_a_step_leaves_no_process_no_folder_and_the_task_for_the_next_start(user: User) -> None:
    with DevCombiner() as combiner:
        node = Node(user, combiner, train_body=ASLEEP)
        with node.site as site:
            correlation_id = site.offer()
            node.process.wait_for("asleep")
            before = node.descendants()
            assert any("train.py" in command for command in before.values()), "control: the step runs"
            node.process.process.send_signal(signal.SIGINT)
            assert node.process.process.wait(60) == 130
            assert [(pid, before[pid]) for pid in before if is_alive(pid)] == []
            if ROOT:
                assert [item for item in processes() if item.lives and _is_the_user_s(item.pid)] == []
            assert os.listdir(user.home / "tmp") == []
            assert os.listdir(site.state / "runner" / "in") == []
            assert [path for slot in (site.state / "runner" / "scratch").iterdir() for path in slot.iterdir()] == []
            assert combiner.board.offers[correlation_id].status == "PENDING"
            assert site.events("ledger-stopped")


def _is_the_user_s(pid: int) -> bool:
    try:
        return os.stat(f"/proc/{pid}").st_uid == UID
    except OSError:
        return False


def test_the_readme_s_commands_work_in_a_home_of_their_own(user: User) -> None:
    project = user.home / "my-project"
    commands: tuple[tuple[str, ...], ...] = (
        ("init", str(project)),
        ("build",),
        ("run", "train", "--in", "seed.npz", "--out", "update.zip"),
    )
    for arguments in commands:
        done = user.control(project if project.exists() else user.home, *arguments)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    assert (project / "update.zip").stat().st_uid == UID
    again = user.control(project, "run", "validate", "--in", "seed.npz", "--json")
    assert again.returncode == 0, again.stderr
    assert "re-signed" not in again.stderr, "what a command of ours wrote there is no part of the project"
    trail = json.loads(again.stdout)["trail"]
    assert trail.startswith(f"{user.home}/.local/state/scaleoutd/")
    commands = (("audit", "verify", trail), ("audit", "tail"), ("explain",), ("tasks",))
    for arguments in commands:
        done = user.control(project, *arguments)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    assert user.control(project, "status").returncode == 3, "no node runs"
    told = user.control(project, "doctor", "--json")
    assert told.returncode in (0, 1), told.stdout
