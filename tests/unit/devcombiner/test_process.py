# SPDX-License-Identifier: Apache-2.0
"""`python -m scaleoutd.devcombiner` as another process uses it."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from scaleoutd.devcombiner.npz import flat, write_npz

COMMAND = [sys.executable, "-m", "scaleoutd.devcombiner", "--state"]
SEED = write_npz({"w": flat("f4", (2,), [1.0, 2.0])})


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [*COMMAND, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        try:
            yield running
        finally:
            if running.poll() is None:
                running.kill()


def line(running: subprocess.Popen[str]) -> Any:
    assert running.stdout is not None
    return json.loads(running.stdout.readline())


def ask(running: subprocess.Popen[str], command: dict[str, Any]) -> Any:
    assert running.stdin is not None
    running.stdin.write(json.dumps(command) + "\n")
    running.stdin.flush()
    return line(running)


def test_facts_commands_and_the_end_of_input(tmp_path: Path) -> None:
    seed = tmp_path / "seed.npz"
    seed.write_bytes(SEED)
    with process(str(tmp_path / "state"), "--client", "w1", "--client", "w2") as running:
        facts = line(running)
        assert facts["api_url"].startswith("https://localhost:") and facts["grpc_port"] > 0
        assert set(facts["clients"]) == {"w1", "w2"} and facts["enrollment_token"].count(".") == 2
        key = Path(facts["clients"]["w1"]["key"])
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
        assert ask(running, {"do": "history"}) == {"ok": True, "history": []}
        offer = ask(running, {"do": "offer", "client_id": "w1", "type": "Scaleout_ModelUpdate", "model": str(seed)})
        again = {"do": "offer", "client_id": "w1", "type": "Scaleout_ModelUpdate", "model_id": offer["model_id"]}
        assert ask(running, again)["model_id"] == offer["model_id"]
        waited = ask(running, {"do": "wait", "correlation_id": offer["correlation_id"], "timeout_s": 0})
        assert (waited["come"], waited["status"], waited["handed_out_at_s"]) == (False, "CREATED", None)
        assert ask(running, {"do": "connected", "count": 1, "timeout_s": 0}) == {"ok": True, "come": False, "clients": []}
        for bad in ({"do": "fly"}, {}, {"do": "offer"}, {"do": "wait", "correlation_id": "none", "timeout_s": 0}):
            assert ask(running, bad)["ok"] is False
        started = ask(running, {"do": "session", "seed": str(seed), "rounds": 1, "min_clients": 1, "round_timeout_s": 0.1})
        assert started["ok"] is True
        ended = line(running)
        assert ended["session"] == "failed" and ended["history"][0]["status"] == "no-clients"
        assert running.stdin is not None
        running.stdin.close()
        assert running.wait(60) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it(number: signal.Signals, tmp_path: Path) -> None:
    with process(str(tmp_path / "state")) as running:
        line(running)
        running.send_signal(number)
        assert running.wait(60) == 0


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with process(str(tmp_path)) as running:
        assert running.wait(60) == 78
        assert running.stderr is not None and "must be new or empty" in running.stderr.read()
    assert (tmp_path / "file").read_text() == "mine"
