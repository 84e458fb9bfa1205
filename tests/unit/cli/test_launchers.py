# SPDX-License-Identifier: Apache-2.0
"""Launchers forked by a template: what one holds, that none hears of another, and how they and their template end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scaleoutd.cli import launchers
from scaleoutd.cli.launchers import Launchers
from scaleoutd.errors import PeerError
from scaleoutd.ipc.channel import Channel
from tests.child import children_of
from tests.processes import descriptors_of, is_alive
from tests.step_client import PROJECT, forked


class Own(Launchers):
    """With the pids that /proc shows."""

    def connect(self) -> Channel:
        return forked(self)

    @property
    def templates(self) -> list[int]:
        return sorted(self._pids)

    def children(self) -> list[int]:
        return [pid for template in self.templates for pid in children_of(template)]


def eventually(condition: object, timeout_s: float = 60) -> None:
    assert callable(condition)
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not come true"
        time.sleep(0.01)


@pytest.fixture
def own() -> Iterator[Own]:
    made = Own()
    yield made
    made.stop()


def kinds_of(pid: int) -> list[str]:
    """Of all but the standard streams; nothing while a descriptor comes or goes."""
    try:
        return sorted(name.split(":")[0] for number, name in descriptors_of(pid).items() if number > 2)
    except FileNotFoundError:
        return []


def sockets_of(pid: int) -> set[str]:
    return {name for number, name in descriptors_of(pid).items() if number > 2 and name.startswith("socket")}


def sandbox_of(launcher: int) -> list[int]:
    """The two processes that wait for a plan; what is about to end is left out."""
    return [inside for first in children_of(launcher) for inside in (first, *children_of(first))]


def test_a_launcher_holds_its_own_sockets_and_standard_streams_and_nothing_of_template_or_neighbour(own: Own) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to look into processes that are not dumpable")
    first, second = own.connect(), own.connect()
    (template,) = own.templates
    one, two = own.children()
    for pid in (one, two):  # its connection, and output, control and door of the sandbox that waits
        eventually(lambda pid=pid: kinds_of(pid) == ["pipe", "socket", "socket", "socket"])
    held = {pid: descriptors_of(pid) for pid in (template, one, two)}
    # Control: the template does hold more.
    assert sum("pidfd" in name for name in held[template].values()) == 2
    for pid in (one, two):
        assert held[pid][3].startswith("socket:")
    assert len({held[pid][3] for pid in held}) == 3
    assert not sockets_of(one) & sockets_of(two)
    for pid in (one, two):  # a process inside that held an end of ours would not see our end
        eventually(lambda pid=pid: len(sandbox_of(pid)) == 2)
        for inside in sandbox_of(pid):
            eventually(lambda pid=pid, inside=inside: not sockets_of(inside) & sockets_of(pid))
    for channel in (first, second):
        channel.close()


def test_the_end_of_a_connection_is_seen_at_once_and_ends_only_its_launcher(own: Own) -> None:
    first, second = own.connect(), own.connect()
    one, two = own.children()
    first.close()
    eventually(lambda: not is_alive(one))
    assert is_alive(two)
    assert not second.connection.wait(0)
    # A launcher that is killed hangs up: nobody else, the template least of all, holds its end.
    os.kill(two, signal.SIGKILL)
    assert second.connection.wait(60)
    with pytest.raises(PeerError, match="closed"):
        second.connection.receive(0)
    second.close()
    eventually(lambda: own.children() == [])  # and none is left to wait for


def test_a_killed_template_is_replaced_and_its_launchers_go_on(own: Own) -> None:
    before = own.connect()
    (template,) = own.templates
    (launcher,) = own.children()
    os.kill(template, signal.SIGKILL)
    eventually(lambda: not is_alive(template))
    after = own.connect()
    own.reap()
    assert own.templates != [template] and len(own.templates) == 1
    assert is_alive(launcher)
    before.close()
    eventually(lambda: not is_alive(launcher))
    after.close()


def test_a_template_is_replaced_before_too_many_share_its_addresses(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "LAUNCHERS_OF_ONE", 2)
    channels = [own.connect() for _ in range(3)]
    old, new = own.templates
    assert (len(children_of(old)), len(children_of(new))) == (2, 1)
    if os.geteuid() == 0:
        stacks = {pid: _stack(pid) for pid in (*children_of(old), *children_of(new))}
        first, second, third = stacks.values()
        assert first == second  # control: what forks share
        assert third != first
    channels[0].close()
    channels[1].close()
    os.waitid(os.P_PID, old, os.WEXITED | os.WNOWAIT)  # the old one goes with its last launcher
    own.reap()
    assert own.templates == [new]
    channels[2].close()


def _stack(pid: int) -> str:
    return next(line.split()[0] for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if line.endswith("[stack]"))


def test_stop_ends_template_and_launchers_also_those_that_do_not_end_by_themselves(
    own: Own, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launchers, "END_S", 0.2)
    kept = own.connect()  # nobody hangs up on it
    (template,) = own.templates
    (launcher,) = own.children()
    own.stop()
    assert not is_alive(template)
    assert not is_alive(launcher)
    kept.close()


def test_launchers_of_a_killed_parent_end_with_their_connections() -> None:
    program = (
        "import sys, time; from tests.unit.cli.test_launchers import Own; own = Own(); kept = own.connect();"
        "print(own.templates[0], own.children()[0], flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    template, launcher = map(int, parent.stdout.readline().split())
    assert is_alive(template) and is_alive(launcher)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    eventually(lambda: not is_alive(template) and not is_alive(launcher))


def test_no_generator_of_random_numbers_is_forked() -> None:
    """What draws must draw after the fork: the launcher's modules have none with a state of its own."""
    seen = (
        "import scaleoutd.step.template, sys; print(sorted({'random', 'tempfile', 'uuid', 'ssl', '_hashlib'} & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-S", "-c", seen], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
