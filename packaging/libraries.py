#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The private libraries of a package: wheels of the lock requirements/site.txt, unpacked and stripped.

    python3 packaging/libraries.py --wheels dist/wheels --distribution bookworm --into FOLDER

Rules:
  1. A wheel counts only when its SHA-256 is in the lock.  What is missing in the folder of wheels is fetched by pip, which checks
     the same hashes; with all of them there, no network is asked.
  2. Only what runs is unpacked: no byte code, stubs, C sources, tests, and no list of CAs (agent/tls.py has the one policy).
  3. An extension may need nothing but the C and C++ runtime; anything else stops the build.

Wheels are zip files (PEP 427).  Standard library only; strip and objdump are binutils'.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent
LOCK = TREE / "requirements/site.txt"
WHEELS = TREE / "dist/wheels"
PYTHONS = {"bookworm": "cp311", "trixie": "cp313"}  # Debian 12's and Debian 13's: compiled modules are for one each
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}

_LEFT_OUT = re.compile(
    r"\.(pyc|pyi|pxd|pyx|cc|h)$|(^|/)(tests?|__pycache__)/|/roots\.pem$|\.dist-info/(RECORD|top_level\.txt|entry_points\.txt)$"
)
_NEEDED = re.compile(r"(libc|libm|librt|libpthread|libdl|libstdc\+\+|libgcc_s|ld-linux-[a-z0-9-]+)\.so\.[0-9]+")
_TAG = re.compile(r"-([^-]+)-([^-]+)-([^-]+)\.whl$")


@dataclass(frozen=True)
class Pin:
    """A line of the lock."""

    name: str
    version: str
    hashes: frozenset[str]


def pins(lock: Path = LOCK) -> list[Pin]:
    """The lock's pins; SystemExit for a line without a hash."""
    found = []
    for entry in re.split(r"\n(?=[A-Za-z])", lock.read_text().replace("\\\n", " ")):
        if match := re.match(r"([A-Za-z0-9._-]+)==([^ ;]+)", entry):
            hashes = frozenset(re.findall(r"--hash=sha256:([0-9a-f]{64})", entry))
            if not hashes:
                raise SystemExit(f"libraries: {lock.name} has no hash for {match[1]}")
            found.append(Pin(match[1], match[2], hashes))
    return found


def wheel_of(pin: Pin, folder: Path, machine: str, python: str) -> Path | None:
    """The wheel of `folder` that is this pin's, for `python` ("cp311") and `machine` ("x86_64"); None when there is none."""
    start = re.sub(r"[-_.]+", "_", pin.name).lower() + f"-{pin.version}-"
    for path in sorted(folder.glob("*.whl")):
        if path.name.lower().startswith(start) and fits(path.name, machine, python) and digest(path) in pin.hashes:
            return path
    return None


def fits(name: str, machine: str, ours: str) -> bool:
    """Whether the tags of a wheel's name are for the Python `ours` on glibc and `machine`."""
    tags = _TAG.search(name)
    if tags is None:
        return False
    python, abi, platform = tags.groups()
    built = (python, abi) == (ours, ours) or (abi == "abi3" and python[:3] == "cp3" and int(python[3:]) <= int(ours[3:]))
    pure = "py3" in python.split(".") and abi == "none"
    return (built or pure) and (platform == "any" or ("manylinux" in platform and platform.endswith(machine)))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def wheels(folder: Path, machine: str, python: str) -> dict[Pin, Path]:
    """A wheel for each pin; missing ones are fetched into `folder` first."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = pins()
    if any(wheel_of(pin, folder, machine, python) is None for pin in wanted):
        print(f"libraries: fetching the wheels of {LOCK.relative_to(TREE)}", flush=True)
        fetch(folder, machine, python)
    found = {pin: wheel_of(pin, folder, machine, python) for pin in wanted}
    if missing := [pin.name for pin, path in found.items() if path is None]:
        raise SystemExit(f"libraries: {folder} has no wheel of {python} with a hash of the lock for {', '.join(missing)}")
    return {pin: path for pin, path in found.items() if path is not None}


def fetch(folder: Path, machine: str, python: str) -> None:
    """By pip, from the index that this machine is set up for."""
    platforms = [f"--platform=manylinux{tag}_{machine}" for tag in ("2014", "_2_17", "_2_28")]
    subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q", "--no-deps", "--only-binary=:all:",
         "--require-hashes", f"--python-version={python[2]}.{python[3:]}", "--implementation=cp", f"--abi={python}", "--abi=abi3",
         "--abi=none", *platforms, "-d", str(folder), "-r", str(LOCK)],
        check=True,
    )  # fmt: skip


def unpack(found: dict[Pin, Path], into: Path, machine: str) -> None:
    """Unpacks the wheels for `machine`; every file 0644, extensions stripped and checked."""
    for path in found.values():
        with zipfile.ZipFile(path) as archive:
            for name in members(archive):
                target = into / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))
                target.chmod(0o644)
    for extension in sorted(into.rglob("*.so")):
        strip(extension, machine)


def members(archive: zipfile.ZipFile) -> Iterator[str]:
    for name in archive.namelist():
        if name.startswith("/") or ".." in name.split("/") or ".data/" in name:
            raise SystemExit(f"libraries: {archive.filename} has the member {name}")
        if not name.endswith("/") and not _LEFT_OUT.search(name):
            yield name


def strip(path: Path, machine: str) -> None:
    """Without symbols and comments, as Debian's own extensions are; SystemExit when it needs an unknown library."""
    options = ["--strip-unneeded", "--remove-section=.comment", "--remove-section=.note"]
    subprocess.run([binutil("strip", machine), *options, path], check=True)
    told = subprocess.run([binutil("objdump", machine), "-p", path], check=True, capture_output=True, text=True).stdout
    needed = re.findall(r"NEEDED\s+(\S+)", told)
    if unknown := [name for name in needed if not _NEEDED.fullmatch(name)]:
        raise SystemExit(f"libraries: {path.name} needs {', '.join(unknown)}: name its package in packaging/debian/control")


def binutil(name: str, machine: str) -> str:
    """The program of binutils for `machine`'s files; SystemExit when only that of another machine is here."""
    if found := shutil.which(f"{machine}-linux-gnu-{name}"):
        return found
    if machine != platform.machine():
        package = f"binutils-{machine.replace('_', '-')}-linux-gnu"
        raise SystemExit(f"libraries: {machine}-linux-gnu-{name} not found: apt-get install {package}")
    return name


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--wheels", type=Path, default=WHEELS)
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--arch", choices=sorted(MACHINES), default="amd64")
    parser.add_argument("--distribution", choices=PYTHONS, default="bookworm")
    given = parser.parse_args()
    machine = MACHINES[given.arch]
    unpack(wheels(given.wheels, machine, PYTHONS[given.distribution]), given.into, machine)


if __name__ == "__main__":
    main()
