# SPDX-License-Identifier: Apache-2.0
"""Hostile and honest models, read by the confined inspector of a real launcher, as root or as whoever runs the tests."""

from __future__ import annotations

import array
import os
import pickle
import struct
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scaleoutd.core.plan import ModelFacts, ModelFormat, ModelRules
from scaleoutd.errors import ScaleoutError
from scaleoutd.step.arrays import FLOATS, chunk_is_finite
from tests.step_client import MIB, StepClient, plan_for
from tests.unit.step.models import container, npy, npz, safetensors, zipped

FORMATS: tuple[ModelFormat, ...] = ("npz", "safetensors", "torch")
RULES = ModelRules(FORMATS, 64 * MIB, max_arrays=100, max_inflated_bytes=256 * MIB)
F4 = array.array("f", range(6)).tobytes()
GOOD = npz({"0": npy("<f4", (2, 3), F4), "1": npy("<i8", (), bytes(8))})


@pytest.fixture(scope="module")
def client() -> Iterator[StepClient]:
    with StepClient() as found:
        yield found


def inspect(client: StepClient, data: bytes, tmp_path: Path, rules: ModelRules = RULES, **limits: int) -> ModelFacts:
    path = tmp_path / "model"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        return client.inspect(plan_for(tmp_path / "home/scratch", ["true"], limits=limits), rules, fd)
    finally:
        os.close(fd)


def code_of(client: StepClient, data: bytes, tmp_path: Path, rules: ModelRules = RULES) -> str:
    try:
        inspect(client, data, tmp_path, rules)
    except ScaleoutError as exc:
        return exc.code
    return "ok"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("inner", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_npz_has_the_same_form_however_it_is_packed(client: StepClient, tmp_path: Path, method: int, inner: int) -> None:
    weights = npz({"0": npy("<f4", (2, 3), F4), "1": npy("<i8", (), bytes(8))}, inner)
    bare, packed = inspect(client, weights, tmp_path), inspect(client, container(weights, method), tmp_path)
    assert (bare.container, packed.container) == ("none", "zip")
    assert (packed.model_id, packed.helper_type) == ("model-1", "numpyhelper")
    assert bare.arrays_sha256 == packed.arrays_sha256 == inspect(client, GOOD, tmp_path).arrays_sha256
    assert (bare.arrays, bare.parameters, bare.format) == (2, 7, "npz")


def test_safetensors(client: StepClient, tmp_path: Path) -> None:
    header = {
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        "a": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]},
    }
    facts = inspect(client, safetensors({**header, "__metadata__": {"format": "pt"}}, bytes(12)), tmp_path)
    assert (facts.format, facts.arrays, facts.parameters) == ("safetensors", 2, 4)


def _entry(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


def _bomb() -> bytes:
    """One entry that says 8 bytes and inflates to 200 MiB."""
    data = bytearray(npz({"0": npy("<f4", (50 * MIB,), bytes(200 * MIB))}, zipfile.ZIP_DEFLATED))
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = data.find(signature)
        data[at + offset : at + offset + 4] = struct.pack("<I", 136)
    return bytes(data)


def _torch(pickled: bytes, storage: bytes = bytes(8)) -> bytes:
    return zipped({"archive/data.pkl": pickled, "archive/version": b"3\n", "archive/data/0": storage})


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("true",))


def _overlapping() -> bytes:
    """Two directory entries that share one file's bytes."""
    data = zipped({"a.npy": npy("<f4", (1,), bytes(4)), "b.npy": npy("<f4", (1,), bytes(4))})
    second = data.rfind(b"PK\x01\x02")
    return data[: second + 42] + bytes(4) + data[second + 46 :]


HOSTILE = {
    "empty": (b"", "model-format-denied"),
    "junk": (os.urandom(1000) + b"x", "model-format-denied"),
    "pickle": (pickle.dumps({"w": [1.0]}), "model-format-denied"),
    "pickle in a container": (container(pickle.dumps(1)), "model-format-denied"),
    "cut off": (GOOD[:-30], "container-invalid"),
    "cut off in the numbers": (npz({"0": npy("<f4", (9,), F4)}), "container-invalid"),
    "appended bytes": (GOOD + b"x" * 70000, "container-invalid"),
    "no arrays": (zipped({}), "container-invalid"),
    "foreign entry": (zipped({"0.npy": npy("<f4", (2, 3), F4), "run.py": b"x"}), "container-invalid"),
    "object array": (npz({"0": npy("|O", (1,), pickle.dumps([1]))}), "container-invalid"),
    "record array": (npz({"0": npy("", (1,), F4, header="{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (6,), }")}),
                     "container-invalid"),
    "code in the header": (npz({"0": npy("", (1,), F4, header="__import__('os').system('id')")}), "container-invalid"),
    "deep header": (npz({"0": npy("", (1,), F4, header="(" * 9000)}), "container-invalid"),
    "huge header": (npz({"0": npy("", (1,), F4, header=" " * 60000)}), "container-invalid"),
    "negative shape": (npz({"0": npy("", (), F4, header="{'descr': '<f4', 'fortran_order': False, 'shape': (-6,), }")}),
                       "container-invalid"),
    "overflowing shape": (npz({"0": npy("<f4", (2**40, 2**40), F4)}), "container-invalid"),
    "too many arrays": (npz({str(n): npy("<f4", (), bytes(4)) for n in range(130)}), "limit-model"),
    "announced bomb": (npz({"0": npy("<f4", (80 * MIB,), bytes(320 * MIB))}, zipfile.ZIP_DEFLATED), "limit-model"),
    "hidden bomb": (_bomb(), "container-invalid"),
    "too large": (bytes(64 * MIB + 1), "limit-model"),
    "duplicate names": (GOOD.replace(b"1.npy", b"0.npy"), "container-invalid"),
    "dot-dot name": (GOOD.replace(b"1.npy", b"../.n"), "container-invalid"),
    "name differs from its header": (GOOD.replace(b"1.npy", b"2.npy", 1), "container-invalid"),
    "overlapping entries": (_overlapping(), "container-invalid"),
    "encrypted": (GOOD.replace(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"), "container-invalid"),
    "container version 3": (container(GOOD, _version=3), "container-invalid"),
    "container version true": (container(GOOD, _version=True), "container-invalid"),
    "container without weights": (zipped({"metadata.json": b"{}"}), "container-invalid"),
    "container with duplicate keys": (zipped({"metadata.json": b'{"a":1,"a":2}', "training_model.bin": GOOD}), "container-invalid"),  # noqa: E501
    "container with opaque files": (zipped({"metadata.json": b"{}", "training_model.bin": GOOD, "files/x": b"x"}), "model-format-denied"),  # noqa: E501
    "container with foreign entry": (zipped({"metadata.json": b"{}", "training_model.bin": GOOD, "x.py": b"x"}), "container-invalid"),  # noqa: E501
    "safetensors with a hole": (safetensors(_entry(data_offsets=[4, 12]), bytes(12)), "container-invalid"),
    "safetensors beyond its end": (safetensors(_entry(), bytes(4)), "container-invalid"),
    "safetensors with rest": (safetensors(_entry(), bytes(12)), "container-invalid"),
    "safetensors with wrong size": (safetensors(_entry(shape=[3]), bytes(8)), "container-invalid"),
    "safetensors with bool shape": (safetensors(_entry(shape=[True, 2]), bytes(8)), "container-invalid"),
    "safetensors of unknown type": (safetensors(_entry(dtype="OBJ"), bytes(8)), "container-invalid"),
    "torch with system": (_torch(pickle.dumps(_Evil(), 2)), "model-format-denied"),
    "torch with eval": (_torch(b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R."), "model-format-denied"),
    "torch with INST": (_torch(b"(S'id'\nios\nsystem\n."), "model-format-denied"),
    "torch with extension": (_torch(b"\x80\x02\x82\x01."), "model-format-denied"),
    "torch with stack underflow": (_torch(b"\x80\x02\x85\x85R."), "container-invalid"),
    "torch without end": (_torch(b"\x80\x02}"), "container-invalid"),
    "torch with a second pickle": (zipped({"a/data.pkl": b"\x80\x02}.", "a/constants.pkl": b"\x80\x02}."}), "container-invalid"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_model_is_refused(client: StepClient, tmp_path: Path, name: str) -> None:
    data, expected = HOSTILE[name]
    assert code_of(client, data, tmp_path) == expected


def _state_dictionary(functions: bytes = b"ctorch._utils\n_rebuild_tensor_v2\n") -> bytes:
    """What torch.save writes for {"w": a tensor of two floats}, protocol 2."""
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQ"
    tensor = functions + b"(" + storage + b"K\x00K\x02\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02ccollections\nOrderedDict\n)R(X\x01\x00\x00\x00w" + tensor + b"u."


def test_torch_state_dictionary(client: StepClient, tmp_path: Path) -> None:
    facts = inspect(client, _torch(_state_dictionary()), tmp_path)
    assert (facts.format, facts.arrays, facts.parameters) == ("torch", 1, 2)


def test_torch_tensor_beyond_its_storage_is_refused(client: StepClient, tmp_path: Path) -> None:
    assert code_of(client, _torch(_state_dictionary(), bytes(4)), tmp_path) == "container-invalid"


def test_pickle_and_raw_pass_only_by_name(client: StepClient, tmp_path: Path) -> None:
    rules = ModelRules(("pickle",), MIB)
    assert inspect(client, pickle.dumps(1), tmp_path, rules).format == "pickle"
    assert code_of(client, b"opaque", tmp_path, rules) == "model-format-denied"
    assert inspect(client, b"opaque", tmp_path, ModelRules(("raw",), MIB)).arrays_sha256 is None


def test_inspector_runs_out_of_time_and_the_launcher_goes_on(client: StepClient, tmp_path: Path) -> None:
    """16 MiB of deflated zeros that inflate to 16 GiB: the wall clock is the launcher's."""
    rules = ModelRules(("npz",), 64 * MIB, max_inflated_bytes=2**40)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    stretch = packer.compress(bytes(16 * MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    packed = stretch * 1000 + zlib.compressobj(9, zlib.DEFLATED, -15).flush()
    header = npy("<f4", (4 * 1000 * MIB,), b"")
    first = zlib.compressobj(0, zlib.DEFLATED, -15)
    packed = first.compress(header) + first.flush(zlib.Z_FULL_FLUSH) + packed
    size = len(header) + 16000 * MIB
    inner = _raw_zip(b"0.npy", packed, size)
    data = zipped({"metadata.json": b"{}", "training_model.bin": inner}, zipfile.ZIP_STORED)
    assert inspect(client, data, tmp_path, rules).parameters == 4000 * MIB  # only the header is read: no time at all
    outer = _raw_zip(b"training_model.bin", packed, size, also={b"metadata.json": b"{}"})
    start = time.monotonic()
    with pytest.raises(ScaleoutError) as caught:
        inspect(client, outer, tmp_path, rules, wall_clock_s=1)
    assert caught.value.code in ("limit-wall-clock", "model-format-denied")
    assert time.monotonic() - start < 30
    assert code_of(client, GOOD, tmp_path) == "ok"


def _raw_zip(name: bytes, packed: bytes, size: int, also: dict[bytes, bytes] | None = None) -> bytes:
    """A ZIP64 archive around a deflate stream made by hand."""
    body, directory, count = b"", b"", 0
    for key, data in (also or {}).items():
        crc = zlib.crc32(data)
        directory += (
            struct.pack(
                "<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, crc, len(data), len(data), len(key), 0, 0, 0, 0, 0, len(body)
            )
            + key
        )
        body += struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 0, 0, 0, crc, len(data), len(data), len(key), 0) + key + data
        count += 1
    big = 0xFFFFFFFF
    extra = struct.pack("<2H2Q", 1, 16, size, len(packed))
    directory += (
        struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 45, 45, 0, 8, 0, 0, 0, big, big, len(name), len(extra), 0, 0, 0, 0, len(body))
        + name
        + extra
    )
    body += struct.pack("<4s5H3L2H", b"PK\x03\x04", 45, 0, 8, 0, 0, 0, big, big, len(name), len(extra)) + name + extra + packed
    count += 1
    return body + directory + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(directory), len(body), 0)


@pytest.mark.parametrize("kind", FLOATS)
def test_every_infinity_and_nan_is_found(kind: str) -> None:
    width = FLOATS[kind].width
    code = {"f2": "<e", "f4": "<f", "f8": "<d", "bf2": "<f"}[kind]
    for value in (float("inf"), float("-inf"), float("nan")):
        bad = struct.pack(code, value)[-width:]
        for position in (0, 7, 99):
            numbers = [struct.pack(code, n * 0.5 - 20)[-width:] for n in range(100)]
            assert chunk_is_finite(b"".join(numbers), FLOATS[kind])
            numbers[position] = bad
            assert not chunk_is_finite(b"".join(numbers), FLOATS[kind])
            assert not chunk_is_finite(b"".join(item[::-1] for item in numbers), FLOATS[kind], big_endian=True)


def test_largest_finite_numbers_are_finite() -> None:
    for kind, raw in (
        ("f4", b"\xff\xff\x7f\x7f"),
        ("f8", b"\xff\xff\xff\xff\xff\xff\xef\x7f"),
        ("f2", b"\xff\x7b"),
        ("bf2", b"\x7f\x7f"),
    ):
        assert chunk_is_finite(raw * 8, FLOATS[kind])
