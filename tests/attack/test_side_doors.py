# SPDX-License-Identifier: Apache-2.0
"""Small ways out of a view that its walls do not stop: the times of the host's devices, calls newer than the filter.

Each act is made inside, and as its control by the same user outside, where it succeeds.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from scaleoutd.core.plan import STEP_UID_BASE
from tests.attack.arena import USER
from tests.step_client import PYTHON, StepClient, plan_for

ROOT = os.geteuid() == 0
TRY = "import errno\ntry: {act}; print('allowed')\nexcept OSError as exc: print(errno.errorcode[exc.errno])\n"
TOUCH = "import os\n" + TRY.format(act="os.utime('/dev/null')")
# Numbers of calls that came with Linux 6.8 to 6.17, the same on every architecture; the filter does not know them.
NEW_CALLS = {"statmount": 457, "listmount": 458, "lsm_list_modules": 461, "setxattrat": 463, "open_tree_attr": 467}
CALL = """
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
for number in {numbers}:
    libc.syscall(ctypes.c_long(number), ctypes.c_long(-1), 0, 0, 0, 0, 0)
    print(errno.errorcode[ctypes.get_errno()])
"""


@pytest.fixture(params=("root", "user") if ROOT else ("user",))
def place(request: pytest.FixtureRequest) -> Iterator[tuple[StepClient, Path, int]]:
    """A launcher, a scratch folder, and the uid of the step."""
    with tempfile.TemporaryDirectory(prefix="scaleoutd-doors-") as name:
        uid = USER if ROOT and request.param == "user" else None
        if uid is not None:
            os.chown(name, uid, uid)
        with StepClient(uid=uid) as client:
            yield client, Path(name) / "scratch", STEP_UID_BASE if ROOT and uid is None else uid or os.geteuid()


def outside(code: str, uid: int) -> str:
    change = {"user": uid, "group": uid, "extra_groups": []} if ROOT else {}
    ran = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=True, cwd="/", **change)  # type: ignore[call-overload]
    return str(ran.stdout)


def test_times_of_the_hosts_null_device_are_not_the_steps(place: tuple[StepClient, Path, int]) -> None:
    """Who may write to a file may set its times to now; a device of the view is the host's inode."""
    client, scratch, uid = place
    assert client.execute(plan_for(scratch, [PYTHON, "-c", TOUCH])).output == "EROFS\n"
    assert outside(TOUCH, uid) == "allowed\n"


def test_devices_are_written_to_and_opened_in_every_way_all_the_same(place: tuple[StepClient, Path, int]) -> None:
    client, scratch, _ = place
    code = (
        "import os\nfor path in ('/dev/null', '/dev/zero', '/dev/urandom'):\n"
        "  open(path, 'w').write('x'); open(path, 'ab').write(b'x')\n"
        "os.close(os.open('/dev/null', os.O_CREAT | os.O_TRUNC | os.O_RDWR, 0o600))\n"
        "assert os.system('echo x >/dev/null 2>&1') == 0\nprint(len(open('/dev/zero', 'rb').read(9)))"
    )
    assert client.execute(plan_for(scratch, [PYTHON, "-c", code])).output == "9\n"


def test_calls_newer_than_the_filter_are_not_there(place: tuple[StepClient, Path, int]) -> None:
    client, scratch, uid = place
    code = CALL.format(numbers=list(NEW_CALLS.values()))
    assert client.execute(plan_for(scratch, [PYTHON, "-c", code])).output.split() == ["ENOSYS"] * len(NEW_CALLS)
    known = outside(code, uid).split()  # an old kernel does not have them either, and there this shows nothing more
    assert len(known) == len(NEW_CALLS)
