# SPDX-License-Identifier: Apache-2.0
"""The manifest: each refusal has its own code, and each has a control that is accepted."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleoutd.core.clock import Floors, Now, highest, raised, utc_text
from scaleoutd.core.envelope import STATEMENT_TYPE, serialise_envelope, sign_payload
from scaleoutd.core.manifest import (
    CHUNK_BYTES,
    MANIFEST_NAME,
    Expected,
    FileEntry,
    check_path,
    check_paths,
    manifest_payload,
    parse_manifest,
    verify_manifest,
)
from scaleoutd.errors import FormatError, ScaleoutError, VerificationError
from tests.unit.core.trust_samples import (
    ALICE,
    AT_MS,
    BOB,
    DAY_MS,
    MALLORY,
    NOW,
    ROOT_KEY,
    entry,
    keyid,
    make_manifest,
    make_root,
    signed,
)

ROOT = make_root()
FIVE_MINUTES_MS = 5 * 60 * 1000


def code_of(data: bytes, **changes: Any) -> str:
    given = {"root": ROOT, "now": NOW, "floors": Floors(), **changes}
    try:
        verify_manifest(data, given.pop("root"), given.pop("now"), given.pop("floors"), **given)
    except ScaleoutError as exc:
        return exc.code
    return "accepted"


def test_a_good_manifest_is_accepted() -> None:
    verified = verify_manifest(signed(make_manifest()), ROOT, NOW, Floors(), project="heart")
    assert verified.manifest == make_manifest()
    assert verified.signers == (keyid(ALICE),)
    assert verified.roles == {"ml": (keyid(ALICE),)}


def test_a_second_signature_does_not_change_the_digest() -> None:
    one, two = (verify_manifest(signed(make_manifest(), *keys), ROOT, NOW, Floors()) for keys in ((ALICE,), (ALICE, BOB)))
    assert one.sha256 == two.sha256


AT = {"now": lambda ms: Now(ms, 0, synchronised=True)}
DIGEST = verify_manifest(signed(make_manifest()), ROOT, NOW, Floors()).sha256


@pytest.mark.parametrize(
    ("code", "data", "changes"),
    [
        ("envelope-invalid", b"", {}),
        ("envelope-invalid", b"{}", {}),
        ("signature-threshold", signed(make_manifest(), MALLORY), {}),
        ("signature-threshold", signed(make_manifest(), ROOT_KEY), {}),
        ("signature-threshold", signed(make_manifest()), {"root": make_root({"ml": ([ALICE, BOB], 2)})}),
        ("signature-threshold", signed(make_manifest()), {"root": make_root({"ml": ([ALICE], 1), "sec": ([BOB], 1)})}),
        ("signature-threshold", signed(make_manifest()), {"root": make_root(projects={keyid(ALICE): ("lung",)})}),
        ("signature-threshold", signed(make_manifest(development=True)), {}),
        ("signature-threshold", signed(make_manifest()), {"root": make_root(development=True)}),
        ("key-revoked", signed(make_manifest()), {"root": make_root(revoked_keys=(keyid(ALICE),))}),
        ("manifest-revoked", signed(make_manifest()), {"root": make_root(revoked_manifests=(DIGEST,))}),
        ("manifest-expired", signed(make_manifest(expires_ms=AT_MS)), {}),
        ("manifest-not-yet-valid", signed(make_manifest(not_before_ms=AT_MS + 1)), {}),
        ("manifest-replayed", signed(make_manifest()), {"floors": Floors(manifest_versions={"heart": 4})}),
        ("project-mismatch", signed(make_manifest()), {"project": "lung"}),
        ("clock-set-back", signed(make_manifest()), {"floors": Floors(time_ms=AT_MS + FIVE_MINUTES_MS + 1)}),
        ("trust-root-invalid", signed(make_manifest()), {"root": make_root(expires_ms=AT_MS)}),
    ],
)
def test_refused(code: str, data: bytes, changes: dict[str, Any]) -> None:
    assert code_of(data, **changes) == code


@pytest.mark.parametrize(
    ("data", "changes"),
    [
        (signed(make_manifest(expires_ms=AT_MS + 1)), {}),
        (signed(make_manifest(not_before_ms=AT_MS)), {}),
        (signed(make_manifest()), {"floors": Floors(manifest_versions={"heart": 3, "lung": 9})}),
        (signed(make_manifest()), {"floors": Floors(time_ms=AT_MS + FIVE_MINUTES_MS)}),
        (signed(make_manifest(), ALICE, BOB), {"root": make_root({"ml": ([ALICE], 1), "sec": ([BOB], 1)})}),
        (signed(make_manifest(), MALLORY, ALICE), {}),
        (signed(make_manifest(development=True)), {"root": make_root(development=True)}),
        (signed(make_manifest()), {"root": make_root(revoked_manifests=("0" * 64,))}),
    ],
)
def test_control_at_the_edge_is_accepted(data: bytes, changes: dict[str, Any]) -> None:
    assert code_of(data, **changes) == "accepted"


def payload_with(change: Any) -> bytes:
    value = json.loads(manifest_payload(make_manifest()))
    change(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.update(_type="https://in-toto.io/Statement/v0.1"),
        lambda v: v.update(predicateType="urn:other"),
        lambda v: v.update(extra=1),
        lambda v: v["predicate"].update(extra=1),
        lambda v: v["predicate"].pop("files"),
        lambda v: v["predicate"].update(files=[]),
        lambda v: v["predicate"].update(version=0),
        lambda v: v["predicate"].update(version="1"),
        lambda v: v["subject"].append(v["subject"][0]),
        lambda v: v["subject"][0].update(name="lung"),
        lambda v: v["subject"][0]["digest"].update(sha256="0" * 64),
        lambda v: v["predicate"]["files"][1].update(sha256="0" * 64),
        lambda v: v["predicate"]["files"].reverse(),
        lambda v: v["predicate"]["steps"].update(deploy=["rm"]),
        lambda v: v["predicate"]["steps"].update(train=[]),
        lambda v: v["predicate"]["steps"].update(train=["a\x00b"]),
        lambda v: v["predicate"].update(not_before_ms=v["predicate"]["expires_ms"]),
        lambda v: v["predicate"].update(environments={"../x": {}}),
        lambda v: v["predicate"].update(startup_file="missing.py"),
    ],
)
def test_a_signed_statement_that_is_malformed_is_refused(change: Any) -> None:
    """A trusted key signed it: the form still holds."""
    payload = payload_with(change)
    data = serialise_envelope(sign_payload(payload, STATEMENT_TYPE, [ALICE]))
    assert code_of(data) in ("record-invalid", "manifest-invalid", "file-name")


def test_a_signed_statement_in_other_bytes_is_refused() -> None:
    payload = json.dumps(json.loads(manifest_payload(make_manifest()))).encode()
    assert code_of(serialise_envelope(sign_payload(payload, STATEMENT_TYPE, [ALICE]))) == "json-invalid"


BAD_PATHS = {
    "absolute": "/etc/passwd",
    "dot-dot": "../x",
    "dot-dot-inside": "a/../../x",
    "dot": "./a",
    "empty-component": "a//b",
    "trailing-slash": "a/",
    "empty": "",
    "newline": "a\nb",
    "escape": "a\x1b[2Jb",
    "nul": "a\x00b",
    "delete": "a\x7f",
    "right-to-left-override": "a\u202eyp.exe",
    "zero-width-mark": "a\u200e.py",
    "line-separator": "a\u2028b",
    "decomposed": "e\u0301.py",
    "surrogate": "a\udcff",
    "itself": MANIFEST_NAME,
    "long-component": "a" * 256,
    "long-component-in-bytes": "é" * 128,
}


@pytest.mark.parametrize(("name", "path"), BAD_PATHS.items())
def test_a_bad_file_name_is_refused(name: str, path: str) -> None:
    with pytest.raises(VerificationError) as caught:
        check_path(path)
    assert caught.value.code == "file-name"
    assert "\x1b" not in caught.value.message


GOOD_PATHS = ["a", "a/b.py", "..a", "a..", "...", "é.py", "日本/語.txt", "with space", "-rf", ".hidden", "a" * 255]


@pytest.mark.parametrize("path", GOOD_PATHS)
def test_control_names_are_accepted(path: str) -> None:
    check_path(path)


@pytest.mark.parametrize(
    "paths",
    [
        ["a", "a"],
        ["b", "a"],
        ["README", "readme"],
        ["Lib/a", "lib/b"],
        ["a/B", "a/b"],
        ["STRASSE", "stra\u00dfe"],
        ["\u212a", "k"],
        ["a", "a/b"],
    ],
    ids=["doubled", "unsorted", "case", "folder-case", "inner-case", "sharp-s", "kelvin-sign", "file-as-folder"],
)
def test_names_that_collide_are_refused(paths: list[str]) -> None:
    ordered = paths if paths == ["b", "a"] else sorted(paths)
    with pytest.raises(VerificationError) as caught:
        check_paths(ordered)
    assert caught.value.code == "file-name"


def test_control_names_that_only_look_close_are_accepted() -> None:
    check_paths(sorted(["a", "ab", "b/a", "b/b", "b-", "c.a", "c/a"]))


@given(st.lists(st.text(max_size=8), max_size=6))
def test_accepted_names_stay_in_the_folder_and_apart(paths: list[str]) -> None:
    ordered = sorted(paths)
    try:
        check_paths(ordered)
    except VerificationError:
        return
    assert len({path.casefold() for path in paths}) == len(paths)
    assert all(not path.startswith("/") and ".." not in path.split("/") for path in paths)


def test_a_large_file_needs_exactly_its_chunk_digests() -> None:
    size = CHUNK_BYTES + 1
    good = FileEntry("big.bin", size, "0" * 64, chunks=("1" * 64, "2" * 64))
    manifest_payload(make_manifest(files=(good,)))
    bad = [replace(good, chunks=None), replace(good, chunks=("1" * 64,) * 3), replace(good, size_bytes=CHUNK_BYTES)]
    for item in bad:
        with pytest.raises(FormatError):
            manifest_payload(make_manifest(files=(item,)))


def test_a_full_manifest_comes_back_as_it_went_out() -> None:
    manifest = make_manifest(
        files=(entry("a.sh", executable=True), entry("b.py")),
        ignored=("*.pyc", "data/"),
        environments={"torch": Expected("0" * 64), "plain": Expected()},
        data_sets={"samples": Expected()},
        startup_file="b.py",
        policy_sha256="f" * 64,
    )
    assert parse_manifest(manifest_payload(manifest)) == manifest


def test_an_unsynchronised_clock_does_not_raise_the_floor_and_a_synchronised_one_does() -> None:
    floors = Floors(time_ms=100, root_version=2, manifest_versions={"heart": 3})
    assert raised(floors, Now(900, 0, synchronised=False)).time_ms == 100
    assert raised(floors, Now(900, 0, synchronised=True)).time_ms == 900
    assert raised(floors, Now(50, 0, synchronised=True)).time_ms == 100
    after = raised(floors, NOW, root_version=1, project="heart", manifest_version=5)
    assert (after.root_version, after.manifest_versions) == (2, {"heart": 5})


def test_the_higher_floor_of_two_rooms_counts() -> None:
    both = highest(Floors(5, 1, {"a": 1, "b": 2}), Floors(3, 2, {"b": 1, "c": 4}))
    assert both == Floors(5, 2, {"a": 1, "b": 2, "c": 4})


@pytest.mark.parametrize(
    ("time_ms", "text"),
    [(0, "1970-01-01T00:00:00Z"), (951_782_400_000, "2000-02-29T00:00:00Z"), (4_107_542_399_999, "2100-02-28T23:59:59Z"),
     (4_107_542_400_000, "2100-03-01T00:00:00Z"), (AT_MS, "2027-01-15T08:00:00Z"), (AT_MS + DAY_MS, "2027-01-16T08:00:00Z")],
)  # fmt: skip
def test_times_read_as_utc(time_ms: int, text: str) -> None:
    assert utc_text(time_ms) == text
