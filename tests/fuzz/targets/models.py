# SPDX-License-Identifier: Apache-2.0
"""Models: the archive, the formats, the inspector over all of them, and the JSON of a step."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import zipfile
import zlib

from scaleoutd.core import container, strictjson
from scaleoutd.core.plan import GateRules, ModelRules
from scaleoutd.step import npz, safetensors, torchzip
from scaleoutd.step.archive import Archive
from scaleoutd.step.gate import check_result, check_train
from scaleoutd.step.model import read_model
from scaleoutd.step.source import refuse
from tests.fuzz.target import Target, same
from tests.unit.step import models

RULES = ModelRules(("npz", "safetensors", "torch"), 1 << 20, 100, 16 << 20)
LOOSE = ModelRules(("npz", "safetensors", "torch", "pickle", "raw"), 1 << 20, 100, 16 << 20)


class Memory:
    """A source over bytes."""

    def __init__(self, data: bytes) -> None:
        self.size, self._data = len(data), data

    def read_at(self, offset: int, count: int) -> bytes:
        if offset < 0 or count < 0:
            raise AssertionError("a negative offset or count is asked for")
        data = self._data[offset : offset + count]
        if len(data) < count:
            raise refuse(f"it ends at byte {offset + len(data)}, {offset + count} were announced")
        return data


def _archive(data: bytes) -> None:
    archive = Archive(Memory(data), max_entries=100, max_inflated_bytes=16 << 20)
    for name in archive.entries:
        archive.check_crc(name)
    _same_as_zipfile(data, archive)


def _same_as_zipfile(data: bytes, archive: Archive) -> None:
    """The library that steps use must see the same entries and the same bytes in them."""
    with zipfile.ZipFile(io.BytesIO(data)) as other:
        same(sorted(other.namelist()), sorted(archive.entries), "the entries that zipfile sees")
        for name in archive.entries:
            source = archive.open(name)
            same(other.read(name), source.read_at(0, source.size), f"what zipfile reads of {name!r}")


def _npz(data: bytes) -> None:
    for array in npz.read_arrays(Archive(Memory(data), max_entries=100, max_inflated_bytes=16 << 20)):
        array.is_finite()


def _npy(data: bytes) -> None:
    array = npz.read_array("a", Memory(data))
    assert array.offset + array.length == len(data)
    array.is_finite()


def _safetensors(data: bytes) -> None:
    source = Memory(data)
    if not safetensors.looks_like(source):
        raise refuse("it is none")
    arrays = safetensors.read_arrays(source, 100)
    for array in arrays:
        array.is_finite()


def _torch(data: bytes) -> None:
    archive = Archive(Memory(data), max_entries=100, max_inflated_bytes=16 << 20)
    if torchzip.looks_like(archive):
        for array in torchzip.read_arrays(archive):
            array.is_finite()


def _torch_pickle(data: bytes) -> None:
    """The pickle alone, in an archive around it that is right."""
    _torch(_torch_archive(data))


def _inspect(data: bytes) -> None:
    for rules in (RULES, LOOSE):
        model = read_model(Memory(data), rules)
        assert model.facts.format in rules.formats
        strictjson.canonical([[array.name, array.dtype, list(array.shape)] for array in model.arrays])
        for archive in model.archives:
            for name in archive.entries:
                archive.check_crc(name)
        for array in model.arrays:
            array.is_finite()


def _step_json(data: bytes) -> None:
    fd = _memory_file(data)
    try:
        check_result(GateRules("validate", 1 << 20), fd)
    finally:
        os.close(fd)


def _gate(data: bytes) -> None:
    """Weights against themselves, so that whatever the inspector takes is compared too."""
    fds = [_memory_file(data), _memory_file(b'{"num_examples":3}'), _memory_file(data)]
    try:
        check_train(GateRules("train", 1 << 20, model=LOOSE), LOOSE, *fds)
    finally:
        for fd in fds:
            os.close(fd)


def _memory_file(data: bytes) -> int:
    fd = os.memfd_create("fuzz")
    os.write(fd, data)
    return fd


def _npz_seeds() -> list[bytes]:
    arrays = {"0": models.npy("<f4", (2, 3), bytes(24)), "b": models.npy(">i8", (), bytes(8), version=2)}
    return [models.npz(arrays), models.npz(arrays, zipfile.ZIP_DEFLATED), models.npz({"c": models.npy("<c8", (1,), bytes(8))})]


def _npy_seeds() -> list[bytes]:
    return [
        models.npy("<f4", (2,), bytes(8)), models.npy("|b1", (3, 1), b"\0\1\0"), models.npy("<U3", (1,), bytes(12), version=3),
        models.npy("<f2", (0, 5), b""), models.npy(">f8", (1,), b"\x7f\xf0" + bytes(6)), models.npy("|O", (1,), b""),
    ]  # fmt: skip


def _safetensors_seeds() -> list[bytes]:
    header = {
        "__metadata__": {"format": "pt"},
        "w": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
        "b": {"dtype": "BF16", "shape": [1], "data_offsets": [8, 10]},
        "e": {"dtype": "U8", "shape": [0], "data_offsets": [10, 10]},
    }
    return [models.safetensors(header, bytes(10)), models.safetensors({}, b"")]


def state_dictionary(functions: bytes = b"ctorch._utils\n_rebuild_tensor_v2\n") -> bytes:
    """What torch.save writes for {"w": a tensor of two floats}, protocol 2."""
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQ"
    tensor = functions + b"(" + storage + b"K\x00K\x02\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02ccollections\nOrderedDict\n)R(X\x01\x00\x00\x00w" + tensor + b"u."


def _torch_archive(pickled: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    return models.zipped({"a/data.pkl": pickled, "a/version": b"3\n", "a/byteorder": b"little", "a/data/0": bytes(8)}, method)


def _pickle_seeds() -> list[bytes]:
    return [
        state_dictionary(),
        b"\x80\x02}q\x00(X\x01\x00\x00\x00aK\x01X\x01\x00\x00\x00b]q\x01(K\x02K\x03eX\x01\x00\x00\x00ch\x01u.",
        pickle.dumps({"a": [1, (2, 3), "x"], "b": {"c": None}}, 2),
        pickle.dumps({"a": [1, (2, 3), "x"], 3: {"c": 1.5}}, 4),
    ]


def _model_seeds() -> list[bytes]:
    weights = _npz_seeds()[0]
    outer = container.container_around(len(weights), zlib.crc32(weights), model_id="m-1", helper_type="numpyhelper")
    return [
        outer.head + weights + outer.tail, models.container(weights), models.container(_safetensors_seeds()[0]),
        _torch_archive(state_dictionary()), models.container(_torch_archive(state_dictionary())), *_npz_seeds(),
        *_safetensors_seeds(), pickle.dumps(1), b"raw",
    ]  # fmt: skip


_ZIP = (
    b"PK\x03\x04",
    b"PK\x01\x02",
    b"PK\x05\x06",
    b"PK\x06\x06",
    b"PK\x06\x07",
    b"PK\x07\x08",
    b"\xff\xff\xff\xff",
    b"\x01\x00\x10\x00",
)
_NPY = (b"'descr': '<f4'", b"True", b"'|O'", b"(2,)", b"()", b"\x93NUMPY\x01\x00", b"\x02\x00", b"999999999999999,")
_OPCODES = tuple(opcode.code.encode("latin-1") for opcode in pickletools.opcodes)
_NAMES = (
    b"ctorch\nFloatStorage\n",
    b"cos\nsystem\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"X\x07\x00\x00\x00storage",
    b"\x80\x02",
)
_REFUSALS = frozenset({"container-invalid", "limit-model", "model-format-denied"})
_GATE = frozenset({*_REFUSALS, "output-invalid", "output-not-finite", "output-shape", "metrics-invalid", "limit-output"})

TARGETS = (
    Target("archive", _archive, _npz_seeds, _REFUSALS, _ZIP),
    Target("npz", _npz, _npz_seeds, _REFUSALS, (*_ZIP, *_NPY)),
    Target("npy", _npy, _npy_seeds, _REFUSALS, _NPY),
    Target(
        "safetensors",
        _safetensors,
        _safetensors_seeds,
        _REFUSALS,
        (b'"F32"', b'"shape"', b"[0]", b"9007199254740991", b"\xff" * 8),
    ),
    Target(
        "torch",
        _torch,
        lambda: [_torch_archive(state_dictionary()), _torch_archive(state_dictionary(), zipfile.ZIP_DEFLATED)],
        _REFUSALS,
        (*_ZIP, *_NAMES),
    ),
    Target("torch-pickle", _torch_pickle, _pickle_seeds, _REFUSALS, (*_OPCODES, *_NAMES)),
    Target("inspect", _inspect, _model_seeds, _REFUSALS, (*_ZIP, *_NPY, *_NAMES)),
    Target("gate-weights", _gate, _model_seeds, _GATE, (*_ZIP, *_NPY, b"\x7f\xc0", b"\xff\x7f")),
    Target(
        "step-json",
        _step_json,
        lambda: [b'{"accuracy":0.5,"name":"x","n":3,"ok":true,"none":null}', b"{}"],
        _GATE,
        json=True,
    ),
)
