# SPDX-License-Identifier: Apache-2.0
"""What comes with the program in the package: a bill of materials, documents whose links lead somewhere; the package of arm64."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.packaging import deb as package
from tests.packaging.deb import ROOT, build, members, unpack

DOCS = "usr/share/doc/scaleoutd"
SITE = "usr/lib/scaleoutd/site"
# Folders of the sources; the manual is where `man` finds it.
ONLY_IN_SOURCES = {"packaging/", "benchmarks/", "docs/man/", "man/scaleoutd.1", "man/scaleoutctl.1"}
EM_X86_64, EM_AARCH64 = 62, 183  # elf.h
HASH = {
    "type": "object",
    "required": ["alg", "content"],
    "properties": {"alg": {"const": "SHA-256"}, "content": {"pattern": "^[0-9a-f]{64}$"}},
}
# What CycloneDX 1.5 demands of the parts that are used here.
CYCLONEDX: dict[str, Any] = {
    "type": "object",
    "required": ["bomFormat", "specVersion", "serialNumber", "version", "metadata", "components", "dependencies"],
    "properties": {
        "bomFormat": {"const": "CycloneDX"},
        "specVersion": {"const": "1.5"},
        "serialNumber": {"pattern": "^urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"},
        "components": {
            "items": {
                "required": ["type", "name", "version", "purl", "bom-ref", "hashes", "licenses"],
                "properties": {"type": {"const": "library"}, "hashes": {"items": HASH, "minItems": 1}},
            }
        },
        "dependencies": {"items": {"required": ["ref", "dependsOn"]}},
    },
}


def bill(unpacked: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((unpacked / DOCS / "sbom.cdx.json").read_text())
    return found


# The bill of materials


def test_the_bill_names_every_library_that_lies_there_as_the_lock_pins_it(unpacked: Path) -> None:
    found = bill(unpacked)
    jsonschema.Draft202012Validator(CYCLONEDX).validate(found)
    lock = (ROOT / "requirements/site.txt").read_text()
    pins = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", lock, re.MULTILINE))
    assert {item["name"]: item["version"] for item in found["components"]} == pins
    installed = {path.name.removesuffix(".dist-info").rpartition("-")[0] for path in (unpacked / SITE).glob("*.dist-info")}
    assert {name.replace("_", "-").lower() for name in installed} == pins.keys()
    for item in found["components"]:
        assert item["hashes"][0]["content"] in lock, item["name"]
    references = {item["bom-ref"] for item in found["components"]} | {found["metadata"]["component"]["bom-ref"]}
    assert {entry["ref"] for entry in found["dependencies"]} == references
    assert all(set(entry["dependsOn"]) <= references for entry in found["dependencies"])


def test_every_extension_is_named_with_the_digest_of_the_file_that_is_installed(unpacked: Path) -> None:
    named = {
        part["name"]: part["hashes"][0]["content"]
        for item in bill(unpacked)["components"]
        for part in item.get("components", [])
        if part["type"] == "file"
    }
    site = unpacked / SITE
    lie_there = {
        str(path.relative_to(site)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in site.rglob("*")
        if ".so" in path.name
    }
    assert named == lie_there and len(named) >= 2


def test_another_version_has_another_serial_number(unpacked: Path, tmp_path: Path) -> None:
    other = bill(unpack(package.of_next_version(), tmp_path / "other"))
    assert other["serialNumber"] != bill(unpacked)["serialNumber"]


# Documents


def test_links_of_the_documents_lead_somewhere(unpacked: Path) -> None:
    documents = sorted((unpacked / DOCS).rglob("*.md"))
    assert {"README.md", "install.md", "administration.md"} <= {path.name for path in documents}
    looked, dead = 0, []
    for path in documents:
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
            if "://" in link or link in ONLY_IN_SOURCES:
                continue
            looked += 1
            if not (path.parent / link).exists():
                dead.append((path.name, link))
    assert not dead and looked > 30


def test_paths_of_documents_in_the_manual_are_there(unpacked: Path) -> None:
    pages = "".join(path.read_text().replace("\\-", "-") for path in (ROOT / "docs/man").glob("*.[1-8]"))
    named = set(re.findall(r"/usr/share/doc/scaleoutd/[A-Za-z0-9./-]*[a-z]", pages))
    assert named and not [path for path in named if not (unpacked / path.lstrip("/")).exists()]


# The other machine


@pytest.fixture(scope="module")
def arm64(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if reason := package.missing("aarch64-linux-gnu-strip", "aarch64-linux-gnu-objdump"):
        pytest.skip(reason)
    try:
        return build(tmp_path_factory.mktemp("arm64"), options=["--arch", "arm64"])
    except AssertionError as exc:
        if "no matching distribution" in str(exc).lower() or "could not find a version" in str(exc).lower():
            pytest.skip("no wheels for aarch64 in dist/wheels, and this machine's package index has none")
        raise


def machines(deb: Path, into: Path) -> set[int]:
    """e_machine of every ELF file."""
    files = [path for path in unpack(deb, into).rglob("*") if path.is_file()]
    return {struct.unpack_from("<H", data, 18)[0] for path in files if (data := path.read_bytes()).startswith(b"\x7fELF")}


def test_the_package_of_arm64_is_of_arm64(deb: Path, arm64: Path, tmp_path: Path) -> None:
    """Never run here: there is no such machine.  Its code is the same; its extensions and filters are those of aarch64."""
    told = subprocess.run(["dpkg-deb", "-f", arm64, "Architecture"], check=True, capture_output=True, text=True).stdout
    assert told.strip() == "arm64" and arm64.name.endswith("_arm64.deb")
    assert machines(arm64, tmp_path / "arm64") == {EM_AARCH64}
    assert machines(deb, tmp_path / "amd64") == {EM_X86_64}, "the control"
    ours = {name for name in members(deb) if not name.startswith(f"{SITE}/")}
    theirs = {name for name in members(arm64) if not name.startswith(f"{SITE}/")}
    assert ours == theirs and "usr/lib/scaleoutd/scaleoutd/step/filters/step.aarch64.bpf" in theirs
