# SPDX-License-Identifier: Apache-2.0
"""kill -9 of the agent at every state of a task, and orderly stops: the next start finishes or fails it, on record."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from scaleoutd.agent import service
from scaleoutd.devcombiner.npz import flat, write_npz
from scaleoutd.devcombiner.server import DevCombiner
from tests.e2e.agent.node import CLIENT, ProcessNode, offer, wait_done, wait_until
from tests.living import below

BIG = write_npz({"w": flat("f4", (800_000,), [0.5] * 800_000)})


def last_lines(node: ProcessNode) -> list[dict[str, Any]]:
    """Where each task in the spool stands."""
    found = []
    for path in below(node.config.state / "spool"):
        if path.name == "state":
            with suppress(FileNotFoundError):  # the task is over
                found.append(path.read_bytes().rpartition(b"\n")[0].splitlines())  # a line without its end is being written
    return [json.loads(lines[-1]) for lines in found if lines]


def states(node: ProcessNode) -> list[str]:
    """State of each task in the spool."""
    return [line["state"] for line in last_lines(node)]


def wait_connected(node: ProcessNode, times: int = 1) -> None:
    def connected() -> bool:
        client = node.combiner.board.clients.get(CLIENT)
        return client is not None and client.announced.count("Connect") >= times

    wait_until(connected, what=node.errors)


def hold(stage: str) -> Callable[[ProcessNode], Callable[[], None]]:
    def arrange(node: ProcessNode) -> Callable[[], None]:
        node.runner.hold(stage)

        def reached() -> None:
            node.runner.wait_for(stage)

        return reached

    return arrange


def runner_away(node: ProcessNode) -> Callable[[], None]:
    node.runner.down = True
    return lambda: wait_until(lambda: states(node) == ["received"])


def ledger_refuses_sending(node: ProcessNode) -> Callable[[], None]:
    node.ledger.fail_on("sending")
    return lambda: wait_until(lambda: states(node) == ["released"])


def slow(method: str) -> Callable[[ProcessNode], Callable[[], None]]:
    def arrange(node: ProcessNode) -> Callable[[], None]:
        node.combiner.faults.rpc_delays_s[method] = 60.0

        def reached() -> None:
            wait_until(lambda: states(node) == ["sending"])
            time.sleep(0.1)  # into the call; every moment of it must do

        return reached

    return arrange


def answer_lost(node: ProcessNode) -> Callable[[], None]:
    node.combiner.faults.answer_rpc("SendModelUpdate", grpc.StatusCode.UNAVAILABLE, times=1000, when="after")
    return lambda: wait_until(lambda: bool(node.combiner.updates))


def reports_lost(node: ProcessNode) -> Callable[[], None]:
    def reached() -> None:
        # Trail and runner know it.  A kill before that is the other case's; between record and line it is on record twice.
        wait_until(lambda: [line.get("fields", {}).get("confirmed") for line in last_lines(node)] == [True])

    def arrange_after_task() -> None:
        node.runner.wait_for("receive")
        node.combiner.faults.answer_rpc("PollAndReportAsync", grpc.StatusCode.UNAVAILABLE, times=100_000)
        reached()

    return arrange_after_task


CASES: dict[str, Callable[[ProcessNode], Callable[[], None]]] = {
    "received": runner_away,
    "offered": hold("offer"),
    "model on its way": hold("receive"),
    "executing": hold("execute"),
    "released": ledger_refuses_sending,
    "uploading": slow("Upload"),
    "announcing": slow("SendModelUpdate"),
    "taken, not acknowledged": answer_lost,
    "acknowledged, runner not told": hold("delivered"),
    "acknowledged, not reported": reports_lost,
}


@pytest.mark.parametrize("case", CASES)
def test_killed(case: str, combiner: DevCombiner, tmp_path: Path) -> None:
    with ProcessNode(combiner, tmp_path) as node:
        wait_connected(node)
        reached = CASES[case](node)
        correlation_id = offer(combiner)
        reached()
        node.kill()
        combiner.faults.rpc_answers.clear()
        combiner.faults.rpc_delays_s.clear()
        node.ledger.heal()
        node.runner.down = False
        for stage in list(node.runner._holds):
            node.runner.go(stage)

        node.start()
        assert wait_done(combiner, correlation_id, what=node.errors).status == "COMPLETED"
        updates = [update for update in combiner.updates if update.correlation_id == correlation_id]
        assert [update.counted for update in updates].count(True) == 1
        assert len({update.model_update_id for update in updates}) == 1
        wait_until(lambda: not states(node), what=node.errors)
        entry = node.runner.table[correlation_id]
        assert entry.outcome == "acknowledged"
        assert entry.runs == (2 if case == "executing" else 1)
        if case in ("uploading", "announcing", "taken, not acknowledged"):
            assert "delivery-unknown" in node.ledger.types()
        assert len(node.ledger.bodies("sending")) >= len(updates)
        assert len(node.ledger.bodies("sent")) == 1
        # A second task shows that the node is well.
        assert wait_done(combiner, offer(combiner), what=node.errors).status == "COMPLETED"
        assert node.terminate() == 0


def test_killed_with_a_failure_that_nobody_has_heard_of(combiner: DevCombiner, tmp_path: Path) -> None:
    with ProcessNode(combiner, tmp_path) as node:
        wait_connected(node)
        node.runner.refuse("train", "manifest-expired", "cannot run: the manifest expired")
        node.runner.hold("offer")
        correlation_id = offer(combiner)
        node.runner.wait_for("offer")
        combiner.faults.answer_rpc("PollAndReportAsync", grpc.StatusCode.UNAVAILABLE, times=100_000)
        node.runner.go("offer")
        wait_until(lambda: states(node) == ["failed"])
        node.kill()
        combiner.faults.rpc_answers.clear()
        node.start()
        done = wait_done(combiner, correlation_id, what=node.errors)
        assert (done.status, json.loads(done.response)["code"]) == ("FAILED", "manifest-expired")
        assert len(node.runner.offers) == 1


def test_sigterm_in_a_step_is_reported_and_the_task_is_taken_up_again(combiner: DevCombiner, tmp_path: Path) -> None:
    with ProcessNode(combiner, tmp_path) as node:
        wait_connected(node)
        node.runner.hold("execute")
        correlation_id = offer(combiner)
        node.runner.wait_for("execute")
        assert node.terminate() == 0  # while the runner has the task, for as long as it will
        last = [report for report in combiner.reports if report.correlation_id == correlation_id][-1]
        assert (last.status, last.done) == ("PENDING", False)
        assert "kept" in last.response
        assert combiner.board.clients[CLIENT].announced[-1] == "Disconnect"
        assert node.ledger.types()[-1] == "agent-stopped"
        node.runner.go("execute")
        node.start()
        assert wait_done(combiner, correlation_id, what=node.errors).status == "COMPLETED"


def test_the_end_of_the_parent_is_the_end_of_the_agent(combiner: DevCombiner, tmp_path: Path) -> None:
    with ProcessNode(combiner, tmp_path) as node:
        wait_connected(node)
        node._parent._socket.shutdown(2)
        assert node.process is not None
        assert node.process.wait(60) == 0


def given_out(combiner: DevCombiner) -> int:
    """How often a refresh token was changed for another."""
    return len([call for call in combiner.board.rest_calls if call.path == "/api/v1/clients/token" and call.status == 200])


def test_a_rotated_refresh_token_survives_a_kill(tmp_path: Path) -> None:
    with DevCombiner(access_lifetime_s=32) as combiner:
        token = combiner.mint_refresh(CLIENT)
        with ProcessNode(combiner, tmp_path, token=token) as node:
            wait_connected(node)
            wait_until(lambda: len(node.ledger.bodies("token-refreshed")) >= 2, what=node.errors)
            # A kill between the answer and the file that keeps it is another test's: from here on no token is given out.
            combiner.faults.answer_rest("/api/v1/clients/token", 503, times=100_000)
            wait_until(lambda: len(node.ledger.bodies("token-refreshed")) == given_out(combiner), what=node.errors)
            node.kill()
            combiner.faults.rest_answers.clear()
            node.start()
            wait_connected(node, times=2)
            wait_until(lambda: len(node.ledger.bodies("token-refreshed")) >= 3, what=node.errors)
            refused = [call for call in combiner.board.rest_calls if call.status == 401]
            assert not refused


def test_neither_command_line_nor_environment_nor_log_holds_a_token(combiner: DevCombiner, tmp_path: Path) -> None:
    with ProcessNode(combiner, tmp_path, log_level="DEBUG") as node:
        wait_connected(node)
        wait_done(combiner, offer(combiner))
        assert node.process is not None
        proc = Path(f"/proc/{node.process.pid}")
        shown = (proc / "cmdline").read_bytes() + (proc / "environ").read_bytes()
        cached = json.loads((node.config.state / "token.json").read_text())
        for secret in (node.config.token, cached["access_token"], cached["refresh_token"]):
            assert secret.encode() not in shown
            assert secret not in node.errors()
            assert secret not in json.dumps(node.ledger.events)
        assert (node.config.state / "token.json").stat().st_mode & 0o777 == 0o600
        assert node.config.state.stat().st_mode & 0o777 == 0o700


def test_memory_stays_below_its_bar(combiner: DevCombiner, tmp_path: Path) -> None:
    with ProcessNode(combiner, tmp_path) as node:
        wait_connected(node)
        model_id = combiner.put_model(BIG)
        for _ in range(3):
            wait_done(combiner, offer(combiner, model_id=model_id), what=node.errors)
        assert node.process is not None
        status = Path(f"/proc/{node.process.pid}/status").read_text()
        peak_kib = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
        assert peak_kib < 70 * 1024, status


def test_a_stop_does_not_wait_for_a_combiner_that_is_silent(combiner: DevCombiner, tmp_path: Path) -> None:
    with ProcessNode(combiner, tmp_path) as node:
        wait_connected(node)
        node.runner.hold("execute")
        offer(combiner)
        node.runner.wait_for("execute")
        for method in ("PollAndReportAsync", "SendHeartbeat", "Announce"):
            combiner.faults.rpc_delays_s[method] = 600.0
        assert service.WORKER_STOP_S + service.FAREWELL_S + service.THREADS_STOP_S < 5
        assert node.terminate(60) == 0  # not after ten minutes


def test_a_stop_does_not_wait_for_a_dial_that_nobody_answers(combiner: DevCombiner, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"https://localhost:{silent.getsockname()[1]}"
        patient = "import scaleoutd.agent.api as api; api.Api.__init__.__defaults__ = (600.0, *api.Api.__init__.__defaults__[1:])"
        with ProcessNode(combiner, tmp_path, patient, api_url=address) as node:
            connection, _ = silent.accept()
            assert node.terminate(60) == 0  # not when the dial is given up, after ten minutes
            connection.close()


def test_a_full_disk_fails_the_task_by_name(combiner: DevCombiner, tmp_path: Path) -> None:
    with ProcessNode(combiner, tmp_path) as node:
        wait_connected(node)
        spool = node.config.state / "spool"
        away = spool.rename(spool.with_name("away"))
        done = wait_done(combiner, offer(combiner), what=node.errors)
        assert (done.status, json.loads(done.response)["code"]) == ("FAILED", "storage-failed")
        away.rename(spool)
        assert wait_done(combiner, offer(combiner), what=node.errors).status == "COMPLETED"
