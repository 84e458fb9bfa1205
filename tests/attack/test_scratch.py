# SPDX-License-Identifier: Apache-2.0
"""More in scratch than a run may have, where a careless look does not see it: each is `limit-scratch`, and has a control."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from scaleoutd.core.plan import STEP_UID_BASE
from tests.attack.arena import USER
from tests.step_client import MIB, PYTHON, Finished, StepClient, plan_for

ROOT = os.geteuid() == 0
MODES = ("root", "user", "inner") if ROOT else ("user", "inner")
MOST = 16 * MIB
# What is left over when the limit is found late: the step waits to be ended and never ends by itself.
WAIT = "\nimport time; time.sleep(600); print('through')\n"


class Place:
    def __init__(self, mode: str, folder: Path) -> None:
        self.mode, self.folder = mode, folder
        self.uid = USER if ROOT and mode != "root" else None
        folder.mkdir(mode=0o755)
        if self.uid is not None:
            os.chown(folder, self.uid, self.uid)
        self.client = StepClient(uid=self.uid)

    def run(self, code: str) -> Finished:
        scratch = self.folder / "scratch"
        inner = {"backend": "inner", "links": (), "cwd": str(scratch)} if self.mode == "inner" else {}
        limits = {"scratch_bytes": MOST, "wall_clock_s": 200}
        return self.client.execute(plan_for(scratch, [PYTHON, "-c", "import os\n" + code], limits=limits, **inner))


@pytest.fixture(params=MODES)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    top = Path(f"/tmp/scaleoutd-scratch-{os.urandom(6).hex()}")
    top.mkdir(mode=0o755)
    found = Place(request.param, top / "home")
    yield found
    found.client.close()
    for path in (found.folder / "scratch", found.folder, top):
        if path.exists():
            path.rmdir()  # the launcher emptied it


def was_ended(done: Finished) -> bool:
    return (done.result.ended, done.result.code) == ("limit", "limit-scratch") and "through" not in done.output


def test_control_many_folders_some_deep_and_small_files_are_left_alone(place: Place) -> None:
    done = place.run(
        "for i in range(600):\n  os.makedirs(f'd{i}/e'); open(f'd{i}/e/f', 'w').write('x')\n"
        "for i in range(90): os.mkdir('d'); os.chdir('d')\nprint('done')"
    )
    assert (done.result.ended, done.result.exit_status, done.output) == ("exited", 0, "done\n")


def test_behind_more_folders_than_a_walk_keeps_open(place: Place) -> None:
    done = place.run(
        "for i in range(600): os.mkdir(f'd{i}')\n"
        "late = [entry.name for entry in os.scandir('.') if entry.name.startswith('d')][400:]\n"
        "for name in late[:8]: open(f'{name}/f', 'wb').write(bytes(4 << 20))" + WAIT
    )
    assert was_ended(done), done
    assert done.result.scratch_bytes > MOST


def test_in_a_folder_that_its_owner_has_closed(place: Place) -> None:
    code = "os.mkdir('h'); files = [open(f'h/{i}', 'wb') for i in range(8)]\nos.chmod('h', 0)\n"
    done = place.run(code + "for file in files: file.write(bytes(4 << 20)); file.flush()" + WAIT)
    assert was_ended(done), done


def test_in_a_folder_closed_just_before_the_end(place: Place) -> None:
    done = place.run("os.mkdir('h'); open('h/f', 'wb').write(bytes(20 << 20)); os.chmod('h', 0)")
    assert was_ended(done), done


def test_deeper_than_anybody_looks(place: Place) -> None:
    code = "for i in range(200): os.mkdir('d'); os.chdir('d')\n"
    done = place.run(code + "for i in range(8): open(f'{i}', 'wb').write(bytes(4 << 20))" + WAIT)
    assert was_ended(done), done


def test_names_of_nothing_that_use_up_the_inodes_of_the_disk(place: Place) -> None:
    done = place.run("for i in range(6000): os.close(os.open(f'e{i}', os.O_CREAT | os.O_WRONLY))" + WAIT)
    assert was_ended(done), done


def test_behind_more_names_than_one_look_takes(place: Place) -> None:
    """The walk goes on where it stopped; what comes last is counted too."""
    code = "for i in range(3000): os.link('one', f'n{i}')\n"
    done = place.run("open('one', 'w')\n" + code + "for i in range(8): open(f'z{i}', 'wb').write(bytes(4 << 20))" + WAIT)
    assert was_ended(done), done


@pytest.mark.skipif(not ROOT, reason="a disk of one's own can be mounted by root only")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("wrote_mib", "ended"), [(38, True), (20, False)], ids=["about-to-be-full", "control-room-left"])
def test_files_without_a_name_end_the_run_before_the_disk_is_full(
    tmp_path_factory: pytest.TempPathFactory, mode: str, wrote_mib: int, ended: bool
) -> None:
    """No walk sees them and no quota holds them, but the node must not lose its disk: `_RESERVE_BYTES` of watch.py."""
    top = Path(f"/tmp/scaleoutd-scratch-{os.urandom(6).hex()}")
    top.mkdir(mode=0o755)
    subprocess.run(["/usr/bin/mount", "-t", "tmpfs", "-o", "size=40m,mode=0755", "none", str(top)], check=True)
    try:
        place = Place(mode, top / "home")
        code = f"files = []\nfor _ in range({wrote_mib}):\n  files.append(open('u', 'wb')); os.unlink('u')\n"
        code += "  files[-1].write(bytes(1 << 20)); files[-1].flush()"
        done = place.run(code + (WAIT if ended else "\nprint('done')"))
        place.client.close()
        if ended:
            assert was_ended(done), done
        else:
            assert (done.result.ended, done.output) == ("exited", "done\n")
    finally:
        subprocess.run(["/usr/bin/umount", "-l", str(top)], check=True)
        top.rmdir()


def test_the_next_run_does_not_learn_from_the_size_of_the_folder_what_was_in_it(place: Place) -> None:
    """ext4 does not shrink a folder; what a run leaves behind is a word to the next one."""
    told = "print(os.stat('.').st_size)"
    fresh = place.run(told).output
    left = place.run("for i in range(2000): os.close(os.open('e' * 200 + str(i), os.O_CREAT | os.O_WRONLY))\n" + told)
    assert left.result.scratch_bytes > 0
    place.client.close()
    place.client = StepClient(uid=place.uid)  # as for each task
    assert place.run(told).output == fresh


def test_step_of_root_has_the_uid_of_its_slot(place: Place) -> None:
    """Control of the cases above: the folder that is closed is closed to its owner, who is not root."""
    done = place.run("print(os.getuid())")
    assert int(done.output) == (STEP_UID_BASE if place.mode == "root" else (place.uid or os.geteuid()))
