# SPDX-License-Identifier: Apache-2.0
"""No parser takes more than its share: four times the bytes cost about four times the time, and the largest input has a bound.

Processor time of this thread, the least of several runs, so that a loaded machine changes nothing.
"""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Callable

import pytest

from scaleoutd.agent.der import certificate_facts, first_of_pem
from scaleoutd.agent.tokens import claims_of
from scaleoutd.core import strictjson
from scaleoutd.core.checkpoint import complete_bytes, parse_note, split_notes
from scaleoutd.core.envelope import parse_envelope
from scaleoutd.core.ignore import IgnoreRules
from scaleoutd.core.project import MAX_COMMAND_CHARS, parse_project
from scaleoutd.core.settings import check_settings
from scaleoutd.core.strictyaml import load_yaml
from scaleoutd.errors import ScaleoutError
from scaleoutd.step import npz, safetensors, torchzip
from scaleoutd.step.archive import Archive
from tests.fuzz.targets.models import Memory
from tests.unit.step import models

GROWTH = 4
MOST = 2.5  # times what is linear: sorting, caches and the allocator take their part
KIB = 1024


def _json(data: bytes) -> None:
    strictjson.parse(data, max_bytes=1 << 26, allow_floats=True)


def _integers(data: bytes) -> None:
    strictjson.parse(data, max_bytes=1 << 26)


def _canonical(data: bytes) -> None:
    strictjson.parse_canonical(data, max_bytes=1 << 26)


def _yaml(data: bytes) -> None:
    load_yaml(data, name="x", root="x")


def _envelope(data: bytes) -> None:
    parse_envelope(data)


def _pem(data: bytes) -> None:
    first_of_pem(data)


def _der(data: bytes) -> None:
    certificate_facts(data)


def _notes(data: bytes) -> None:
    complete_bytes(data)
    for note in split_notes(data):
        parse_note(note)


def _archive(data: bytes) -> None:
    Archive(Memory(data), max_entries=1 << 20, max_inflated_bytes=1 << 40)


def _npy(data: bytes) -> None:
    npz.read_array("a", Memory(data))


def _safetensors(data: bytes) -> None:
    safetensors.read_arrays(Memory(data), 1 << 20)


def _torch(data: bytes) -> None:
    torchzip._Machine().run(data)


def _settings(data: bytes) -> None:
    check_settings(data.decode(), {})


def _token(data: bytes) -> None:
    claims_of(data.decode())


def _ignore(data: bytes) -> None:
    IgnoreRules(["*a*a*a*a*a*b", "**/*a*/**/b", "[a-z]*[a-z]*x"]).ignores(data.decode(), is_folder=False)


# Parser, input of a size, and the size to start from.  Most are refused, and only after all of them was looked at.
SHAPES: dict[str, tuple[Callable[[bytes], None], Callable[[int], bytes], int]] = {
    "json: open brackets": (_json, lambda n: b"[" * n, 256 * KIB),
    "json: brackets in texts": (_json, lambda n: b'["' + b"[" * n + b'"]', 256 * KIB),
    "json: a text that is never closed": (_json, lambda n: b'"' + b'\\"' * (n // 2), 256 * KIB),
    "json: many open texts after brackets": (_json, lambda n: b"[" * 40 + b'"\\' * (n // 2), 256 * KIB),
    "json: one long integer": (_integers, lambda n: b"1" * n, 256 * KIB),
    "json: one long float": (_json, lambda n: b"1." + b"1" * n, 256 * KIB),
    "json: one long exponent": (_json, lambda n: b"1e" + b"9" * n, 256 * KIB),
    "json: many floats": (_json, lambda n: b"[" + b"1.234567890123,".ljust(15) * (n // 15) + b"1]", 256 * KIB),
    "json: many keys": (_json, lambda n: b"{" + b",".join(b'"%07d":1' % i for i in range(n // 12)) + b"}", 256 * KIB),
    "json: one key twice, last": (
        _json, lambda n: b"{" + b",".join(b'"%07d":1' % i for i in range(n // 12)) + b',"0000000":1}', 256 * KIB
    ),
    "json: white space": (_json, lambda n: b" " * n + b"1", 256 * KIB),
    "json: canonical, many keys": (
        _canonical, lambda n: b"{" + b",".join(b'"%07d":1' % i for i in range(n // 12)) + b"}", 256 * KIB
    ),
    "envelope: empty arrays": (_envelope, lambda n: b'{"payload":[' + b"[]," * (n // 3) + b"[]]}", 1024 * KIB),
    "envelope: one payload": (_envelope, lambda n: b'{"payload":"' + b"A" * n + b'"}', 1024 * KIB),
    "yaml: one long text": (_yaml, lambda n: b"a: " + b"x" * n, 32 * KIB),
    "yaml: many keys": (_yaml, lambda n: b"".join(b"k%06d: 1\n" % i for i in range(n // 11)), 32 * KIB),
    "yaml: open flow sequences": (_yaml, lambda n: b"a: " + b"[" * n, 32 * KIB),
    "yaml: flow items": (_yaml, lambda n: b"a: [" + b"x, " * (n // 3) + b"x]", 32 * KIB),
    "yaml: open flow mappings in keys": (_yaml, lambda n: b"a: " + b"{? " * (n // 3), 32 * KIB),
    "yaml: indents": (_yaml, lambda n: b"a:\n" + b"- " * (n // 2), 32 * KIB),
    "yaml: comments": (_yaml, lambda n: b"# c\n" * (n // 4) + b"a: 1\n", 32 * KIB),
    "yaml: one folded block": (_yaml, lambda n: b"a: >\n" + b"  x\n" * (n // 4), 32 * KIB),
    "yaml: one quoted text of escapes": (_yaml, lambda n: b'a: "' + b"\\x41" * (n // 4) + b'"', 32 * KIB),
    "yaml: plain lines": (_yaml, lambda n: b"a: x\n" + b"  x\n" * (n // 4), 32 * KIB),
    "yaml: colons": (_yaml, lambda n: b"a: " + b"b:" * (n // 2), 32 * KIB),
    "pem: blanks": (_pem, lambda n: b"-----BEGIN CERTIFICATE-----" + b" " * n, 256 * KIB),
    "pem: beginnings": (
        _pem, lambda n: b"-----BEGIN CERTIFICATE-----" * (n // 27), 256 * KIB
    ),
    "der: one object identifier": (
        _der, lambda n: b"\x30\x84" + n.to_bytes(4, "big") + b"\xff" * n, 256 * KIB
    ),
    "checkpoints: empty lines": (_notes, lambda n: b"\n" * n, 256 * KIB),
    "checkpoints: no end": (_notes, lambda n: b"a\n" * (n // 2), 256 * KIB),
    "archive: end records": (_archive, lambda n: b"PK\x05\x06" * (n // 4), 256 * KIB),
    "archive: entries": (_archive, lambda n: models.zipped({f"{i}.npy": b"" for i in range(n // 100)}), 128 * KIB),
    "npy: one header": (
        _npy, lambda n: b"\x93NUMPY\x01\x00" + n.to_bytes(2, "little") + b"{'shape': (" + b"1," * (n // 2), 4 * KIB
    ),
    "safetensors: many arrays": (
        _safetensors,
        lambda n: models.safetensors(
            {str(i): {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(n // 60)}, b""
        ),
        128 * KIB,
    ),
    "torch: marks": (_torch, lambda n: b"\x80\x02" + b"(" * n + b"t" * n + b".", 32 * KIB),
    "torch: nested tuples": (_torch, lambda n: b"\x80\x02)" + b"\x85" * n + b".", 32 * KIB),
    "torch: one list": (_torch, lambda n: b"\x80\x02](" + b"K\x01" * n + b"e.", 32 * KIB),
    "settings: one text": (_settings, lambda n: b'{"a":"' + b"x" * n + b'"}', 7 * KIB),
    "token: points": (_token, lambda n: b"." * n, 4 * KIB),
    "ignore: a path that nearly fits": (_ignore, lambda n: b"a" * n, 256),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_four_times_the_bytes_cost_about_four_times_the_time(name: str) -> None:
    parse, make, size = SHAPES[name]
    small, large = make(size), make(GROWTH * size)
    # Often: somebody else's work on this processor's caches can spoil a pair, and what is quadratic fails every one.
    ratios = []
    for _ in range(10):
        base, grown = _least_s(parse, small), _least_s(parse, large)
        ratios.append((grown - 0.002) / max(base, 0.0005))
        if ratios[-1] <= GROWTH * MOST:
            return
    raise AssertionError(f"{name}: {GROWTH} times the bytes took {min(ratios):.1f} times as long")


def _least_s(parse: Callable[[bytes], None], data: bytes) -> float:
    times = []
    gc.disable()  # its rounds cost what the other tests have left in this process, not what is parsed
    try:
        for _ in range(3):
            started = time.thread_time()
            try:
                parse(data)
            except ScaleoutError:
                pass
            times.append(time.thread_time() - started)
            if times[-1] > 1:
                break
    finally:
        gc.enable()
    return min(times)


@pytest.mark.parametrize(
    ("parse", "data", "most_mib"),
    [
        (_json, b"[" + b"[]," * 2_500_000 + b"1]", 32),
        (_envelope, b"[" + b"{}," * 5_000_000 + b"1]", 64),
        (_yaml, b"? " + b"k" * 100_000 + b"\n: [" + b"1," * 20_000 + b"1]\n", 64),
    ],
    ids=["json of empty arrays", "envelope of empty objects", "yaml with a long key above many values"],
)
def test_a_small_text_does_not_become_a_large_value(parse: Callable[[bytes], None], data: bytes, most_mib: int) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ScaleoutError):
            parse(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most_mib << 20, f"{peak >> 20} MiB"


def test_the_longest_command_is_split_in_a_moment() -> None:
    started = time.thread_time()
    data = b"entry_points: {train: {command: '" + b"a" * (MAX_COMMAND_CHARS - 1) + b"'}}\n"
    with pytest.raises(ScaleoutError):
        parse_project(data)  # an argument is shorter than that
    assert time.thread_time() - started < 3
