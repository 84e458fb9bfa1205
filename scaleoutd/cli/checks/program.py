# SPDX-License-Identifier: Apache-2.0
"""This program: its Python, its packages and where they come from, its umask, its proxy variables."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import site
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from scaleoutd.cli.checks.finding import Finding, Subject, fail, ok, read_text, warn

OLDEST, NEWEST = (3, 11), (3, 13)
# Module, distribution, and the package of Debian.
PACKAGES = (
    ("click", "click", "python3-click"),
    ("cryptography", "cryptography", "python3-cryptography"),
    ("yaml", "PyYAML", "python3-yaml"),
    ("grpc", "grpcio", "python3-grpcio"),
    ("google.protobuf", "protobuf", "python3-protobuf"),
    ("pythonjsonlogger", "python-json-logger", "python3-pythonjsonlogger"),
)
PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy")


def checks(subject: Subject) -> Iterator[Finding]:
    yield python(sys.version_info[:2])
    yield packages()
    yield umask(subject)
    yield proxy(subject)


def python(version: tuple[int, int]) -> Finding:
    found = f"Python {version[0]}.{version[1]} at {sys.executable}"
    if OLDEST <= version <= NEWEST:
        return ok("python", found)
    return fail("python", f"{found}; expected 3.11 to 3.13", "Install one of them and make a virtual environment with it.")


def packages() -> Finding:
    """Every package that is needed, its version and origin; nothing of it is imported."""
    missing, risky, told = [], [], []
    for module, distribution, debian in PACKAGES:
        place = _place_of(module)
        if place is None:
            missing.append((distribution, debian))
            continue
        try:
            version = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            version = "?"
        told.append(f"{distribution} {version} ({_origin(place)})")
        found = place.stat()
        if found.st_mode & stat.S_IWOTH or found.st_uid not in (0, os.geteuid()):
            risky.append(str(place))
    if missing:
        names = " ".join(name for name, _ in missing)
        apt = " ".join(package for _, package in missing)
        return fail("packages", f"not found: {names}", f"pip install {names}   (or: apt install {apt})")
    if risky:
        return fail("packages", f"others can change the code of this program: {risky[0]}", f"chmod -R go-w {risky[0]}")
    text = ", ".join(told)
    if "user site" in text and os.geteuid() == 0:
        return warn(
            "packages", text, "Use the system's packages or a virtual environment of root: the user site is easily changed."
        )
    return ok("packages", text)


def _place_of(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    # A folder without __init__.py is found as a namespace package: what was there is gone.
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _origin(place: Path) -> str:
    if sys.prefix != sys.base_prefix and place.is_relative_to(sys.prefix):
        return "virtual environment"
    if place.is_relative_to("/usr/lib/scaleoutd"):
        return "scaleoutd's package"
    if place.is_relative_to(site.getusersitepackages()):
        return "user site"
    return "system" if place.is_relative_to("/usr") else str(place)


def umask(subject: Subject) -> Finding:
    match = re.search(r"^Umask:\s*([0-7]+)", read_text("/proc/self/status") or "", re.MULTILINE)
    mask = int(match[1], 8) if match else 0o022
    if mask & 0o005 and subject.root:
        return warn(
            "umask",
            f"{mask:04o}: a virtual environment made now cannot be read by the step's own uid",
            "umask 022   (before pip install; scaleoutd sets its own)",
        )
    if mask & 0o002 == 0:
        return warn("umask", f"{mask:04o}: everybody may change files made now", "umask 022")
    return ok("umask", f"{mask:04o}")


def proxy(subject: Subject) -> Finding:
    found = [name for name in PROXIES if subject.environment.get(name)]
    if found:
        return warn(
            "proxy",
            f"{', '.join(found)} is set, and this version does not use proxies: it connects directly",
            f"unset {' '.join(found)}   (and let this host reach API and combiner directly)",
        )
    return ok("proxy", "no proxy variable is set")
