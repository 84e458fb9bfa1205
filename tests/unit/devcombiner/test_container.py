# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import json
import zipfile

import pytest

from scaleoutd.devcombiner.container import read_container, write_container
from scaleoutd.devcombiner.npz import flat, write_npz
from scaleoutd.errors import FormatError


def zip_of(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "."), data)
    return out.getvalue()


@pytest.mark.parametrize("deflate", [False, True])
def test_round_trip_stored_and_deflated(deflate: bool) -> None:
    data = write_container("m-1", b"w" * 1000, deflate=deflate)
    container = read_container(data)
    assert (container.model_id, container.helper_type, container.weights, container.legacy) == (
        "m-1",
        "numpyhelper",
        b"w" * 1000,
        False,
    )
    assert (len(data) < 1000) is deflate


def test_metadata_is_what_the_official_client_reads() -> None:
    with zipfile.ZipFile(io.BytesIO(write_container("m-1", b"w"))) as archive:
        assert archive.namelist() == ["metadata.json", "training_model.bin"]
        assert json.loads(archive.read("metadata.json")) == {
            "model_id": "m-1",
            "helper_type": "numpyhelper",
            "_version": 2,
        }


@pytest.mark.parametrize("raw", [b"", b"weights", write_npz({"a": flat("f4", (1,), [1.0])})])
def test_legacy_weights_are_taken_as_they_are(raw: bytes) -> None:
    container = read_container(raw)
    assert container.legacy and container.weights == raw and container.model_id == ""


@pytest.mark.parametrize(
    ("attack", "data"),
    [
        ("newer version", write_container("m", b"w", version=3)),
        ("no weights", zip_of(metadata__json=b"{}")),
        ("metadata no JSON", zip_of(metadata__json=b"{", training_model__bin=b"w")),
        ("metadata a list", zip_of(metadata__json=b"[]", training_model__bin=b"w")),
        ("version a string", zip_of(metadata__json=b'{"_version": "2"}', training_model__bin=b"w")),
        ("model_id a number", zip_of(metadata__json=b'{"model_id": 1}', training_model__bin=b"w")),
        ("wrong checksum inside", write_container("m", b"weights").replace(b"weights", b"weighTs", 1)),
    ],
)
def test_refuses(attack: str, data: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        read_container(data)
    assert caught.value.code == "container-invalid"


def test_refuses_weights_that_inflate_beyond_the_limit() -> None:
    bomb = write_container("m", b"\0" * 1_000_000, deflate=True)
    assert len(bomb) < 10_000
    with pytest.raises(FormatError, match="inflates to 1000000 bytes"):
        read_container(bomb, max_weights_bytes=999_999)
