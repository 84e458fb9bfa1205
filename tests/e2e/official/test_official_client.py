# SPDX-License-Identifier: Apache-2.0
"""The official client completes rounds against the devcombiner: it speaks the real protocol and not only ours.

The client is scaleout 1.1.0 in an environment of its own, dispatcher mode, TLS, no client certificate (it has none to
give).  The project's arithmetic is exact in binary, so the averages are compared with ==.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from scaleoutd.devcombiner.npz import flat, write_npz
from scaleoutd.devcombiner.server import DevCombiner
from tests.child import ended

PROJECT = Path(__file__).parent / "project"
SEED = {"0": flat("f4", (2, 2), [0.0, 1.0, 2.0, 3.0]), "1": flat("f8", (1,), [0.5])}

StartClient = Callable[[DevCombiner, str, str, float, int], "subprocess.Popen[bytes]"]


@pytest.fixture
def start_client(official_bin: Path, tmp_path: Path) -> Iterator[StartClient]:
    with ExitStack() as stack:

        def start(combiner: DevCombiner, name: str, token: str, delta: float, examples: int) -> subprocess.Popen[bytes]:
            folder = tmp_path / name
            shutil.copytree(PROJECT, folder)
            arguments = ["client", "start", "--dispatcher", "--api-url", combiner.api_url, "--token", token]
            environment = {
                "PATH": f"{official_bin}:{os.environ['PATH']}",
                "HOME": str(folder),
                "SCALEOUT_HOME_DIR": str(folder),
                "SCALEOUT_GRPC_ROOT_CERT_PATH": str(combiner.ca_file),
                "REQUESTS_CA_BUNDLE": str(combiner.ca_file),
                "SCALEOUT_CLIENT_TASK_POLLING_INTERVAL": "1",
                "TMPDIR": str(folder),
                "DELTA": str(delta),
                "EXAMPLES": str(examples),
            }
            # Some machines must pin the OpenBLAS kernel or numpy computes wrong numbers.
            environment |= {key: value for key, value in os.environ.items() if key.startswith("OPENBLAS_")}
            log = stack.enter_context(open(folder / "client.log", "wb"))
            command = [str(official_bin / "scaleout"), *arguments, "--name", name]
            return stack.enter_context(ended(subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)))

        yield start


def test_two_official_clients_complete_two_rounds_and_the_average_is_exact(start_client: StartClient, tmp_path: Path) -> None:
    with DevCombiner(client_certificate="none") as combiner:
        start_client(combiner, "ward-a", combiner.mint_enrollment(), 1.0, 1)
        start_client(combiner, "ward-b", combiner.mint_refresh("b-0001"), 4.0, 3)
        combiner.start_session(write_npz(SEED), rounds=2, min_clients=2, round_timeout_s=60, client_settings={"scale": 2})
        session = combiner.wait_session(150)

        assert session.status == "completed", _logs(tmp_path)
        assert [record.status for record in combiner.history] == ["completed", "completed"], _logs(tmp_path)
        # (1 * 1 + 3 * 4) / 4 * 2 = 6.5 a round
        for record, growth in zip(combiner.history, (6.5, 13.0), strict=True):
            average = combiner.arrays(record.new_model_id)
            assert {name: list(array.values) for name, array in average.items()} == {
                name: [value + growth for value in array.values] for name, array in SEED.items()
            }
            assert {name: (array.kind, array.shape) for name, array in average.items()} == {
                name: (array.kind, array.shape) for name, array in SEED.items()
            }
            assert sorted(update.num_examples for update in record.updates.values()) == [1, 3]
            assert list(record.validations.values()) == [{"mean": pytest.approx(1.3 + growth)}] * 2
            assert set(record.train_timings) == set(record.participants) == set(record.updates)
            for timing in record.train_timings.values():
                assert timing.handed_out_at_s is not None and timing.result_at_s is not None
                assert timing.handed_out_at_s < timing.result_at_s
        assert combiner.board.duplicates() == []


def test_official_client_announces_itself_reports_and_beats_as_the_protocol_says(start_client: StartClient) -> None:
    with DevCombiner(client_certificate="none") as combiner:
        process = start_client(combiner, "ward-c", combiner.mint_refresh("c-0001"), 1.0, 1)
        board = combiner.board
        assert board.wait_until(lambda: "c-0001" in board.connected(), 90)
        model_id = combiner.put_model(write_npz(SEED))
        task = combiner.offer_task("c-0001", "Scaleout_ModelUpdate", model_id, client_settings={"scale": 1})
        assert board.wait_until(lambda: board.offers[task].done, 90)
        assert board.offers[task].status == "COMPLETED"
        assert board.clients["c-0001"].announced[:2] == ["VersionCheck", "Connect"]
        assert board.wait_until(lambda: board.clients["c-0001"].heartbeats > 0, 60)
        assert board.wait_until(lambda: [status.type for status in board.statuses].count("MODEL_UPDATE") == 2, 60)
        process.terminate()
        assert board.wait_until(lambda: not board.connected(), 60), "no Disconnect"


def _logs(folder: Path) -> str:
    return "\n".join(log.read_text(errors="replace")[-4000:] for log in folder.glob("*/client.log"))
