# SPDX-License-Identifier: Apache-2.0
"""Administrator and agent over a real control socket, beside a real combiner."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from scaleoutd.devcombiner.server import DevCombiner
from scaleoutd.errors import ScaleoutError
from scaleoutd.ipc.control import Command, Done, Drain, Pause, Reload, Resume, Status, StatusReport, call
from tests.e2e.agent.node import CLIENT, ROOT, Node, wait_until

ME = pwd.getpwuid(os.geteuid()).pw_name


def status(node: Node) -> StatusReport:
    answer = call(str(node.control), "agent", Status())
    assert isinstance(answer, StatusReport)
    return answer


def tell(node: Node, command: Command, files: dict[str, Path] | None = None) -> Done:
    opened = [os.open(path, os.O_RDONLY) for path in (files or {}).values()]
    try:
        answer = call(str(node.control), "agent", command, descriptors=opened)
    finally:
        for fd in opened:
            os.close(fd)
    assert isinstance(answer, Done)
    return answer


def test_status_says_where_it_is_connected(combiner: DevCombiner, tmp_path: Path) -> None:
    with Node(combiner, tmp_path) as node:
        node.wait_connected()
        wait_until(lambda: status(node).facts["connected"] is True)
        report = status(node)
        assert (report.room, report.state, report.code, report.busy) == ("agent", "serving", "", False)
        assert report.facts["client_id"] == CLIENT and str(combiner.grpc_port) in str(report.facts["combiner"])
        assert str(report.facts["certificate_not_after"]).startswith("20")
        assert not node.events("operator-command")  # looking is no event


def test_a_drain_ends_what_was_begun_and_takes_nothing_new(combiner: DevCombiner, tmp_path: Path) -> None:
    with Node(combiner, tmp_path) as node:
        node.wait_connected()
        node.runner.hold("execute")
        first = node.offer()
        node.runner.wait_for("execute")
        assert tell(node, Drain()).changed
        assert not tell(node, Drain()).changed
        later = node.offer()
        assert status(node).state == "draining" and status(node).busy
        node.runner.go("execute")
        assert node.wait_done(first).status == "COMPLETED"
        wait_until(lambda: status(node).state == "drained")
        assert len(node.runner.offers) == 1 and not combiner.board.offers[later].done
        assert tell(node, Resume()).changed
        assert node.wait_done(later).status == "COMPLETED"  # the control: it was only held back
        assert node.events("operator-command") == [
            {"command": "drain", "operator": ME, "peer_uid": os.geteuid()},
            {"command": "drain", "operator": ME, "peer_uid": os.geteuid()},
            {"command": "resume", "operator": ME, "peer_uid": os.geteuid()},
        ]


@pytest.mark.parametrize("command", [Drain(), Pause("audit of ward 7")], ids=["draining", "pausing"])
def test_a_held_agent_still_stops_the_task_that_the_combiner_takes_back(
    combiner: DevCombiner, tmp_path: Path, command: Command
) -> None:
    with Node(combiner, tmp_path) as node:
        node.wait_connected()
        node.runner.hold("execute")
        running = node.offer()
        node.runner.wait_for("execute")
        tell(node, command)
        combiner.stop_task(running)
        done = node.wait_done(running)
        assert (done.status, json.loads(done.response)["code"]) == ("INTERRUPTED", "step-cancelled")
        assert not combiner.updates
        node.runner.go("execute")
        wait_until(lambda: status(node).state in ("drained", "paused"))


def test_a_pause_survives_a_restart_and_says_farewell(combiner: DevCombiner, tmp_path: Path) -> None:
    with Node(combiner, tmp_path) as node:
        node.wait_connected()
        tell(node, Pause("audit of ward 7"))
        wait_until(lambda: combiner.board.clients[CLIENT].announced[-1] == "Disconnect", what="no farewell")
        assert status(node).state == "paused"
        assert node.events("operator-command")[0]["reason"] == "audit of ward 7"
    with node:
        # It may be gone again at once.
        wait_until(lambda: combiner.board.clients[CLIENT].announced.count("Connect") == 2, what=node.output.getvalue)
        waiting = node.offer()
        assert status(node).state == "paused" and status(node).facts["reason"] == "audit of ward 7"
        wait_until(lambda: combiner.board.clients[CLIENT].announced[-1] == "Disconnect", what="no farewell")
        assert not node.runner.offers
        tell(node, Resume())
        assert node.wait_done(waiting).status == "COMPLETED"


def test_what_cannot_be_recorded_is_not_done(combiner: DevCombiner, tmp_path: Path) -> None:
    with Node(combiner, tmp_path) as node:
        node.wait_connected()
        node.ledger.fail_on("operator-command")
        with pytest.raises(ScaleoutError) as caught:
            tell(node, Pause("no"))
        assert caught.value.code == "ledger-unavailable"
        assert status(node).state == "serving"
        node.ledger.heal()
        assert tell(node, Pause("yes")).changed


@pytest.mark.skipif(os.geteuid() == 0, reason="these tests run as root, who may hand credentials over")
def test_credentials_of_somebody_who_is_not_root_are_refused(combiner: DevCombiner, tmp_path: Path) -> None:
    new, new_key = combiner.issue_client_certificate("ward-7-new")
    with Node(combiner, tmp_path) as node:
        node.wait_connected()
        with pytest.raises(ScaleoutError) as caught:
            tell(node, Reload(("client.pem", "client.key")), {"client.pem": new, "client.key": new_key})
        assert caught.value.code == "command-refused"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root hands credentials over, and these tests run as an ordinary user")
def test_a_new_certificate_is_taken_and_a_bad_pair_is_refused(combiner: DevCombiner, tmp_path: Path) -> None:
    new, new_key = combiner.issue_client_certificate("ward-7-new")
    expired, expired_key = combiner.issue_client_certificate("ward-7-old", expired=True)
    with Node(combiner, tmp_path) as node:
        node.wait_connected()
        before = node.wait_event("credential-loaded")
        for certificate, key in ((new, expired_key), (expired, expired_key)):
            with pytest.raises(ScaleoutError) as caught:
                tell(node, Reload(("client.pem", "client.key")), {"client.pem": certificate, "client.key": key})
            assert caught.value.code == "client-certificate-invalid"
        assert "client.key" in node.events("credential-refused")[0]["message"]
        node.wait_event("credential-refused", times=2)
        assert status(node).facts["certificate_subject"] == before["subject"]
        tell(node, Reload(("client.pem", "client.key")), {"client.pem": new, "client.key": new_key})
        assert "ward-7-new" in node.wait_event("credential-loaded", times=2)["subject"]
        combiner.restart_grpc()  # the next connection is made with it
        wait_until(
            lambda: "ward-7-new" in combiner.board.clients[CLIENT].certificate_subject, what=lambda: combiner.board.clients
        )
        assert node.wait_done(node.offer()).status == "COMPLETED"


def scaleoutctl(node: Node, *words: str) -> subprocess.CompletedProcess[str]:
    """The command as a process; its sockets are looked for below the node's own root."""
    root = node.control.parent
    (root / "run/scaleoutd").mkdir(parents=True, exist_ok=True)
    link = root / "run/scaleoutd/agent.control"
    if not link.exists():
        link.symlink_to(node.control)
    start = "import sys; from scaleoutd.cli.scaleoutctl import main; sys.argv[0] = 'scaleoutctl'; main()"
    return subprocess.run(
        [sys.executable, "-c", start, *words, "--root", str(root)], capture_output=True, text=True, timeout=60, cwd=ROOT
    )


def test_drain_waits_on_the_command_line(combiner: DevCombiner, tmp_path: Path) -> None:
    with Node(combiner, tmp_path) as node:
        node.wait_connected()
        node.runner.hold("execute")
        first = node.offer()
        node.runner.wait_for("execute")
        late = scaleoutctl(node, "drain", "--wait", "--timeout", "1s", "--json")
        assert late.returncode == 75 and json.loads(late.stdout)["drained"] is False, late
        node.runner.go("execute")
        node.wait_done(first)
        drained = scaleoutctl(node, "drain", "--wait", "--json")
        assert drained.returncode == 0 and json.loads(drained.stdout)["drained"] is True, drained
