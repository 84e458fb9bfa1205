# SPDX-License-Identifier: Apache-2.0
"""How large a model may be on a disk with little space: real file systems of known size, in a mount namespace of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ASK = """
import sys
from pathlib import Path
from scaleoutd.errors import ScaleoutError
from scaleoutd.runner.space import largest_model
try:
    print(largest_model(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
except ScaleoutError as exc:
    print(exc.code)
"""
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")


def ask(state: Path, scratch: Path, state_mib: int, scratch_mib: int = 0, expected_mib: int = 0) -> str:
    state.mkdir()
    script = f"mount -t tmpfs -o size={state_mib}m none {state} && mkdir -p {scratch} && "
    if scratch_mib:
        script += f"mount -t tmpfs -o size={scratch_mib}m none {scratch} && "
    script += 'exec "$@"'
    command = [sys.executable, "-c", ASK, str(state), str(scratch), str(expected_mib << 20)]
    told = subprocess.run(["unshare", "-m", "sh", "-c", script, "sh", *command], capture_output=True, text=True, check=True)
    return told.stdout.strip()


def test_a_model_must_fit_twice_beside_what_is_kept_for_the_trail(tmp_path: Path) -> None:
    assert int(ask(tmp_path / "state", tmp_path / "state" / "scratch", 274)) == 100 << 20  # (274 - 64) / 2.1


def test_on_two_file_systems_it_must_fit_on_each_once(tmp_path: Path) -> None:
    assert int(ask(tmp_path / "state", tmp_path / "scratch", 274, 169)) == 100 << 20  # (169 - 64) / 1.05


def test_a_disk_with_no_room_for_any_model_is_refused(tmp_path: Path) -> None:
    assert ask(tmp_path / "state", tmp_path / "state" / "scratch", 65) == "storage-full"


def test_a_model_as_large_as_the_last_one_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    assert ask(tmp_path / "state", tmp_path / "state" / "scratch", 274, expected_mib=101) == "storage-full"


def test_control_a_model_as_large_as_the_last_one_that_fits_is_not(tmp_path: Path) -> None:
    assert int(ask(tmp_path / "state", tmp_path / "state" / "scratch", 274, expected_mib=99)) > 99 << 20
