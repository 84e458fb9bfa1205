# SPDX-License-Identifier: Apache-2.0
"""A project that is not exactly what was signed: nothing of it runs, the combiner hears the code, the trail says why.

One running node for all cases: the project is changed, a task is offered, the project is put back.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from scaleoutd.core.manifest import MANIFEST_NAME
from scaleoutd.devcombiner.server import DevCombiner
from scaleoutd.runner.runs import run_name
from tests.e2e.site import Project, Site, events, now_ms

VERSION = 5
HOUR_MS = 3_600_000


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with DevCombiner() as combiner, Site(folder, combiner) as site:
        (site.project.folder / "lib").mkdir()
        (site.project.folder / "lib" / "layers.py").write_text("WIDTH = 3\n")
        (site.project.folder / "labels.txt").write_text("cat\ndog\n")
        site.project.version = VERSION
        site.project.sign()
        shutil.copytree(site.project.folder, folder / "pristine")
        site.start()
        yield site


@pytest.fixture
def project(site: Site) -> Iterator[Project]:
    yield site.project
    shutil.rmtree(site.project.folder)
    shutil.copytree(site.folder / "pristine", site.project.folder)


def one_byte(project: Project) -> None:
    """Same size, same times: only the bytes tell."""
    path = project.folder / "train.py"
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b"0.5", b"0.6"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def one_byte_of_a_module(project: Project) -> None:
    (project.folder / "lib" / "layers.py").write_text("WIDTH = 4\n")


def another_command(project: Project) -> None:
    path = project.folder / "scaleout.yaml"
    path.write_text(path.read_text().replace("python train.py", "python other.py"))


def extra_file(project: Project) -> None:
    (project.folder / "sitecustomize.py").write_text("print('hello')\n")


def extra_file_in_a_new_folder(project: Project) -> None:
    (project.folder / "json").mkdir()
    (project.folder / "json" / "__init__.py").write_text("")


def another_spelling(project: Project) -> None:
    (project.folder / "Train.py").write_text("")


def missing_file(project: Project) -> None:
    (project.folder / "lib" / "layers.py").unlink()


def renamed_file(project: Project) -> None:
    (project.folder / "labels.txt").rename(project.folder / "labels.old")


def swapped_files(project: Project) -> None:
    one, other = project.folder / "train.py", project.folder / "validate.py"
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def setuid(project: Project) -> None:
    (project.folder / "train.py").chmod(0o4644)


def made_executable(project: Project) -> None:
    (project.folder / "train.py").chmod(0o755)


def symlink(project: Project) -> None:
    """Even to the very bytes that were signed."""
    path = project.folder / "train.py"
    path.rename(project.folder.parent / "elsewhere.py")
    path.symlink_to(project.folder.parent / "elsewhere.py")


def folder_symlink(project: Project) -> None:
    moved = project.folder.parent / "lib"
    shutil.rmtree(moved, ignore_errors=True)
    (project.folder / "lib").rename(moved)
    (project.folder / "lib").symlink_to(moved)


def fifo(project: Project) -> None:
    (project.folder / "labels.txt").unlink()
    os.mkfifo(project.folder / "labels.txt")


def hard_link_out(project: Project) -> None:
    outside = project.folder.parent / "second-name"
    outside.unlink(missing_ok=True)
    outside.hardlink_to(project.folder / "train.py")


def older_version(project: Project) -> None:
    project.sign(version=VERSION - 1)


def expired(project: Project) -> None:
    project.sign(not_before_ms=now_ms() - 2 * HOUR_MS, expires_ms=now_ms() - HOUR_MS)


def not_yet_valid(project: Project) -> None:
    project.sign(not_before_ms=now_ms() + HOUR_MS)


def unsigned(project: Project) -> None:
    (project.folder / MANIFEST_NAME).unlink()


def unknown_key(project: Project) -> None:
    project.sign([Ed25519PrivateKey.generate()])


def signature_of_other_bytes(project: Project) -> None:
    path = project.folder / MANIFEST_NAME
    before = json.loads(path.read_bytes())
    project.sign(version=VERSION + 1)
    after = json.loads(path.read_bytes())
    path.write_text(json.dumps({**after, "signatures": before["signatures"]}))


def signed_for_another_project(project: Project) -> None:
    project.sign(project="other")


def linked_manifest(project: Project) -> None:
    path = project.folder / MANIFEST_NAME
    path.rename(project.folder.parent / MANIFEST_NAME)
    path.symlink_to(project.folder.parent / MANIFEST_NAME)


def garbage_manifest(project: Project) -> None:
    (project.folder / MANIFEST_NAME).write_bytes(b"\xff" * 100)


@dataclass(frozen=True)
class Case:
    change: Callable[[Project], None]
    code: str
    file: str = ""
    expected: str = ""
    found: str = ""


CASES = [
    Case(one_byte, "file-changed", "train.py"),
    Case(one_byte_of_a_module, "file-changed", "lib/layers.py"),
    Case(another_command, "file-changed", "scaleout.yaml"),
    Case(extra_file, "file-extra", "sitecustomize.py", "no such file in the manifest", "a file of 15 bytes"),
    Case(extra_file_in_a_new_folder, "file-extra", "json/__init__.py"),
    Case(another_spelling, "file-name", "Train.py"),
    Case(missing_file, "file-missing", "lib/layers.py", "a file of 10 bytes", "none"),
    Case(renamed_file, "file-extra", "labels.old"),
    Case(swapped_files, "file-changed", "train.py"),
    Case(setuid, "file-mode", "train.py", found="mode 4644"),
    Case(made_executable, "file-mode", "train.py", "not executable", "mode 0755"),
    Case(symlink, "file-type", "train.py", "a regular file", "link"),
    Case(folder_symlink, "file-type", "lib", "a regular file", "link"),
    Case(fifo, "file-type", "labels.txt", "a regular file", "FIFO"),
    Case(hard_link_out, "file-type", "train.py", found="2 links"),
    Case(older_version, "manifest-replayed", expected=f"version {VERSION} or later", found=f"version {VERSION - 1}"),
    Case(expired, "manifest-expired", expected="before 2", found="Z"),
    Case(not_yet_valid, "manifest-not-yet-valid", expected="from 2", found="Z"),
    Case(unsigned, "manifest-missing"),
    Case(unknown_key, "signature-threshold"),
    Case(signature_of_other_bytes, "signature-threshold"),
    Case(signed_for_another_project, "project-mismatch", expected="echo", found="other"),
    Case(linked_manifest, "file-type"),
    Case(garbage_manifest, "envelope-invalid"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.change.__name__)
def test_a_project_that_is_not_what_was_signed_does_not_run(case: Case, site: Site, project: Project) -> None:
    case.change(project)
    offer = site.task()
    assert offer.status == "FAILED"
    assert json.loads(offer.response)["code"] == case.code
    # The combiner gets the code; which files a hospital has is not its business.
    assert not case.file or case.file not in offer.response
    assert offer.result_at_s is None

    (refused,) = site.events("manifest-refused", correlation_id=offer.correlation_id)
    assert refused["code"] == case.code
    assert refused["hint"]
    for key, wanted in (("file", case.file), ("expected", case.expected), ("found", case.found)):
        assert wanted in refused.get(key, ""), (key, refused)
    if case.file:
        assert refused["expected"] and refused["found"] and case.file in refused["message"]
    assert nothing_ran(site, offer.correlation_id)


def nothing_ran(site: Site, correlation_id: str) -> bool:
    recorded = site.events("run-about-to-start", "run-ended", "computed", "release", correlation_id=correlation_id)
    output = site.state / "runner" / "output" / f"{run_name(correlation_id)}.log"
    return not recorded and not output.exists()


def test_control_the_signed_project_runs(site: Site, project: Project) -> None:
    offer = site.task()
    assert offer.status == "COMPLETED"
    assert not nothing_ran(site, offer.correlation_id)
    (verified,) = site.events("manifest-verified", correlation_id=offer.correlation_id)
    assert verified["manifest_version"] == VERSION


def test_a_file_changed_between_proof_and_run_does_not_run_and_is_refused_the_next_time(site: Site, project: Project) -> None:
    combiner = site.combiner
    assert combiner is not None
    # The agent asks for the model when the runner has proven and copied the project: the answer waits while we swap.
    combiner.faults.rpc_delays_s["Download"] = 1.5
    try:
        correlation_id = site.offer()
        started = f"train started: {correlation_id}"
        assert combiner.board.wait_until(lambda: any(started in str(status) for status in combiner.statuses), 90)
        train = project.folder / "train.py"
        train.write_text(train.read_text().replace('"num_examples": 7', '"num_examples": 1000000').replace("0.5", "0.001"))
        assert events(site.state, "run-about-to-start")[-1]["correlation_id"] != correlation_id, "the swap came too late"
    finally:
        combiner.faults.rpc_delays_s.clear()
    assert site.wait(correlation_id).status == "COMPLETED"
    (update,) = [update for update in combiner.updates if update.correlation_id == correlation_id]
    assert update.num_examples == 7
    again = site.task()
    assert (again.status, json.loads(again.response)["code"]) == ("FAILED", "file-changed")
    assert nothing_ran(site, again.correlation_id)


def test_a_new_signed_version_is_taken_without_a_restart(site: Site, project: Project) -> None:
    """Last: from here on the older version is refused."""
    train = project.folder / "train.py"
    train.write_text(train.read_text().replace('"num_examples": 7', '"num_examples": 11'))
    project.version = VERSION + 1
    project.sign()
    offer = site.task()
    assert offer.status == "COMPLETED"
    assert site.combiner is not None
    assert [update.num_examples for update in site.combiner.updates if update.correlation_id == offer.correlation_id] == [11]
    shutil.rmtree(project.folder)
    shutil.copytree(site.folder / "pristine", project.folder)
    old = site.task()
    assert (old.status, json.loads(old.response)["code"]) == ("FAILED", "manifest-replayed")
