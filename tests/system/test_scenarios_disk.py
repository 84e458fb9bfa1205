# SPDX-License-Identifier: Apache-2.0
"""Full disks of an installed node: the task fails by that name, on record; with room again the next one runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fault.node import LARGE
from tests.system.container import Container
from tests.system.hospital import Hospital
from tests.system.promises import check_node, check_task

# Folders of one node, each a small file system of its own.
PLACES = {"runner": "160m", "agent": "64m", "audit": "32m"}
# Held open, what is deleted meanwhile keeps its blocks: full stays full.
FILL = """\
cd "$1"
exec 9<.
find . -type f -exec sh -c 'for file; do tail -f "$file" >/dev/null & done' sh {} + 2>/dev/null
dd if=/dev/zero of=ballast bs=64k status=none || true
dd if=/dev/zero of=ballast bs=1 oflag=append conv=notrunc status=none || true
test "$(stat -fc %a .)" = 0
"""


@pytest.fixture(scope="module")
def hospital(node: Container, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    for name, size in PLACES.items():
        folder = f"/var/lib/scaleoutd/{name}"
        node.script(
            f"mkdir -p {folder}; owner=$(stat -c %u:%g {folder}); mode=$(stat -c %a {folder})\n"
            f"mount -t tmpfs -o size={size} none {folder}; chown $owner {folder}; chmod $mode {folder}\n"
            f"systemd-tmpfiles --create\n"
        )
    with Hospital(node, tmp_path_factory.mktemp("hospital")) as site:
        site.bring()
        site.start()
        yield site


def fill(hospital: Hospital, place: str) -> None:
    hospital.guest.script(FILL, f"/var/lib/scaleoutd/{place}")


def free(hospital: Hospital, place: str) -> None:
    hospital.guest.run(f"rm /var/lib/scaleoutd/{place}/ballast; pkill -x tail || true")


def test_the_control_a_large_model_fits(hospital: Hospital) -> None:
    assert check_task(hospital, hospital.offer(model=LARGE)) == "COMPLETED"
    check_node(hospital)


def test_the_runners_disk_is_full(hospital: Hospital) -> None:
    fill(hospital, "runner")
    assert check_task(hospital, hospital.offer(model=LARGE)) == "storage-full"
    free(hospital, "runner")
    assert check_task(hospital, hospital.offer(model=LARGE)) == "COMPLETED"
    check_node(hospital)


def test_the_trails_disk_is_full(hospital: Hospital) -> None:
    """What cannot be recorded does not run."""
    fill(hospital, "audit")
    _use_up_the_last_page(hospital)
    now = hospital.guest.journal_cursor()
    task = hospital.offer()
    hospital.guest.wait_journal("scaleoutd.service", '"code": "ledger-unavailable".*nothing runs and nothing leaves', after=now)
    of_task = {event["type"] for event in hospital.trail() if event.get("correlation_id") == task}
    assert not of_task & {"run-about-to-start", "computed", "release", "sending"}
    assert hospital.counted(task) == 0
    free(hospital, "audit")
    assert check_task(hospital, task) == "COMPLETED"
    check_node(hospital)


def _use_up_the_last_page(hospital: Hospital) -> None:
    """A full disk takes what still fits into the last page of the journal.  A command is done only when it is on record."""
    for _ in range(64):
        refused = hospital.guest.run("scaleoutctl reload --json", check=False)
        if refused.status:
            assert "ledger-unavailable" in refused.told, refused.told
            return
    raise AssertionError("64 events went onto a full disk")
