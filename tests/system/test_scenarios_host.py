# SPDX-License-Identifier: Apache-2.0
"""Hosts as sites have them: noexec on everything that is written to, umask 027, hidepid=2.  On each a node does two rounds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.system.container import Container
from tests.system.hospital import Hospital
from tests.system.image import missing_for_container
from tests.system.install import install_tree
from tests.system.promises import check_node

# The way to make the host, before anything is installed; how it shows that it is so.
HOSTS = {
    "noexec": (
        "for place in /tmp /var/tmp /dev/shm /home; do mount -t tmpfs -o noexec,nosuid,nodev,mode=1777 none $place; done",
        "for place in /tmp /var/tmp /dev/shm /home; do cp /bin/true $place/true; ! $place/true 2>/dev/null; done",
    ),
    "noexec-var": (
        "mount --bind /var /var; mount -o remount,bind,noexec,nosuid,nodev /var",
        "cp /bin/true /var/tmp/true; ! /var/tmp/true 2>/dev/null",
    ),
    "hidepid": (
        "mount -o remount,hidepid=2 /proc",
        "! runuser -u nobody -- test -e /proc/1",
    ),
}


@contextmanager
def ready(tmp_path: Path) -> Iterator[tuple[Container, Hospital]]:
    if reason := missing_for_container():
        pytest.skip(reason)
    with Container() as guest, Hospital(guest, tmp_path) as hospital:
        yield guest, hospital


def two_rounds(hospital: Hospital) -> None:
    hospital.bring()
    hospital.start()
    hospital.rounds(2)
    assert [update.counted for update in hospital.combiner.updates] == [True, True]
    check_node(hospital)


@pytest.mark.parametrize("host", HOSTS)
def test_a_node_works_on_a_hardened_host(tmp_path: Path, host: str) -> None:
    harden, shows = HOSTS[host]
    with ready(tmp_path) as (guest, hospital):
        guest.script(harden)
        guest.script(shows)
        install_tree(guest)
        two_rounds(hospital)
        guest.script(shows)


def test_a_node_works_where_root_has_umask_027(tmp_path: Path) -> None:
    """Everything that the commands write for the rooms says its mode itself."""
    with ready(tmp_path) as (guest, hospital):
        install_tree(guest)
        guest.umask = 0o027
        assert guest.run("umask").text == "0027"
        two_rounds(hospital)
