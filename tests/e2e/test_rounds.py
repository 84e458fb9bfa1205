# SPDX-License-Identifier: Apache-2.0
"""Two nodes, mTLS, two rounds with validation: the numbers are right, and the bytes the combiner has are those on record."""

from __future__ import annotations

import hashlib
from pathlib import Path

from scaleoutd.devcombiner.container import read_container
from scaleoutd.devcombiner.server import DevCombiner
from tests.e2e.site import SEED, Site, events

ROUNDS = 2
# Adds a number of its own to each value of the model, so that the average shows who took part with which weight.
ADD = """
import struct
data = bytearray(zipfile.ZipFile(io.BytesIO(data)).read("0.npy"))
values = struct.unpack("<3d", data[-24:])
data[-24:] = struct.pack("<3d", *(value + {add} for value in values))
buffer = io.BytesIO()
with zipfile.ZipFile(buffer, "w") as archive:
    archive.writestr("0.npy", bytes(data))
data = buffer.getvalue()
"""


def _site(folder: Path, combiner: DevCombiner, add: float, examples: int) -> Site:
    site = Site(folder, combiner, train_body=ADD.format(add=add))
    train = site.project.folder / "train.py"
    train.write_text(train.read_text().replace('"num_examples": 7', f'"num_examples": {examples}'))
    site.project.sign()
    return site


def test_two_nodes_complete_rounds_and_every_byte_that_left_is_on_record(tmp_path: Path) -> None:
    with (
        DevCombiner() as combiner,
        _site(tmp_path / "a", combiner, add=1.0, examples=1) as one,
        _site(tmp_path / "b", combiner, add=5.0, examples=3) as other,
    ):
        one.launch("ward-1")
        other.launch("ward-2")
        assert combiner.board.wait_until(lambda: len(combiner.board.connected()) == 2, 90), one.nodes[0].text
        combiner.start_session(SEED, ROUNDS, 2, 90)
        assert combiner.wait_session(60).status == "completed"

        rounds = combiner.history
        assert [(record.status, record.failed, record.refused) for record in rounds] == [("completed", {}, {})] * ROUNDS
        # (1 × 1 + 3 × 5) / 4 = 4 a round, exactly, in binary floating point too.
        for number, record in enumerate(rounds, 1):
            averaged = combiner.arrays(record.new_model_id)["0"].values
            assert list(averaged) == [start + 4.0 * number for start in (1.0, 2.0, 3.0)]
            assert record.validations == {name: {"loss": 0.25, "accuracy": 0.75} for name in ("ward-1", "ward-2")}
        assert {client.certificate_subject for client in combiner.board.clients.values()} == {"ward-1", "ward-2"}
        for site in (one, other):
            for node in site.nodes:
                assert node.stop() == 0, node.text
        for site, name in ((one, "ward-1"), (other, "ward-2")):
            _check_record(combiner, site, name)


def _check_record(combiner: DevCombiner, site: Site, name: str) -> None:
    """Release, sending and sent have the digest of what lies at the combiner, and it is the container."""
    updates = [update for update in combiner.updates if update.client_id == name]
    assert len(updates) == ROUNDS
    for update in updates:
        came = combiner.store.read(update.model_update_id)
        container = read_container(came)
        assert not container.legacy
        assert container.model_id == update.model_update_id
        for kind in ("computed", "release", "sending", "sent"):
            (event,) = [item for item in events(site.state, kind) if item.get("model_update_id") == update.model_update_id]
            assert (event["sha256"], event["size_bytes"]) == (hashlib.sha256(came).hexdigest(), len(came)), kind
        released, sent = (
            next(item for item in events(site.state, kind) if item["correlation_id"] == update.correlation_id)
            for kind in ("release", "sent")
        )
        assert released["destination"] == f"localhost:{combiner.grpc_port}"
        assert sent["outcome"] == "acknowledged"
    # Metadata leaves only as the policy lists it.
    assert all(set(update.meta.get("training_metadata", {})) <= {"num_examples", "loss"} for update in updates)
    assert len(events(site.state, "run-about-to-start")) == 2 * ROUNDS
