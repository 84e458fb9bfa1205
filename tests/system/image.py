# SPDX-License-Identifier: Apache-2.0
"""The root image of the booted tests (tools/image.sh makes and caches it), and what is put into a guest before it boots.

`missing_*` say in one line why guests cannot be booted here; the fixtures print it as the reason of what did not run.  Run as a
program (tools/setup.sh system) it makes the image before the tests, so that no test's time has that in it.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent.parent
BOOKWORM, BACKPORTS, TRIXIE = "bookworm", "bookworm-backports", "trixie"
SYSTEMD = {BOOKWORM: 252, BACKPORTS: 254, TRIXIE: 257}  # of each suite that can be booted
OWN = "usr/local/lib/guest"  # of the guest: the few modules of ours in it, as the package they are here
INSIDE = ("inside", "forward", "unit_wait")
LINE_UNIT = """\
[Unit]
Description=the line to the tests
DefaultDependencies=no
After=basic.target dbus.socket
Wants={device}
After={device}
Conflicts=shutdown.target
Before=shutdown.target
[Service]
ExecStart=/usr/bin/python3 -I -B -c "{program}"
Restart=no
TasksMax=infinity
LimitNOFILE=65536
KillMode=mixed
TimeoutStopSec=2
"""


def image(machine: bool = False, suite: str = BOOKWORM) -> Path:
    """The folder that has `root`, and with machine also `machine`."""
    made = subprocess.run([TREE / "tools/image.sh", *(["-m"] if machine else []), suite], capture_output=True, text=True)
    if made.returncode:
        raise AssertionError(f"the image of {suite} could not be made:\n{made.stderr[-4000:]}")
    return Path(made.stdout.strip())


def missing_image(machine: bool, suite: str) -> str:
    """Where the archive of packages cannot be reached there is no image, and that says nothing about the node."""
    try:
        image(machine, suite)
    except AssertionError as exc:
        return f"booted tests need an image of {suite}: {str(exc).splitlines()[-1]}"
    return ""


@functools.cache
def missing_for_container(suite: str = BOOKWORM) -> str:
    """Why no container of the suite can be booted here, or ''."""
    return missing("mmdebstrap", "systemd-nspawn", "unshare", "setpriv") or missing_image(False, suite)


@functools.cache
def missing_for_machine(suite: str = BOOKWORM) -> str:
    """Why no machine of the suite can be booted here, or ''."""
    return missing("mmdebstrap", "qemu-system-x86_64", "mke2fs", "cpio", "xz", "zstd", "unshare", "setpriv") or missing_image(
        True, suite
    )


def missing(*programs: str) -> str:
    if os.geteuid() != 0:
        return "booted tests are run by root only"
    absent = [program for program in programs if not shutil.which(program)]
    if absent:
        return f"booted tests need {', '.join(absent)}: tools/setup.sh system installs them"
    tried = subprocess.run(["unshare", "--mount", "--propagation", "private", "true"], capture_output=True, text=True)
    if tried.returncode:
        return f"booted tests need the right to mount: {tried.stderr.strip()}"
    return ""


def run_inside(module: str) -> str:
    """The text that runs one of our modules in the guest, for python -c."""
    return f"import sys; sys.path.insert(0, '/{OWN}'); from tests.system.{module} import main; main()"


def seed(root: Path, programs: Mapping[str, str] | None = None, device: str = "") -> None:
    """Puts the line to the tests, and programs by path, into the folder that lies over the guest's root."""
    units = root / "etc/systemd/system"
    package = root / OWN / "tests/system"
    for folder in (units / "multi-user.target.wants", package):
        folder.mkdir(parents=True, exist_ok=True)
    for path in (package.parent / "__init__.py", package / "__init__.py"):
        path.touch()
    for module in INSIDE:
        shutil.copyfile(TREE / f"tests/system/{module}.py", package / f"{module}.py")
    (units / "guest.service").write_text(LINE_UNIT.format(device=device, program=run_inside("inside")))
    (units / "multi-user.target.wants/guest.service").symlink_to("../guest.service")
    for name, text in (programs or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for path in root.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or str(path.relative_to(root)) in (programs or {}) else 0o644)


def main() -> None:
    for suite in SYSTEMD:
        start_s = time.monotonic()
        if reason := missing_for_machine(suite) if suite == BOOKWORM else missing_for_container(suite):
            print(f"setup: {reason}")
        else:
            print(f"setup: image of the booted tests in {time.monotonic() - start_s:.1f} s: {image(suite == BOOKWORM, suite)}")


if __name__ == "__main__":
    main()
