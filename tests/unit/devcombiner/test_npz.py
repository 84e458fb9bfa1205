# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import struct
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaleoutd.devcombiner.npz import MAGIC, TYPECODES, flat, read_npy, read_npz, write_npy, write_npz
from scaleoutd.errors import FormatError


def npy(header: str, body: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """An npy file with any header."""
    form = "<H" if version == b"\x01\x00" else "<I"
    return MAGIC + version + struct.pack(form, len(header)) + header.encode() + body


def archive_of(*members: tuple[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return out.getvalue()


# Made by numpy 2.4.6: save(array([[1.5, -2.0]], "<f4")), save(array(7, "u1")), write_array(array([1, 2], ">i4"), (2, 0)).
NUMPY_F4 = (
    bytes.fromhex("934e554d505901007600")
    + b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }".ljust(117)
    + bytes.fromhex("0a0000c03f000000c0")
)
NUMPY_U1 = (
    bytes.fromhex("934e554d505901007600")
    + b"{'descr': '|u1', 'fortran_order': False, 'shape': (), }".ljust(117)
    + bytes.fromhex("0a07")
)
NUMPY_BIG_ENDIAN_V2 = (
    bytes.fromhex("934e554d5059020074000000")
    + b"{'descr': '>i4', 'fortran_order': False, 'shape': (2,), }".ljust(115)
    + bytes.fromhex("0a0000000100000002")
)


def test_reads_what_numpy_wrote() -> None:
    assert read_npy(NUMPY_F4) == flat("f4", (1, 2), [1.5, -2.0])
    assert read_npy(NUMPY_U1) == flat("u1", (), [7])
    assert read_npy(NUMPY_BIG_ENDIAN_V2) == flat("i4", (2,), [1, 2])


@pytest.mark.parametrize("kind", TYPECODES)
@pytest.mark.parametrize(("shape", "count"), [((), 1), ((3,), 3), ((2, 2), 4), ((0, 5), 0)])
@pytest.mark.parametrize("deflate", [False, True])
def test_round_trip_keeps_names_order_types_and_numbers(kind: str, shape: tuple[int, ...], count: int, deflate: bool) -> None:
    numbers: list[float] | list[int] = [0.5 * i for i in range(count)] if kind[0] == "f" else list(range(count))
    arrays = {"b": flat(kind, shape, numbers), "a": flat("f8", (1,), [1e300])}
    back = read_npz(write_npz(arrays, deflate=deflate))
    assert back == arrays
    assert list(back) == ["b", "a"]


def test_data_start_is_aligned_as_numpy_demands() -> None:
    data = write_npy(flat("f8", (1,), [1.0]))
    assert (len(data) - 8) % 64 == 0


@pytest.mark.parametrize(
    ("attack", "data"),
    [
        ("object array, a pickle", npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"cos\nsystem\n")),
        ("structured type", npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", b"\0" * 4)),
        ("Fortran order", npy("{'descr': '<f4', 'fortran_order': True, 'shape': (1,)}", b"\0" * 4)),
        ("too few numbers", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", b"\0" * 4)),
        ("bytes after the numbers", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", b"\0" * 5)),
        ("negative side", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}")),
        ("a bool as side", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (True,)}", b"\0" * 4)),
        ("a call in the header", npy("__import__('os').system('true')")),
        ("extra key", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'x': 1}", b"\0" * 4)),
        ("header longer than the file", MAGIC + b"\x02\x00" + struct.pack("<I", 2**31)),
        ("version 3", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", b"\0" * 4, b"\x03\x00")),
        ("nothing", b""),
        ("magic only", MAGIC),
    ],
)
def test_npy_refuses(attack: str, data: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        read_npy(data)
    assert caught.value.code == "container-invalid"


def test_npz_refuses_a_bomb_before_it_inflates() -> None:
    bomb = archive_of(("a.npy", b"\0" * 1_000_000))
    assert len(bomb) < 10_000
    with pytest.raises(FormatError, match="inflates to 1000000 bytes"):
        read_npz(bomb, max_bytes=999_999)


@pytest.mark.parametrize("data", [b"", b"no zip", archive_of(), archive_of(("a.txt", b"x")), archive_of(("a.npy", b"x"))])
def test_npz_refuses_what_is_no_archive_of_arrays(data: bytes) -> None:
    with pytest.raises(FormatError):
        read_npz(data)


@settings(max_examples=300)
@given(st.data())
def test_npz_with_any_byte_changed_is_read_or_refused_and_never_crashes(data: st.DataObject) -> None:
    good = bytearray(write_npz({"a": flat("f4", (2,), [1.0, 2.0])}, deflate=data.draw(st.booleans())))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(good)))
    try:
        read_npz(bytes(good[: cut or len(good)]))
    except FormatError:
        pass
