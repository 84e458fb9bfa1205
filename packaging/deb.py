#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Builds the Debian package: dist/scaleoutd_VERSION_ARCH.deb (make deb; make deb DISTRIBUTION=trixie for Debian 13).

Rules:
  1. The same tree gives the same bits, whoever builds, wherever, with any umask: no time but SOURCE_DATE_EPOCH (the last
     commit's when it is not set), no owner but root, no order but that of names, one thread of compression.
  2. By dpkg-deb alone: packed are layout.py's list and the maintainer scripts of packaging/debian as they are; no debhelper
     adds to them, so both can be read in full.
  3. Compiled modules are for one Python, so there is a package for each Debian, and its dependencies refuse the other.  Debian
     13's has the higher version: an upgrade of the system brings it.
  4. No root, no network when the wheels of requirements/site.txt lie in dist/wheels.

Needs dpkg-dev (dpkg-deb, dpkg-parsechangelog) and binutils.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import layout
import libraries
import sbom

TREE = layout.TREE
DEBIAN = TREE / "packaging/debian"
SCRIPTS = ("postinst", "prerm", "postrm")
DOCS = layout.DOCS
COMPLETION = {
    "bash": "usr/share/bash-completion/completions/{}",
    "zsh": "usr/share/zsh/vendor-completions/_{}",
    "fish": "usr/share/fish/vendor_completions.d/{}.fish",
}
KIB = 1024
RELEASES = {"bookworm": "~deb12", "trixie": "~deb13"}  # as versions end


def build(into: Path, wheels: Path, arch: str, version: str, distribution: str) -> Path:
    """Builds the package for Debian's `arch` and `distribution` into the folder `into`; its path."""
    python = libraries.PYTHONS[distribution]
    found = libraries.wheels(wheels, libraries.MACHINES[arch], python)
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="scaleoutd-deb-") as work:
        root = Path(work) / "root"
        root.mkdir(mode=0o755)
        site = Path(work) / "site"
        libraries.unpack(found, site, libraries.MACHINES[arch])
        layout.copy(root, site)
        write_completion(root)
        write_documents(root, found, version)
        bill = sbom.bill(found, root / layout.LIBRARIES, version=version, arch=arch, when_s=epoch())
        put(root, f"{DOCS}/sbom.cdx.json", bill)
        write_control(root, arch, version, python)
        settle(root, epoch())
        target = into / f"scaleoutd_{version}_{arch}.deb"
        environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch())}
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-Zxz", "-z6", "--threads-max=1", "--build", str(root), str(target)],
            check=True,
            env=environment,
            stdout=subprocess.DEVNULL,
        )
    return target


def epoch() -> int:
    """Seconds since 1970 that every file of the package bears."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    told = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=TREE, capture_output=True, text=True)
    if told.returncode == 0 and told.stdout.strip():
        return int(told.stdout)
    return int(changelog("Timestamp"))  # an unpacked archive of the sources


def changelog(field: str) -> str:
    """A field of the changelog's first entry."""
    told = subprocess.run(
        ["dpkg-parsechangelog", "-l", str(DEBIAN / "changelog"), "-S", field], check=True, capture_output=True, text=True
    )
    return told.stdout.strip()


def version_of_tree() -> str:
    """The changelog's version; SystemExit when it is not that of the Python package."""
    match = re.search(r'^version = "(.+)"$', (TREE / "pyproject.toml").read_text(), re.MULTILINE)
    version = changelog("Version")
    if match is None or version.rpartition("-")[0] != match[1]:
        raise SystemExit(f"deb: packaging/debian/changelog has {version}, pyproject.toml {match and match[1]}")
    return version


def write_completion(root: Path) -> None:
    """What `scaleoutctl completion` prints, in the shells' own folders; one file for each program."""
    for shell, place in COMPLETION.items():
        for program in ("scaleoutctl", "scaleoutd"):
            told = subprocess.run(
                [
                    sys.executable,
                    "-I",
                    "-B",
                    "-c",
                    _COMPLETE,
                    str(root / layout.HOME),
                    str(root / layout.LIBRARIES),
                    shell,
                    program,
                ],
                check=True,
                capture_output=True,
            )
            put(root, place.format(program), told.stdout)


_COMPLETE = """
import sys
sys.path[:0] = sys.argv[1:3]
from scaleoutd.cli.completion import script
print(script(*sys.argv[3:]))
"""


def write_documents(root: Path, found: dict[libraries.Pin, Path], version: str) -> None:
    put(root, f"{DOCS}/copyright", (DEBIAN / "copyright").read_bytes())
    put(root, f"{DOCS}/changelog.gz", packed((TREE / "CHANGELOG.md").read_bytes()))
    text = (DEBIAN / "changelog").read_text().replace(changelog("Version"), version, 1)
    put(root, f"{DOCS}/changelog.Debian.gz", packed(text.encode()))
    lines = [f"{pin.name} {pin.version} {path.name} sha256:{libraries.digest(path)}\n" for pin, path in found.items()]
    put(root, f"{DOCS}/libraries.txt", "".join(sorted(lines)).encode())
    put(root, "usr/share/lintian/overrides/scaleoutd", (DEBIAN / "lintian-overrides").read_bytes())
    for page in sorted(root.glob("usr/share/man/man*/*")):
        put(root, f"{page.relative_to(root)}.gz", packed(page.read_bytes()))
        page.unlink()


def write_control(root: Path, arch: str, version: str, python: str) -> None:
    """DEBIAN/: control, checksums, conffiles, scripts."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    sums = [
        f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  {path.relative_to(root)}\n"
        for path in files
        if str(path.relative_to(root)) not in layout.CONFFILES
    ]
    only = f"python3 (>= {python[2]}.{python[3:]}), python3 (<< {python[2]}.{int(python[3:]) + 1})"
    values = {"@PYTHON@": only, "@VERSION@": version, "@ARCH@": arch, "@INSTALLED@": str(installed_kib(root))}
    control = re.sub("@[A-Z]+@", lambda match: values[match[0]], (DEBIAN / "control").read_text())
    put(root, "DEBIAN/control", control.encode())
    put(root, "DEBIAN/md5sums", "".join(sums).encode())
    put(root, "DEBIAN/conffiles", "".join(f"/{name}\n" for name in layout.CONFFILES).encode())
    for script in SCRIPTS:
        put(root, f"DEBIAN/{script}", (DEBIAN / script).read_bytes(), layout.PROGRAM)


def installed_kib(root: Path) -> int:
    """As dpkg-gencontrol counts: each file rounded up, 1 for anything else."""
    return sum(-(-path.stat().st_size // KIB) if path.is_file() else 1 for path in root.rglob("*"))


def packed(data: bytes) -> bytes:
    """gzip -9n."""
    return gzip.compress(data, 9, mtime=0)


def put(root: Path, name: str, data: bytes, mode: int = layout.DATA) -> None:
    target = root / name
    layout.make_folders(target.parent, root)
    target.write_bytes(data)
    target.chmod(mode)


def settle(root: Path, when_s: int) -> None:
    """Modes of folders and all times."""
    for path in sorted(root.rglob("*"), reverse=True):
        if path.is_dir():
            path.chmod(0o755)
        os.utime(path, (when_s, when_s))
    root.chmod(0o755)
    os.utime(root, (when_s, when_s))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--into", type=Path, default=TREE / "dist")
    parser.add_argument("--wheels", type=Path, default=libraries.WHEELS)
    parser.add_argument("--arch", choices=sorted(libraries.MACHINES), default=_arch())
    parser.add_argument("--version", default="", help="another version than the changelog's: for a test of an upgrade")
    parser.add_argument("--distribution", choices=sorted(RELEASES), default="bookworm")
    given = parser.parse_args()
    version = given.version or version_of_tree().replace(RELEASES["bookworm"], RELEASES[given.distribution])
    path = build(given.into, given.wheels, given.arch, version, given.distribution)
    told = subprocess.run(["dpkg-deb", "-f", path, "Installed-Size"], check=True, capture_output=True, text=True).stdout
    print(f"{path}  {path.stat().st_size / 1e6:.2f} MB, installed {int(told) * KIB / 1e6:.1f} MB")


def _arch() -> str:
    return subprocess.run(["dpkg", "--print-architecture"], check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
