# SPDX-License-Identifier: Apache-2.0
"""The outbox: what is on record is what lies there, and Python's zipfile reads it."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from pathlib import Path

import pytest

from scaleoutd.core import container
from scaleoutd.errors import StorageError
from scaleoutd.runner.outbox import Outbox


@pytest.fixture
def weights(tmp_path: Path) -> int:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(3_000_001))
    return os.open(path, os.O_RDONLY)


def test_the_container_reads_back_with_another_reader(tmp_path: Path, weights: int) -> None:
    box = Outbox(tmp_path / "outbox")
    out = box.put("run-1", b"{}", weights, model_id="m-1", helper_type="numpyhelper")
    path = out.folder / "update.zip"
    data = path.read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (out.size_bytes, out.sha256)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert [info.compress_type for info in archive.infolist()] == [zipfile.ZIP_STORED] * 2
        assert json.loads(archive.read("metadata.json")) == {"_version": 2, "helper_type": "numpyhelper", "model_id": "m-1"}
        assert archive.read("training_model.bin") == os.pread(weights, 4_000_000, 0)
    assert box.get("run-1", out.size_bytes, out.sha256) == out


@pytest.mark.parametrize("size", [0xFFFFFFFF - 1, 0xFFFFFFFF, 5 << 30])
def test_zip64_headers_of_weights_beyond_4_gib(tmp_path: Path, size: int) -> None:
    made = container.container_around(size, 0, model_id="m", helper_type="h")
    path = tmp_path / "sparse.zip"
    with open(path, "wb") as file:
        file.write(made.head)
        file.seek(size, os.SEEK_CUR)
        file.write(made.tail)
    assert path.stat().st_size == made.size_bytes
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("training_model.bin")
        assert (info.file_size, info.header_offset) == (size, len(made.head) - _local_length(size))
        with archive.open("training_model.bin") as entry:
            assert entry.read(16) == bytes(16)


def _local_length(size: int) -> int:
    return 30 + len("training_model.bin") + (20 if size >= 0xFFFFFFFF else 0)


def test_a_changed_byte_in_the_outbox_is_not_released(tmp_path: Path, weights: int) -> None:
    box = Outbox(tmp_path / "outbox")
    out = box.put("run-1", b"{}", weights, model_id="m-1", helper_type="numpyhelper")
    with open(out.folder / "update.zip", "r+b") as file:
        file.seek(5000)
        byte = file.read(1)
        file.seek(5000)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(StorageError, match="on record is") as caught:
        box.get("run-1", out.size_bytes, out.sha256)
    assert caught.value.code == "state-corrupt"


def test_half_written_results_of_a_crash_are_removed_and_named(tmp_path: Path) -> None:
    Outbox(tmp_path / "outbox")
    (tmp_path / "outbox" / ".run-9").mkdir()
    (tmp_path / "outbox" / ".run-9" / "update.zip").write_bytes(b"half")
    box = Outbox(tmp_path / "outbox")
    assert box.abandoned == [".run-9"]
    assert not list((tmp_path / "outbox").iterdir())


def test_metrics_lie_there_without_a_container(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "outbox")
    out = box.put("run-2", b'{"loss":"1"}', None)
    assert (out.size_bytes, out.weights) == (12, False)
    assert box.get("run-2", out.size_bytes, out.sha256) == out
    box.remove("run-2")
    box.remove("run-2")
    with pytest.raises(StorageError):
        box.get("run-2", out.size_bytes, out.sha256)
