# SPDX-License-Identifier: Apache-2.0
"""Large models through the whole node: bounded memory, bounded scratch, and a disk without room for them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.model import MIB, random_model
from benchmarks.peaks import Peaks
from scaleoutd.devcombiner.server import DevCombiner
from tests.e2e.site import Site

COPY = """
import shutil, zipfile
del data
with zipfile.ZipFile(source) as archive, archive.open("training_model.bin") as file, open(target, "wb") as out:
    shutil.copyfileobj(file, out)
json.dump({"num_examples": 7}, open(target + "-metadata", "w"))
sys.exit(0)
"""


def site_on_disk_of(folder: Path, combiner: DevCombiner, size_mib: int) -> Site:
    """A site whose runner keeps its state on a file system of `size_mib`, in a mount namespace of the node."""
    site = Site(folder, combiner)
    runner = site.state / "runner"
    runner.mkdir(parents=True)
    script = f'mount -t tmpfs -o mode=700,size={size_mib}m none {runner} && exec "$@"'
    site.wrapper = ["unshare", "-m", "sh", "-c", script, "sh"]
    return site


def test_a_model_of_96_mib_needs_bounded_memory_and_twice_its_size_on_disk(tmp_path: Path) -> None:
    size = 96 * MIB
    limits = {"scratch_bytes": 4 * size, "memory_bytes": 1024**3}
    with DevCombiner() as combiner, Site(tmp_path, combiner, train_body=COPY, limits=limits) as site:
        node = site.start()
        model = combiner.put_model(random_model(size))
        site.task()  # once round, so that everything is loaded and spares are there
        with Peaks(node.process.pid, site.state) as peaks:
            offer = site.task(model_id=model)
        assert offer.status == "COMPLETED", node.text
        assert peaks.scratch_bytes <= 2.1 * size
        rooms = {name: round(rss / MIB, 1) for name, rss in peaks.rss_bytes.items() if name != "step"}
        assert rooms.pop("agent") <= 70
        assert {name: rss for name, rss in rooms.items() if rss > 40} == {}
        assert {"runner", "ledger", "launcher"} <= set(rooms)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_model_larger_than_the_disk_allows_is_refused_while_it_comes_and_a_small_one_passes(tmp_path: Path) -> None:
    with DevCombiner() as combiner, site_on_disk_of(tmp_path, combiner, 96) as site:
        node = site.start()
        assert site.task().status == "COMPLETED", node.text
        refused = site.task(model_id=combiner.put_model(random_model(24 * MIB)))
        assert refused.status == "FAILED"
        assert "storage-full" in refused.response, refused.response
        assert site.task().status == "COMPLETED", node.text


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_refuses_the_task_before_anything_is_downloaded(tmp_path: Path) -> None:
    with DevCombiner() as combiner, site_on_disk_of(tmp_path, combiner, 65) as site:
        site.start()
        refused = site.task()
        assert refused.status == "FAILED"
        assert "storage-full" in refused.response, refused.response
        assert combiner.streams == []
        failed = site.events("run-failed")[-1]
        assert (failed["code"], failed["stage"]) == ("storage-full", "receive")
