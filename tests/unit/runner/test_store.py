# SPDX-License-Identifier: Apache-2.0
"""The content store: what it holds is what was signed, whatever happens to the source while it is copied."""

# Acts in a lambda are joined in a tuple whose values nobody reads.
# mypy: disable-error-code="func-returns-value"

from __future__ import annotations

import itertools
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scaleoutd.errors import ScaleoutError, VerificationError
from scaleoutd.runner import store, tree
from scaleoutd.runner.hashing import check_files
from scaleoutd.runner.store import Snapshot, discard, prune, take_snapshot
from tests.unit.runner.signed_project import SignedProject, make_project, rest


@pytest.fixture
def project(tmp_path: Path) -> SignedProject:
    return make_project(tmp_path / "p", {"a/b/c.txt": b"c" * 5000})


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_copy_is_read_only_and_the_runners_own(project: SignedProject, tmp_path: Path) -> None:
    (project.path / "train.py").chmod(0o755)
    project.sign()
    snapshot = take_snapshot(project.prove(), tmp_path / "store")
    expected = {name: data for name, data in content(project.path).items() if name != "scaleout.manifest.json"}
    assert content(snapshot.path) == expected
    assert snapshot.files == len(expected)
    assert snapshot.size_bytes == sum(map(len, expected.values()))
    for path in (snapshot.path, *snapshot.path.rglob("*")):
        found = path.lstat()
        executable = path.name == "train.py" or path.is_dir()
        assert stat.S_IMODE(found.st_mode) == (0o555 if executable else 0o444)
        assert found.st_uid == os.geteuid()
        assert path.is_dir() or found.st_nlink == 1, "no name outside the store leads to these bytes"
    assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o711


def test_an_unchanged_project_is_neither_copied_nor_read(
    project: SignedProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest()
    first = take_snapshot(project.prove(), tmp_path / "store")
    assert first.copied

    def never(*_: object) -> None:
        raise AssertionError("bytes were read")

    monkeypatch.setattr(store, "check_files", never)
    again = take_snapshot(project.prove(), tmp_path / "store")
    assert (again.copied, again.repaired, again.path) == (False, False, first.path)


def test_two_thousand_unchanged_files_take_no_more_than_fifty_milliseconds(tmp_path: Path) -> None:
    """Of processor time: what else the machine does is no failure; what the clock shows is a figure of benchmarks/verify.py."""
    project = make_project(tmp_path / "p", {f"d{n % 40}/f{n}.txt": b"%d" % n for n in range(2000)})
    rest()
    take_snapshot(project.prove(), tmp_path / "store")
    durations = []
    for _ in range(9):
        begin = time.process_time()
        assert not take_snapshot(project.prove(), tmp_path / "store").copied
        durations.append(time.process_time() - begin)
    assert min(durations) <= 0.050


def test_a_changed_source_is_refused_and_the_old_copy_does_not_run(project: SignedProject, tmp_path: Path) -> None:
    rest()
    take_snapshot(project.prove(), tmp_path / "store")
    (project.path / "train.py").write_bytes(b"print(2)\n")
    with pytest.raises(VerificationError) as caught:
        take_snapshot(project.prove(), tmp_path / "store")
    assert caught.value.code == "file-changed"
    (project.path / "train.py").write_bytes(b"print(1)\n")
    assert not take_snapshot(project.prove(), tmp_path / "store").copied


def test_same_size_and_times_do_not_hide_a_change(project: SignedProject, tmp_path: Path) -> None:
    rest()
    take_snapshot(project.prove(), tmp_path / "store")
    path = project.path / "train.py"
    before = path.stat()
    path.write_bytes(b"print(2)\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    with pytest.raises(VerificationError):
        take_snapshot(project.prove(), tmp_path / "store")


def test_a_source_too_fresh_to_tell_is_read_again(
    project: SignedProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree, "RACY_NS", 10**12)
    take_snapshot(project.prove(), tmp_path / "store")
    reads: list[object] = []
    monkeypatch.setattr(store, "check_files", lambda *given: reads.append(given) or check_files(*given))
    assert not take_snapshot(project.prove(), tmp_path / "store").copied
    assert reads


DAMAGES: dict[str, Callable[[Path], object]] = {
    "byte": lambda p: (
        os.chmod(p / "train.py", 0o644), (p / "train.py").write_bytes(b"print(9)\n"), os.chmod(p / "train.py", 0o444),
    ),
    "truncated": lambda p: (os.chmod(p / "train.py", 0o644), os.truncate(p / "train.py", 3), os.chmod(p / "train.py", 0o444)),
    "missing": lambda p: (p / "train.py").unlink(),
    "extra": lambda p: (p / "sitecustomize.py").write_bytes(b"import os"),
    "mode": lambda p: os.chmod(p / "train.py", 0o666),
    "symlink": lambda p: ((p / "train.py").unlink(), (p / "train.py").symlink_to("/etc/passwd")),
    "hard-link": lambda p: os.link(p / "train.py", p.parent.parent / "handle"),
    "all-gone": discard,
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_copy_is_made_anew_and_said(project: SignedProject, tmp_path: Path, damage: Callable[[Path], object]) -> None:
    rest()
    snapshot = take_snapshot(project.prove(), tmp_path / "store")
    good = content(snapshot.path)
    snapshot.path.chmod(0o755)
    damage(snapshot.path)
    again = take_snapshot(project.prove(), tmp_path / "store")
    assert content(again.path) == good
    assert again.copied
    assert again.repaired == (damage is not discard)


def test_a_damaged_copy_of_a_damaged_source_does_not_run(project: SignedProject, tmp_path: Path) -> None:
    snapshot = take_snapshot(project.prove(), tmp_path / "store")
    DAMAGES["byte"](snapshot.path)
    (project.path / "train.py").write_bytes(b"print(9)\n")
    with pytest.raises(VerificationError):
        take_snapshot(project.prove(), tmp_path / "store")


def test_the_first_use_after_a_boot_reads_the_copy_again(
    project: SignedProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest()
    take_snapshot(project.prove(), tmp_path / "store")
    monkeypatch.setattr(store, "_boot", lambda: "another boot")
    reads: list[object] = []
    monkeypatch.setattr(store, "check_files", lambda *given: reads.append(given) or check_files(*given))
    assert not take_snapshot(project.prove(), tmp_path / "store").copied
    assert reads
    reads.clear()
    take_snapshot(project.prove(), tmp_path / "store")
    assert not reads


@pytest.mark.parametrize("index", [b"", b"{}", b"garbage", b'{"boot":"","copy":"' + b"0" * 64 + b'","source":""}'])
def test_a_broken_index_only_costs_time(project: SignedProject, tmp_path: Path, index: bytes) -> None:
    snapshot = take_snapshot(project.prove(), tmp_path / "store")
    snapshot.path.with_suffix(".index").write_bytes(index)
    assert not take_snapshot(project.prove(), tmp_path / "store").copied


def test_what_a_crash_left_is_pruned_and_what_is_in_use_stays(project: SignedProject, tmp_path: Path) -> None:
    old = take_snapshot(project.prove(), tmp_path / "store")
    project.sign()
    new = take_snapshot(project.prove(), tmp_path / "store")
    half = tmp_path / "store" / ".new-0123-4567"
    (half / "d").mkdir(parents=True)
    (half / "d").chmod(0o555)
    removed = prune(tmp_path / "store", [new.manifest_sha256])
    assert set(removed) == {half.name, old.manifest_sha256, f"{old.manifest_sha256}.index"}
    assert new.path.is_dir()


# Races: somebody who may write the project changes it all the time while the runner copies.

ROUNDS = 1000  # of each attack; ten times that in `make test-full`
SIGNED = b"S" * 300_000
HOSTILE = b"H" * 300_000


def flip(path: Path, step: int) -> None:
    with open(path, "r+b") as file:
        file.seek((step - 1) // 2 * 7919 % len(SIGNED))
        file.write(b"H" if step % 2 else b"S")


def swap_by_rename(path: Path, step: int) -> None:
    other = path.with_name(f".swap-{step % 2}")
    other.write_bytes(HOSTILE if step % 2 else SIGNED)
    other.rename(path)


def swap_by_symlink(path: Path, step: int) -> None:
    hostile = path.parent.parent / "hostile"
    other = path.with_name(".swap")
    if step % 2:
        other.symlink_to(hostile)
    else:
        other.write_bytes(SIGNED)
    other.rename(path)


def truncate(path: Path, step: int) -> None:
    if step % 2:
        os.truncate(path, step * 31 % len(SIGNED))
    else:
        path.write_bytes(SIGNED)


def swap_folder(path: Path, step: int) -> None:
    folder = path.parent / "lib"
    away = path.parent.parent / "lib-away"
    if step % 2:
        folder.rename(away)
        folder.symlink_to(path.parent.parent / "hostile-lib")
    else:
        folder.unlink()
        away.rename(folder)


def grow(path: Path, step: int) -> None:
    """Bytes at the end come and go: whoever copies to the end of the file takes them along."""
    with open(path, "ab") as file:
        file.write(b"H" * 4096)
    os.truncate(path, len(SIGNED))


def swap_for_a_hard_link(path: Path, step: int) -> None:
    other = path.with_name(".swap")
    if step % 2:
        os.link(path.parent.parent / "hostile", other)
    else:
        other.write_bytes(SIGNED)
    other.rename(path)


ATTACKS: dict[str, Callable[[Path, int], None]] = {
    "flip": flip, "rename": swap_by_rename, "symlink": swap_by_symlink, "truncate": truncate, "folder": swap_folder,
    "grow": grow, "hard-link": swap_for_a_hard_link,
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_a_race_never_puts_unsigned_bytes_into_the_store(
    attack: Callable[[Path, int], None], tmp_path: Path, test_scale: int
) -> None:
    project = make_project(tmp_path / "p", {"big.bin": SIGNED})
    (tmp_path / "hostile").write_bytes(HOSTILE)
    (tmp_path / "hostile-lib").mkdir()
    (tmp_path / "hostile-lib/model.py").write_bytes(b"x = 2\n")
    expected = {name: data for name, data in content(project.path).items() if name != "scaleout.manifest.json"}
    proven = project.prove()
    stop = threading.Event()

    def work() -> None:
        step = 0
        while not stop.is_set() or step % 2:
            step += 1
            attack(project.path / "big.bin", step)
            if step % 2 == 0:  # all is as signed: long enough, now and then, that a copy can be begun, ended, or neither
                stop.wait(step % 7 / 2500)
        if attack is flip:
            (project.path / "big.bin").write_bytes(SIGNED)

    attacker = threading.Thread(target=work)
    attacker.start()
    taken = refused = 0
    deadline = time.monotonic() + 60  # the scheduler may keep the attacker from its work for as many rounds as there are
    try:
        for number in itertools.count():
            if number >= ROUNDS * test_scale and (refused or time.monotonic() > deadline):
                break
            folder = tmp_path / "store" / str(number % 8)
            snapshot: Snapshot | None = None
            try:
                snapshot = take_snapshot(proven, folder)
            except ScaleoutError:
                refused += 1
            if snapshot is not None:
                taken += 1
                assert content(snapshot.path) == expected
            if number % 3 == 0:
                discard(folder)
    finally:
        stop.set()
        attacker.join()
    print(f"{taken} taken, all of them as signed; {refused} refused")
    assert refused, "the attacker was never in time: the test proves nothing"
    for name in (".swap", ".swap-0", ".swap-1"):
        (project.path / name).unlink(missing_ok=True)
    # Control: with the attacker gone the signed bytes are taken.
    assert content(take_snapshot(proven, tmp_path / "store" / "control").path) == expected
