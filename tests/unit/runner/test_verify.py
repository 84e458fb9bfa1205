# SPDX-License-Identifier: Apache-2.0
"""A project that is not exactly what was signed: each way has its code and names file, expected, found and what to do."""

# Acts in a lambda are joined in a tuple whose values nobody reads.
# mypy: disable-error-code="func-returns-value"

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from scaleoutd.cli.signing import now
from scaleoutd.core.clock import Floors
from scaleoutd.core.manifest import CHUNK_BYTES, MANIFEST_NAME
from scaleoutd.errors import ConfigError, ScaleoutError, VerificationError
from scaleoutd.runner.hashing import check_files, digest_file
from scaleoutd.runner.rootfile import read_trust_root
from scaleoutd.runner.store import take_snapshot
from scaleoutd.runner.tree import Tree
from scaleoutd.runner.verify import check_project, prove, refuse
from tests.unit.core.trust_samples import make_root, root_bytes
from tests.unit.runner.signed_project import SignedProject, make_project


@pytest.fixture
def project(tmp_path: Path) -> SignedProject:
    return make_project(tmp_path / "p", {"data/a.txt": b"a", "run.sh": b"#!/bin/sh\n", "b.txt": b"b"})


def bind_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def swap(one: Path, other: Path) -> None:
    spare = one.with_name("spare")
    one.rename(spare)
    other.rename(one)
    spare.rename(other)


def replace_by(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


BREAKS: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "one-byte-changed": ("file-changed", "train.py", lambda p: (p / "train.py").write_bytes(b"print(2)\n")),
    "byte-added": ("file-changed", "train.py", lambda p: (p / "train.py").write_bytes(b"print(1)\n#")),
    "truncated": ("file-changed", "train.py", lambda p: os.truncate(p / "train.py", 0)),
    "swapped": ("file-changed", "b.txt", lambda p: swap(p / "b.txt", p / "data/a.txt")),
    "missing": ("file-missing", "lib/model.py", lambda p: (p / "lib/model.py").unlink()),
    "folder-missing": ("file-missing", "lib/model.py", lambda p: (p / "lib").rename(p.parent / "away")),
    "renamed": ("file-missing", "train.py", lambda p: (p / "train.py").rename(p / "zrain.py")),
    "extra": ("file-extra", "lib/sitecustomize.py", lambda p: (p / "lib/sitecustomize.py").write_bytes(b"")),
    "extra-hidden": ("file-extra", ".pth", lambda p: (p / ".pth").write_bytes(b"")),
    "made-executable": ("file-mode", "train.py", lambda p: (p / "train.py").chmod(0o755)),
    "setuid": ("file-mode", "train.py", lambda p: (p / "train.py").chmod(0o4644)),
    "setgid": ("file-mode", "train.py", lambda p: (p / "train.py").chmod(0o2644)),
    "sticky": ("file-mode", "train.py", lambda p: (p / "train.py").chmod(0o1644)),
    "symlink-to-same-bytes": (
        "file-type", "train.py",
        lambda p: ((p / "train.py").rename(p.parent / "t"), (p / "train.py").symlink_to(p.parent / "t")),
    ),
    "extra-symlink": ("file-type", "link", lambda p: (p / "link").symlink_to("train.py")),
    "folder-becomes-symlink": (
        "file-type", "lib", lambda p: ((p / "lib").rename(p.parent / "l"), (p / "lib").symlink_to(p.parent / "l")),
    ),
    "fifo": ("file-type", "train.py", lambda p: replace_by(p / "train.py", os.mkfifo)),
    "socket": ("file-type", "train.py", lambda p: replace_by(p / "train.py", bind_socket)),
    "hard-link-out": ("file-type", "train.py", lambda p: os.link(p / "train.py", p.parent / "outside")),
    "folder-for-file": ("file-missing", "train.py", lambda p: replace_by(p / "train.py", Path.mkdir)),
    "other-spelling": ("file-name", "Train.py", lambda p: (p / "Train.py").write_bytes(b"")),
    "not-utf-8": ("file-name", "\udcff", lambda p: Path(os.fsdecode(bytes(p) + b"/\xff")).write_bytes(b"")),
    "control-character": ("file-name", "a\nb", lambda p: (p / "a\nb").write_bytes(b"")),
    "decomposed-name": ("file-name", "e\u0301", lambda p: (p / "e\u0301").write_bytes(b"")),
}  # fmt: skip


@pytest.mark.parametrize(("code", "path", "act"), BREAKS.values(), ids=BREAKS.keys())
def test_refused_by_verify_and_by_the_snapshot(
    project: SignedProject, tmp_path: Path, code: str, path: str, act: Callable[[Path], object]
) -> None:
    assert check_project(project.prove()) == []
    act(project.path)
    differences = check_project(project.prove())
    assert (code, path) in [(difference.code, difference.path) for difference in differences]
    assert all(difference.expected and difference.found for difference in differences)
    with pytest.raises(VerificationError) as caught:
        take_snapshot(project.prove(), tmp_path / "store")
    assert caught.value.code in {difference.code for difference in differences}
    assert caught.value.hint
    assert "expected" in caught.value.message and "found" in caught.value.message
    assert caught.value.message.isprintable()
    assert not list((tmp_path / "store").iterdir()), "a refused project leaves nothing in the store"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device nodes")
def test_a_device_is_refused(project: SignedProject) -> None:
    (project.path / "b.txt").unlink()
    try:
        os.mknod(project.path / "b.txt", 0o644 | 0o020000, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("this root may not make device nodes")
    assert [(found.code, found.path) for found in check_project(project.prove())] == [("file-type", "b.txt")]


@pytest.mark.parametrize(
    "act",
    [
        lambda p: (p / "__pycache__").mkdir(),
        lambda p: ((p / "lib/__pycache__").mkdir(), (p / "lib/__pycache__/x.pyc").write_bytes(b"x")),
        lambda p: ((p / ".git").mkdir(), (p / ".git/link").symlink_to("/etc/passwd"), os.mkfifo(p / ".git/fifo")),
        lambda p: (p / "empty").mkdir(),
        lambda p: os.utime(p / "train.py", (0, 0)),
        lambda p: (p / "train.py").chmod(0o600),
        lambda p: p.rename(p.parent / "moved") and (p.parent / "moved").rename(p),
        lambda p: (p / f".{MANIFEST_NAME}.77.new").write_bytes(b"half"),
    ],
    ids=["cache", "byte-code", "git", "empty-folder", "times", "mode-without-x", "folder-moved", "signer-at-work"],
)
def test_control_what_is_no_part_of_the_project_is_accepted(
    project: SignedProject, tmp_path: Path, act: Callable[[Path], object]
) -> None:
    act(project.path)
    assert check_project(project.prove()) == []
    snapshot = take_snapshot(project.prove(), tmp_path / "store")
    names = sorted(item.name for item in snapshot.path.iterdir())
    assert names == ["b.txt", "data", "lib", "run.sh", "scaleout.yaml", "train.py"]


def test_several_differences_are_counted_and_the_first_is_named(project: SignedProject) -> None:
    (project.path / "train.py").unlink()
    (project.path / "a.txt").write_bytes(b"")
    with pytest.raises(VerificationError, match=r"a\.txt: expected .* \(and 1 more\)"):
        refuse(check_project(project.prove()))


def test_hard_links_within_the_project_are_plain_files(project: SignedProject) -> None:
    (project.path / "b.txt").unlink()
    os.link(project.path / "train.py", project.path / "b.txt")
    project.sign()
    assert check_project(project.prove()) == []


@pytest.mark.parametrize("bad", ["missing", "symlink", "folder"])
def test_without_a_plain_manifest_nothing_runs(project: SignedProject, bad: str) -> None:
    path = project.path / MANIFEST_NAME
    data = path.read_bytes()
    path.unlink()
    if bad == "symlink":
        (project.path.parent / "m").write_bytes(data)
        path.symlink_to(project.path.parent / "m")
    elif bad == "folder":
        path.mkdir()
    with pytest.raises(ScaleoutError) as caught:
        project.prove()
    assert caught.value.code == ("manifest-missing" if bad == "missing" else "file-type")


def test_an_older_manifest_is_refused_although_its_signature_is_remembered(project: SignedProject) -> None:
    project.prove()
    with pytest.raises(VerificationError) as caught:
        prove(project.path, project.root, project.policy, Floors(manifest_versions={"heart": 2}), now())
    assert caught.value.code == "manifest-replayed"
    late = replace(now(), wall_ms=now().wall_ms + 400 * 86_400_000)
    with pytest.raises(VerificationError) as caught:
        prove(project.path, replace(project.root, expires_ms=late.wall_ms + 1), project.policy, Floors(), late)
    assert caught.value.code == "manifest-expired"


def test_a_node_with_a_policy_takes_no_development_root(project: SignedProject) -> None:
    with pytest.raises(VerificationError) as caught:
        prove(project.path, replace(project.root, development=True), project.policy, Floors(), now())
    assert caught.value.code == "trust-root-invalid"


def test_a_large_file_is_proven_by_its_chunks(tmp_path: Path) -> None:
    project = make_project(tmp_path / "p")
    big = project.path / "big.bin"
    with open(big, "wb") as file:
        file.truncate(CHUNK_BYTES + 4096)
    project.sign()
    assert check_project(project.prove()) == []
    snapshot = take_snapshot(project.prove(), tmp_path / "store")
    assert (snapshot.path / "big.bin").stat().st_size == CHUNK_BYTES + 4096
    with open(big, "r+b") as file:
        file.seek(CHUNK_BYTES + 5)
        file.write(b"x")
    assert [(found.code, found.path) for found in check_project(project.prove())] == [("file-changed", "big.bin")]


def test_the_chunks_of_one_file_are_hashed_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = make_project(tmp_path / "p")
    with open(project.path / "big.bin", "wb") as file:
        file.truncate(CHUNK_BYTES + 4096)
    project.sign()
    (big,) = (entry for entry in project.prove().manifest.manifest.files if entry.path == "big.bin")
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    both = threading.Barrier(2)  # one thread alone would wait here for ever
    with Tree(project.path) as tree:
        assert check_files(tree, [big], on_bytes=lambda _: (both.wait(60), None)[1]) == []


def test_digests_are_of_the_whole_file_and_of_each_chunk(tmp_path: Path) -> None:
    with open(tmp_path / "f", "wb") as file:
        file.truncate(CHUNK_BYTES)
        file.seek(0, os.SEEK_END)
        file.write(b"tail")
    with Tree(tmp_path) as tree:
        found = digest_file(tree, "f")
    assert found.chunks == (hashlib.sha256(bytes(CHUNK_BYTES)).hexdigest(), hashlib.sha256(b"tail").hexdigest())
    assert found.sha256 == hashlib.sha256(bytes(CHUNK_BYTES) + b"tail").hexdigest()


def test_a_failing_disk_is_an_error_and_not_a_difference(project: SignedProject, tmp_path: Path) -> None:
    with Tree(project.path) as tree, pytest.raises(OSError):
        check_files(tree, project.prove().manifest.manifest.files, tmp_path / "not-there")


def test_a_chain_of_roots_is_read_from_its_folder(tmp_path: Path) -> None:
    expires_ms = now().wall_ms + 10**9
    for version in (1, 2, 10):
        (tmp_path / f"{version}.json").write_bytes(root_bytes(make_root(version=version, expires_ms=expires_ms)))
    with pytest.raises(VerificationError, match="gap"):
        read_trust_root(tmp_path, now())
    (tmp_path / "10.json").unlink()
    assert read_trust_root(tmp_path, now()).version == 2
    assert read_trust_root(tmp_path / "1.json", now()).version == 1
    with pytest.raises(ConfigError) as caught:
        read_trust_root(tmp_path / "3.json", now())
    assert caught.value.code == "config-missing"
