# SPDX-License-Identifier: Apache-2.0
"""What a hostile combiner sends as a model, and a hostile step as an update: one row for each attack.

The control of a row is a careless reader, written here from what common libraries do: `naive` says whether it is taken in by the
same bytes.  So a row that is refused is refused because the gate looked, and not because the file was harmless.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import posixpath
import stat
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.unit.step.models import container, npy, npz, safetensors, zipped

MIB = 1 << 20
F4 = struct.pack("<6f", *range(6))
GOOD = npz({"0": npy("<f4", (2, 3), F4), "1": npy("<i8", (), bytes(8))})
RAN: list[str] = []  # what the code in a model did when it ran


@dataclass(frozen=True)
class Hostile:
    """`code`: how the gate refuses it.  `update`: it is what a step wrote, and the model received was `received`."""

    attack: str
    data: bytes
    code: str
    naive: Callable[[bytes], bool]
    update: bool = False
    received: bytes = GOOD


class Payload:
    """Unpickling it runs code; here the code only says that it ran."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("import tests.attack.hostile_models as m; m.RAN.append('ran')",))


# --- careless readers ---------------------------------------------------------------------------------------------


def ran(act: Callable[[], object]) -> bool:
    """Whether code from the model ran."""
    RAN.clear()
    act()
    return bool(RAN)


def unpickles(data: bytes) -> bool:
    return ran(lambda: pickle.loads(data))


def unpickles_entry(name: str) -> Callable[[bytes], bool]:
    """A reader that unpickles one entry of an archive, at `skip` bytes into it."""
    return lambda data: unpickles(zipfile.ZipFile(io.BytesIO(data)).read(name))


def unpickles_objects(data: bytes) -> bool:
    """numpy with allow_pickle=True: what follows the header of an array of objects."""
    raw = zipfile.ZipFile(io.BytesIO(data)).read("0.npy")
    return unpickles(raw[10 + int.from_bytes(raw[8:10], "little") :])


def evaluates_header(data: bytes) -> bool:
    """An npy reader that evaluates the header, which is a Python literal when it is honest."""
    raw = zipfile.ZipFile(io.BytesIO(data)).read("0.npy")
    return ran(lambda: eval(raw[10:].split(b"\n")[0].strip()))


def streamed_names(data: bytes) -> list[str]:
    """A reader that goes from local header to local header and never sees the directory, as one of a pipe must."""
    names, at = [], 0
    while data[at : at + 4] == b"PK\x03\x04":
        packed, name_bytes, extra_bytes = struct.unpack_from("<L4x2H", data, at + 18)
        names.append(data[at + 30 : at + 30 + name_bytes].decode())
        at += 30 + name_bytes + extra_bytes + packed
    return names


def two_readers_differ(data: bytes) -> bool:
    return streamed_names(data) != [item.filename for item in zipfile.ZipFile(io.BytesIO(data)).infolist()]


def takes_the_last(data: bytes) -> bool:
    """Two members of one name, and zipfile gives the second without a word."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    return len(archive.infolist()) > len(archive.NameToInfo)


def follows_unicode_path(data: bytes) -> bool:
    """A reader of Info-ZIP's field takes another name than one that does not know it."""
    extra = zipfile.ZipFile(io.BytesIO(data)).infolist()[0].extra
    kind, length = struct.unpack_from("<2H", extra)
    return bool(kind == 0x7075 and extra[9 : 4 + length] == b"run.npy")


def first_end_record_wins(data: bytes) -> bool:
    """A reader that looks for the end record from the front finds another directory than one that looks from the end."""
    first, last = data.find(b"PK\x05\x06"), data.rfind(b"PK\x05\x06")
    return first != last and data[first + 16 : first + 20] != data[last + 16 : last + 20]


def ignores_zip64(data: bytes) -> bool:
    """A reader that takes the end record at its word counts other entries than one that follows the locator."""
    at = data.rfind(b"PK\x05\x06")
    return bool(struct.unpack_from("<H", data, at + 10)[0] != len(zipfile.ZipFile(io.BytesIO(data)).infolist()))


def inflates(data: bytes) -> bool:
    """More than a hundred times its size comes out."""
    return sum(item.file_size for item in zipfile.ZipFile(io.BytesIO(data)).infolist()) > 100 * len(data)


def inflates_more_than_said(data: bytes) -> bool:
    item = zipfile.ZipFile(io.BytesIO(data)).infolist()[0]
    start = 30 + len(item.filename) + struct.unpack_from("<H", data, 28)[0]
    return len(zlib.decompress(data[start : start + item.compress_size], -15)) > 1000 * item.file_size


def carries_a_rest(data: bytes) -> bool:
    """Bytes after the end of the deflate stream, which an inflater passes over in silence."""
    item = zipfile.ZipFile(io.BytesIO(data)).infolist()[0]
    start = 30 + len(item.filename) + struct.unpack_from("<H", data, 28)[0]
    inflater = zlib.decompressobj(-15)
    inflater.decompress(data[start : start + item.compress_size])
    return inflater.eof and inflater.unused_data == SMUGGLED


def leaves_the_folder(data: bytes) -> bool:
    names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    return any(not posixpath.normpath(posixpath.join("/model", name)).startswith("/model/") for name in names)


def makes_a_link(data: bytes) -> bool:
    """An unpacker that heeds the modes in the directory makes a symbolic link."""
    return any(stat.S_ISLNK(item.external_attr >> 16) for item in zipfile.ZipFile(io.BytesIO(data)).infolist())


def counts_bytes_twice(data: bytes) -> bool:
    first, second = zipfile.ZipFile(io.BytesIO(data)).infolist()
    return first.header_offset == second.header_offset


def walks_for_ever(data: bytes) -> bool:
    """More steps than the file has bits."""
    left = 8 * len(data)

    def visit(value: Any) -> None:
        nonlocal left
        left -= 1
        for item in value if left > 0 else ():
            visit(item)

    visit(pickle.loads(zipfile.ZipFile(io.BytesIO(data)).read("a/data.pkl")))
    return left <= 0


def json_takes_the_last(data: bytes) -> bool:
    (length,) = struct.unpack_from("<Q", data)
    return bool(json.loads(data[8 : 8 + length])["a"]["dtype"] == "F64")


def shares_bytes(data: bytes) -> bool:
    """A reader that slices by the offsets gives two arrays the same bytes."""
    (length,) = struct.unpack_from("<Q", data)
    spans = [entry["data_offsets"] for entry in json.loads(data[8 : 8 + length]).values()]
    return bool(spans[0][1] > spans[1][0])


def allocates(data: bytes) -> bool:
    """A reader that makes room for what the header says before it looks."""
    return struct.unpack_from("<Q", data)[0] > sys.maxsize // 2 or b"1099511627776, 1099511627776" in data


def takes_any_update(data: bytes) -> bool:
    """A combiner that averages what comes has a NaN, an infinity or another shape in its model from now on."""
    raw = zipfile.ZipFile(io.BytesIO(data)).read("0.npy")
    values = struct.unpack(f"<{len(raw[128:]) // 4}f", raw[128:])
    return not all(map(math.isfinite, values)) or len(values) != len(F4) // 4


def hides_one_of_two(data: bytes) -> bool:
    """A checker that keeps arrays by their path looks at one of the two, and the infinity is in the other."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    return struct.unpack("<f", archive.read("a/data/0"))[0] == math.inf and archive.read("a/data/1") == bytes(4)


def has_more_than_arrays(data: bytes) -> bool:
    return zipfile.ZipFile(io.BytesIO(data)).read("a/data/7") == SMUGGLED


# --- hostile files ------------------------------------------------------------------------------------------------

SMUGGLED = b"name;diagnosis;" * 4


def torch(pickled: bytes, **storages: bytes) -> bytes:
    return zipped({"a/data.pkl": pickled, **{f"a/data/{key[1:]}": data for key, data in storages.items()}})


def storage(key: str) -> bytes:
    return b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x00" + key.encode() + b"X\x03\x00\x00\x00cpuK\x01tQ"


def tensor(key: str) -> bytes:
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage(key) + b"K\x00K\x01\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<L", len(value)) + value.encode()


ONE_TENSOR = b"\x80\x02}(" + text("w") + tensor("0") + b"u."
TWO_OF_ONE_PATH = b"\x80\x02}(" + text("a") + b"}(" + text("b") + tensor("0") + b"u" + text("a.b") + tensor("1") + b"u."
BY_MEMO = (
    b"\x80\x04\x8c\x08builtinsq\x00\x8c\x04execq\x01h\x00h\x01\x93" + pickle.dumps(Payload().__reduce__()[1], 2)[2:-1] + b"R."
)


def laughs() -> bytes:
    """Twelve lists, each of which holds the one before ten times."""
    body = b"]q\x00"
    for level in range(1, 13):
        body += b"](" + b"h" + bytes((level - 1,)) + (b"h" + bytes((level - 1,))) * 9 + b"eq" + bytes((level,))
    return torch(b"\x80\x02" + body + b".")


def with_hidden_first() -> bytes:
    """GOOD, with an entry before its first one that the directory does not know."""
    hidden = zipped({"hidden.npy": npy("<f4", (1,), bytes(4))})
    hidden = hidden[: hidden.find(b"PK\x01\x02")]
    return hidden + moved(GOOD, len(hidden))


def moved(data: bytes, by: int) -> bytes:
    """An archive that lies `by` bytes further back."""
    result, at = bytearray(data), data.find(b"PK\x01\x02")
    end = data.rfind(b"PK\x05\x06")
    struct.pack_into("<L", result, end + 16, at + by)
    while data[at : at + 4] == b"PK\x01\x02":
        lengths = struct.unpack_from("<3H", data, at + 28)
        (offset,) = struct.unpack_from("<L", data, at + 42)
        struct.pack_into("<L", result, at + 42, offset + by)
        at += 46 + sum(lengths)
    return bytes(result)


def with_attributes(extra: bytes = b"", mode: int = 0, target: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        item = zipfile.ZipInfo("0.npy")
        item.extra, item.external_attr = extra, mode << 16
        archive.writestr(item, target or npy("<f4", (2, 3), F4))
    return buffer.getvalue()


def unicode_path() -> bytes:
    body = b"\x01" + struct.pack("<L", zlib.crc32(b"0.npy")) + b"run.npy"
    return with_attributes(struct.pack("<2H", 0x7075, len(body)) + body)


def second_end_record() -> bytes:
    """In the comment of the last: one of an empty archive."""
    data = bytearray(GOOD)
    end = GOOD.rfind(b"PK\x05\x06")
    struct.pack_into("<H", data, end + 20, 22)
    return bytes(data) + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0, 0, 0, len(data), 0)


def contradicting_zip64() -> bytes:
    """The ZIP64 end record is honest; the end record says: one entry."""
    end = GOOD.rfind(b"PK\x05\x06")
    _, _, _, _, count, length, start, _ = struct.unpack("<4s4H2LH", GOOD[end:])
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, length, start)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1)
    return GOOD[:end] + record + locator + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, length, start, 0)


def bomb(announced: int | None = None) -> bytes:
    """40 MiB of zeros in 40 KiB; with `announced` it says that it is so small."""
    data = bytearray(npz({"0": npy("<f4", (10 * MIB,), bytes(40 * MIB))}, zipfile.ZIP_DEFLATED))
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)) if announced else ():
        struct.pack_into("<L", data, data.find(signature) + offset, announced)
    return bytes(data)


def with_rest() -> bytes:
    """A deflated entry that goes on after the end of its stream."""
    raw = npy("<f4", (2, 3), F4)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(raw) + packer.flush() + SMUGGLED
    head = struct.pack("<5H3L2H", 20, 0, 8, 0, 0x21, zlib.crc32(raw), len(packed), len(raw), 5, 0)
    local = b"PK\x03\x04" + head + b"0.npy" + packed
    entry = b"PK\x01\x02" + struct.pack("<H", 20) + head + struct.pack("<3H2L", 0, 0, 0, 0, 0) + b"0.npy"
    return local + entry + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(entry), len(local), 0)


def overlapping() -> bytes:
    """Two directory entries, one and the same bytes."""
    data = zipped({"0.npy": npy("<f4", (1,), bytes(4)), "1.npy": npy("<f4", (1,), bytes(4))})
    second = data.rfind(b"PK\x01\x02")
    return data[: second + 42] + bytes(4) + data[second + 46 :]


def duplicate() -> bytes:
    return GOOD.replace(b"1.npy", b"0.npy")


def update(*values: float) -> bytes:
    return npz({"0": npy("<f4", (len(values),), struct.pack(f"<{len(values)}f", *values)), "1": npy("<i8", (), bytes(8))})


def tensors(first: list[int], second: list[int], data: int) -> bytes:
    header = {
        name: {"dtype": "F32", "shape": [(span[1] - span[0]) // 4], "data_offsets": span}
        for name, span in (("a", first), ("b", second))
    }
    return safetensors(header, bytes(data))


def twice_in_json() -> bytes:
    one = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})
    other = one.replace("F32", "F64").replace("[2]", "[1]")
    header = f"{one[:-1]}, {other[1:]}".encode()
    return struct.pack("<Q", len(header)) + header + bytes(8)


SIX = npz({"0": npy("<f4", (6,), F4), "1": npy("<i8", (), bytes(8))})
HEADER = "__import__('tests.attack.hostile_models').attack.hostile_models.RAN.append('ran')"

MODELS: tuple[Hostile, ...] = (
    Hostile("a pickle that runs code", pickle.dumps(Payload()), "model-format-denied", unpickles),
    Hostile("a pickle in the container", container(pickle.dumps(Payload())), "model-format-denied",
            unpickles_entry("training_model.bin")),
    Hostile("code in an array of objects", npz({"0": npy("|O", (1,), pickle.dumps(Payload()))}), "container-invalid",
            unpickles_objects),
    Hostile("code in the pickle of a torch archive", torch(pickle.dumps(Payload(), 2)), "model-format-denied",
            unpickles_entry("a/data.pkl")),
    Hostile("the same, its name put together from the memo", torch(BY_MEMO), "model-format-denied",
            unpickles_entry("a/data.pkl")),
    Hostile("a second pickle beside the weights", zipped({"a/data.pkl": ONE_TENSOR, "a/data/0": bytes(4),
            "a/constants.pkl": pickle.dumps(Payload())}), "container-invalid", unpickles_entry("a/constants.pkl")),
    Hostile("code in the header of an array", npz({"0": npy("", (), b"", header=HEADER)}), "container-invalid", evaluates_header),
    Hostile("an opaque model beside the weights", zipped({"metadata.json": b"{}", "training_model.bin": GOOD,
            "inference_model.bin": pickle.dumps(Payload())}), "model-format-denied", unpickles_entry("inference_model.bin")),
    Hostile("an entry that the directory hides", with_hidden_first(), "container-invalid", two_readers_differ),
    Hostile("another name in the entry's own header", GOOD.replace(b"1.npy", b"2.npy", 1), "container-invalid",
            two_readers_differ),
    Hostile("two members of one name", duplicate(), "container-invalid", takes_the_last),
    Hostile("a second name in an extra field", unicode_path(), "container-invalid", follows_unicode_path),
    Hostile("a second end record in the comment", second_end_record(), "container-invalid", first_end_record_wins),
    Hostile("a ZIP64 end record that contradicts", contradicting_zip64(), "container-invalid", ignores_zip64),
    Hostile("a name that leaves the folder", GOOD.replace(b"1.npy", b"../.n"), "container-invalid", leaves_the_folder),
    Hostile("an entry that is a symbolic link", with_attributes(mode=stat.S_IFLNK | 0o777, target=b"/etc/passwd"),
            "container-invalid", makes_a_link),
    Hostile("a bomb", bomb(), "limit-model", inflates),
    Hostile("a bomb that says it is small", bomb(136), "container-invalid", inflates_more_than_said),
    Hostile("entries that share their bytes", overlapping(), "container-invalid", counts_bytes_twice),
    Hostile("lists that hold one another", laughs(), "limit-model", walks_for_ever),
    Hostile("a shape of 2^80 numbers", npz({"0": npy("<f4", (2**40, 2**40), F4)}), "container-invalid", allocates),
    Hostile("a header of 2^63 bytes", struct.pack("<Q", 2**63) + b"{}" + bytes(8), "model-format-denied", allocates),
    Hostile("two arrays over the same bytes", tensors([0, 8], [4, 12], 12), "container-invalid", shares_bytes),
    Hostile("one array described twice", twice_in_json(), "container-invalid", json_takes_the_last),
    Hostile("a NaN in the update", update(1, 2, math.nan, 4, 5, 6), "output-not-finite", takes_any_update, True, SIX),
    Hostile("an infinity in the update", update(1, 2, 3, 4, 5, -math.inf), "output-not-finite", takes_any_update, True, SIX),
    Hostile("an update of another shape", update(1, 2, 3), "output-shape", takes_any_update, True, SIX),
    Hostile("an infinity behind another array's name", torch(TWO_OF_ONE_PATH, _0=struct.pack("<f", math.inf), _1=bytes(4)),
            "output-invalid", hides_one_of_two, True, torch(ONE_TENSOR, _0=bytes(4))),
    Hostile("numbers that no array has", torch(ONE_TENSOR, _0=bytes(4), _7=SMUGGLED), "output-invalid", has_more_than_arrays,
            True, torch(ONE_TENSOR, _0=bytes(4))),
    Hostile("bytes after the end of a deflate stream", with_rest(), "output-invalid", carries_a_rest, True,
            npz({"0": npy("<f4", (2, 3), F4)})),
)  # fmt: skip

# Honest files of each kind, which the same rules take.
HONEST: dict[str, bytes] = {
    "npz": GOOD,
    "npz, deflated": npz({"0": npy("<f4", (2, 3), F4)}, zipfile.ZIP_DEFLATED),
    "container": container(GOOD),
    "torch": torch(ONE_TENSOR, _0=bytes(4)),
    "safetensors": tensors([0, 8], [8, 12], 12),
    "update": update(1, 2, 3, 4, 5, 6),
}
