# SPDX-License-Identifier: Apache-2.0
"""Properties over what a grammar makes, where bytes alone do not come far: whole projects, documents and YAML files.

What is signed verifies, here and by the second verifier, and runs as it was.  One bit changed anywhere of the files, the
envelope or the trust root is refused by a named code.  A document has one canonical form.  What YAML may not have is refused
where it stands.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from scaleoutd.cli.signing import now
from scaleoutd.core import strictjson
from scaleoutd.core.clock import Floors
from scaleoutd.core.ignore import IgnoreRules
from scaleoutd.core.manifest import MANIFEST_NAME, verify_manifest
from scaleoutd.core.strictyaml import load_yaml
from scaleoutd.core.trust import TrustRoot, verify_chain
from scaleoutd.errors import CODES, ConfigError, FormatError, ScaleoutError, VerificationError
from scaleoutd.runner.store import discard, take_snapshot
from scaleoutd.runner.verify import check_project
from tests.second_verifier import second
from tests.unit.core.trust_samples import ALICE, BOB, NOW, make_manifest, make_root, root_bytes, signed
from tests.unit.runner.signed_project import SignedProject, make_project

FEW = settings(max_examples=40, derandomize=True)
MANY = settings(max_examples=300, derandomize=True)

# --- projects ---------------------------------------------------------------------------------------------------------

_ODD = "aAbk0 .-_~#'\"\\[]*?!%$é\u00dfあ\U0001f642\u0345\ufb01"
names = st.one_of(
    st.text(_ODD, min_size=1, max_size=6),
    st.sampled_from(["n" * 255, "é" * 127, "-rf", "..a", "...", "CON", "a.py", "$(id)", "x y"]),
)
sizes = st.sampled_from([0, 1, 4096, 70_001]).map(bytes)
contents = st.tuples(sizes | st.binary(max_size=40), st.booleans())
trees = st.recursive(
    st.dictionaries(names, contents, max_size=4), lambda inner: st.dictionaries(names, contents | inner, max_size=3), max_leaves=6
)


def files_of(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, bytes, bool]]:
    """Path, bytes and the executable bit; a name that means another one's file, or nothing, is left out."""
    seen: set[str] = set()
    for name, item in sorted(tree.items()):
        plain = unicodedata.normalize("NFC", name)
        folded = unicodedata.normalize("NFC", plain.casefold())
        if folded in seen or plain in (".", "..") or len(plain.encode()) > 255 or len(prefix + plain) > 600:
            continue
        seen.add(folded)
        if isinstance(item, tuple):
            yield prefix + plain, *item
        else:
            yield from files_of(item, f"{prefix}{plain}/")


@contextmanager
def project(tree: Mapping[str, Any]) -> Iterator[tuple[SignedProject, Path]]:
    """A signed project in memory, and a folder for the store."""
    folder = Path(tempfile.mkdtemp(prefix="properties-", dir="/dev/shm"))
    try:
        path = folder / "p"
        for name, data, executable in files_of(tree, "t/"):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
            (path / name).chmod(0o755 if executable else 0o644)
        yield make_project(path), folder / "store"
    finally:
        if (folder / "store").is_dir():
            (folder / "store").chmod(0o700)
            discard(folder / "store")
        shutil.rmtree(folder)


def verdict_of_second(one: SignedProject) -> str:
    """What tools/verify_manifest.py says of the folder."""
    try:
        root = second.parse_root(one.root.payload())
        manifest = second.verify_manifest((one.path / MANIFEST_NAME).read_bytes(), root, now().wall_ms, None, "heart")
        second.check_folder(str(one.path), manifest)
    except second.Refused as exc:
        return str(exc.code)
    return "accepted"


def verdict(one: SignedProject, store: Path) -> str:
    """What the node says of the project, envelope and files, as it would before a run."""
    try:
        take_snapshot(one.prove(), store)
    except ScaleoutError as exc:
        return exc.code
    return "accepted"


@FEW
@given(trees)
def test_what_is_signed_verifies_and_the_copy_that_runs_is_the_same(tree: dict[str, Any]) -> None:
    with project(tree) as (one, store):
        proven = one.prove()
        assert check_project(proven) == []
        assert verdict_of_second(one) == "accepted"
        copy = take_snapshot(proven, store)
        manifest = proven.manifest.manifest
        listed = {entry.path: entry for entry in manifest.files}
        assert {name for name, _, _ in files_of(tree, "t/")} - set(listed) == _ignored(tree, manifest.ignored)
        for path, entry in listed.items():
            assert (copy.path / path).read_bytes() == (one.path / path).read_bytes()
            assert bool((copy.path / path).stat().st_mode & 0o111) == entry.executable
        found = {str(path.relative_to(copy.path)) for path in copy.path.rglob("*") if path.is_file()}
        assert found == set(listed)


def _ignored(tree: Mapping[str, Any], patterns: tuple[str, ...]) -> set[str]:
    """What the signed patterns leave out of the project."""
    rules = IgnoreRules(patterns)
    left_out = set()
    for name, _, _ in files_of(tree, "t/"):
        above = [name[:at] for at, char in enumerate(name) if char == "/"]
        if rules.ignores(name, is_folder=False) or any(rules.ignores(folder, is_folder=True) for folder in above):
            left_out.add(name)
    return left_out


@FEW
@given(trees, st.randoms(use_true_random=False))
def test_one_bit_changed_in_a_file_or_its_mode_is_refused_by_name(tree: dict[str, Any], chance: random.Random) -> None:
    with project(tree) as (one, store):
        entries = [entry for entry in one.prove().manifest.manifest.files if entry.path != "scaleout.yaml"]
        if chance.random() < 0.5:
            assert verdict(one, store) == "accepted"  # a copy that was right must not be run for the changed source
        entry = chance.choice(entries)
        path = one.path / entry.path
        kind = chance.choice(["bit", "bit", "longer", "shorter", "mode", "gone", "other"])
        data = path.read_bytes()
        wanted = {"mode": {"file-mode"}, "gone": {"file-missing"}, "other": {"file-extra", "file-name"}}.get(
            kind, {"file-changed"}
        )
        if kind == "bit" and data:
            path.write_bytes(_flipped(data, chance.randrange(8 * len(data))))
        elif kind == "shorter" and data:
            path.write_bytes(data[:-1])
        elif kind == "mode":
            path.chmod(path.stat().st_mode ^ 0o100 if not entry.executable else 0o644)
        elif kind == "gone":
            path.unlink()
        elif kind == "other":
            path.with_name("added.py").write_bytes(b"")
        else:
            path.write_bytes(data + b"\0")
        assert verdict(one, store) in wanted, (kind, entry)
        assert verdict_of_second(one) in wanted, (kind, entry)


def _flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


# --- envelope and root ------------------------------------------------------------------------------------------------


def _without_hints(envelope: bytes) -> Any:
    """What an envelope says, but for the key ids, which nobody trusts."""
    value = json.loads(envelope)
    return {**value, "signatures": [item["sig"] for item in value["signatures"]]}


def test_every_byte_of_an_envelope_with_one_bit_changed_is_refused_by_name() -> None:
    envelope, root = signed(make_manifest(), ALICE, BOB), make_root({"ml": ([ALICE], 1), "security": ([BOB], 1)})
    verify_manifest(envelope, root, NOW, Floors(), project="heart")
    chance = random.Random(6)
    accepted = 0
    for index in range(len(envelope)):
        changed = _flipped(envelope, 8 * index + chance.randrange(8))
        try:
            verify_manifest(changed, root, NOW, Floors(), project="heart")
        except (FormatError, VerificationError) as exc:
            assert exc.code in ("envelope-invalid", "signature-threshold"), (index, exc.code)
        else:
            accepted += 1
            assert _without_hints(changed) == _without_hints(envelope), index
    assert accepted <= 2 * 64, "more than the key ids"


def test_every_byte_of_a_root_of_a_chain_with_one_bit_changed_is_refused_by_name() -> None:
    first, second_root = root_bytes(make_root()), root_bytes(make_root(version=2))
    assert isinstance(verify_chain([first, second_root], NOW), TrustRoot)
    chance = random.Random(7)
    for index in range(len(second_root)):
        bit = 8 * index + chance.randrange(8)
        for place, whole in ((0, first), (1, second_root)):
            if index >= len(whole):
                continue
            chain = [first, second_root]
            chain[place] = _flipped(whole, bit)
            try:
                verify_chain(chain, NOW)
            except ScaleoutError as exc:
                assert exc.code == "trust-root-invalid" and exc.code in CODES
            else:
                assert _without_hints(chain[place]) == _without_hints(whole), index


@MANY
@given(st.integers(1, 4), st.integers(0, 3), st.booleans())
def test_a_threshold_counts_keys_and_not_signatures(threshold: int, others: int, twice: bool) -> None:
    keys = [ALICE, BOB, make_key(1), make_key(2)]
    root = make_root({"ml": (keys, threshold)})
    signers = keys[: others + 1]
    envelope = signed(make_manifest(), *signers)
    if twice:
        value = json.loads(envelope)
        value["signatures"] += value["signatures"]
        envelope = json.dumps(value).encode()
    if len(signers) >= threshold:
        verify_manifest(envelope, root, NOW, Floors())
    else:
        with pytest.raises(VerificationError) as caught:
            verify_manifest(envelope, root, NOW, Floors())
        assert caught.value.code == "signature-threshold"


def make_key(number: int) -> Any:
    return Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)


# --- JSON -------------------------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-strictjson.MAX_SAFE_INTEGER, strictjson.MAX_SAFE_INTEGER) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@MANY
@given(values, st.randoms(use_true_random=False))
def test_however_a_document_is_written_its_canonical_form_is_one_and_no_other_is_taken(value: Any, chance: random.Random) -> None:
    written = [
        json.dumps(value, indent=indent, ensure_ascii=ascii_only, separators=separators).encode()
        for indent in (None, 1)
        for ascii_only in (True, False)
        for separators in ((",", ":"), (" , ", " : "))
    ]
    forms = {strictjson.canonical(strictjson.parse(one, max_bytes=1 << 20)) for one in written}
    forms.add(strictjson.canonical(_shuffled(value, chance)))
    (form,) = forms
    assert strictjson.parse_canonical(form, max_bytes=1 << 20) == value
    for one in written:
        if one != form:
            with pytest.raises(FormatError):
                strictjson.parse_canonical(one, max_bytes=1 << 20)
    at = chance.randint(0, len(form))
    for extra in (b" ", b"\n"):
        changed = form[:at] + extra + form[at:]
        try:
            assert strictjson.parse_canonical(changed, max_bytes=1 << 20) != value  # inside a text it is another text
        except FormatError as exc:
            assert exc.code == "json-invalid"


def _shuffled(value: Any, chance: random.Random) -> Any:
    if isinstance(value, dict):
        items = [(key, _shuffled(item, chance)) for key, item in value.items()]
        chance.shuffle(items)
        return dict(items)
    return [_shuffled(item, chance) for item in value] if isinstance(value, list) else value


# --- YAML -------------------------------------------------------------------------------------------------------------

keys = st.text("abcdefghij", min_size=1, max_size=5)
scalars = st.sampled_from(["1", "true", "text", "'quoted: #'", '"\\u00e9"', "~", "0x1F", "a b"])
documents = st.recursive(
    st.dictionaries(keys, scalars, min_size=1, max_size=4),
    lambda inner: st.dictionaries(keys, inner | scalars | st.lists(inner, min_size=1, max_size=3), min_size=1, max_size=4),
    max_leaves=10,
)


def lines_of(value: Mapping[str, Any], indent: int, starts: list[tuple[int, int, str]], lines: list[str], dash: str = "") -> None:
    """Block style; `starts` hears the line, the indent and the key of every entry."""
    for key, item in value.items():
        head = f"{dash or ' ' * indent}{key}:"
        starts.append((len(lines), indent, key))
        dash = ""
        if isinstance(item, str):
            lines.append(f"{head} {item}")
            continue
        lines.append(head)
        for inner in item if isinstance(item, list) else [item]:
            deeper = indent + 4 if isinstance(item, list) else indent + 2
            lines_of(inner, deeper, starts, lines, f"{' ' * (indent + 2)}- " if isinstance(item, list) else "")


@MANY
@given(documents, st.randoms(use_true_random=False))
def test_what_yaml_may_not_have_is_refused_at_its_line_and_column(document: dict[str, Any], chance: random.Random) -> None:
    starts: list[tuple[int, int, str]] = []
    lines: list[str] = []
    lines_of(document, 0, starts, lines)
    load_yaml("\n".join(lines).encode(), name="x.yaml", root="x")  # the control
    at, indent, key = chance.choice(starts)
    kind, inserted, column = chance.choice(
        [
            ("appears twice", f"{key}: 1", indent + 1),
            ("an anchor", "zz: &a 1", indent + 5),
            ("an alias", "zz: *a", indent + 5),
            ("a tag", "zz: !!str 1", indent + 5),
            ("a tag", "zz: !<x> 1", indent + 5),
            ("a merge key", "<<: 1", indent + 1),
            ("appears twice", "zz: {k: 1, k: 2}", indent + 12),
            ("a tag", "zz: [1, !!python/object:os.system x]", indent + 9),
        ]
    )
    # After the whole entry: before the next line that is no deeper.
    end = next(
        (i for i in range(at + 1, len(lines)) if len(lines[i]) - len(lines[i].lstrip(" ")) <= _outer(lines[at])), len(lines)
    )
    lines.insert(end, " " * indent + inserted)
    with pytest.raises(ConfigError) as caught:
        load_yaml("\n".join(lines).encode(), name="x.yaml", root="x")
    assert caught.value.code == "yaml-invalid"
    assert caught.value.message.startswith(f"cannot read x.yaml: line {end + 1}, column {column}: "), (
        caught.value.message,
        lines,
    )
    assert kind in caught.value.message, caught.value.message


def _outer(line: str) -> int:
    """How far in the next entry of the same mapping stands at most: its own indent, or that of what comes after the dash."""
    blank = len(line) - len(line.lstrip(" "))
    return blank + 2 if line.lstrip(" ").startswith("- ") else blank
