# SPDX-License-Identifier: Apache-2.0
"""Puts this tree into a guest as an installed node has it: the files of packaging/layout.py, users, folders, units.

install_tree does what the deb does, without building one (a second instead of half a minute), for tests of units and commands.
Tests of the package itself build and install it.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.system.guest import Guest
from tests.system.image import TREE
from tests.system.process import Ran


def libraries(into: Path, guest: Guest) -> None:
    """The private libraries as the lock names them: from this test's own environment (the same pins) where its interpreter is as
    the guest's, else from the wheels that the deb is made of."""
    if guest.python("import sys; print(sys.version_info.minor)").text != str(sys.version_info.minor):
        program: list[str | Path] = [sys.executable, "-B", TREE / "packaging/libraries.py"]
        subprocess.run([*program, "--distribution", distribution(guest.suite), "--into", into], check=True)
        return
    lock = (TREE / "requirements/site.txt").read_text()
    for name in re.findall(r"^([A-Za-z0-9_.-]+)==", lock, re.MULTILINE):
        for path in importlib.metadata.files(name) or []:
            if path.suffix != ".pyc" and ".." not in path.parts:
                (into / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(str(path.locate()), into / path)


def distribution(suite: str) -> str:
    """The one whose packages the suite runs: backports change systemd, and nothing of ours is built against that."""
    return suite.removesuffix("-backports")


def install_tree(guest: Guest) -> None:
    """Everything in place and known to systemd; nothing enabled, nothing configured."""
    with tempfile.TemporaryDirectory(dir=guest.folder) as name:
        root, site = Path(name, "root"), Path(name, "site")
        libraries(site, guest)
        layout: list[str | Path] = [sys.executable, TREE / "packaging/layout.py", "--into", root, "--libraries", site]
        subprocess.run(layout, check=True)
        for folder in sorted(root.iterdir()):
            guest.push(folder, f"/{folder.name}")
    guest.run("systemd-sysusers && systemd-tmpfiles --create && systemctl daemon-reload", timeout_s=30)


def install_deb(guest: Guest, deb: Path, *options: str, check: bool = True) -> Ran:
    """`apt install ./X.deb` with what is in the image: no network, so everything that it depends on must be there."""
    guest.push(deb, f"/root/{deb.name}")
    apt = ["apt-get", "install", "--yes", "--no-install-recommends", "-o", "APT::Sandbox::User=root"]
    return guest.run([*apt, *options, f"/root/{deb.name}"], check=check, timeout_s=180, env={"DEBIAN_FRONTEND": "noninteractive"})
