# SPDX-License-Identifier: Apache-2.0
"""The package's bill of materials: CycloneDX 1.5 JSON of what lies in /usr/lib/scaleoutd/site and is not ours.

Rules:
  1. The same package has the same bill: time and serial number come from the package, nothing from the machine that built it.
  2. A component is a wheel of the lock: name, version, package URL, licence as its authors state it, the SHA-256 that the lock
     demands.  Its extensions are named with the SHA-256 of the file that is installed, which was stripped and has another digest.
  3. What is compiled into an extension is named as far as its authors name it: without a version, for a person to look up.

Source: CycloneDX 1.5 (ECMA-424 is 1.6), package-url, PEP 639 and the core metadata specification.
"""

from __future__ import annotations

import email.message
import email.parser
import hashlib
import json
import re
import uuid
import zipfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import libraries

NAMESPACE = uuid.UUID("6f2f0f6e-4f0c-5a55-9d5e-0a7cde8b0f41")  # of the serial numbers; made once for this file
INSIDE = {"grpcio": ("boringssl", "abseil-cpp", "c-ares", "re2", "upb", "utf8_range", "zlib", "xxhash")}
# Licences of the authors that state none by PEP 639's expression; SPDX identifiers.
LICENCES = {"3-Clause BSD License": "BSD-3-Clause", "Apache License 2.0": "Apache-2.0"}

Json = dict[str, Any]


def bill(found: Mapping[libraries.Pin, Path], site: Path, *, version: str, arch: str, when_s: int) -> bytes:
    """The document for the package `version` of Debian's `arch`; `site` has the unpacked libraries."""
    main = {
        "type": "application",
        "bom-ref": f"pkg:deb/debian/scaleoutd@{version}?arch={arch}",
        "name": "scaleoutd",
        "version": version,
        "licenses": [{"license": {"id": "Apache-2.0"}}],
        "purl": f"pkg:deb/debian/scaleoutd@{version}?arch={arch}",
    }
    wheels = {pin.name: (pin, path) for pin, path in sorted(found.items(), key=lambda item: item[0].name)}
    about = {name: metadata(path) for name, (_, path) in wheels.items()}
    components = [component(pin, path, about[name], site) for name, (pin, path) in wheels.items()]
    made: Json = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"timestamp": datetime.fromtimestamp(when_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), "component": main},
        "components": components,
        "dependencies": [
            {"ref": main["bom-ref"], "dependsOn": [item["bom-ref"] for item in components]},
            *({"ref": purl(pin), "dependsOn": needs(about[name], wheels)} for name, (pin, _) in wheels.items()),
        ],
    }
    made["serialNumber"] = f"urn:uuid:{uuid.uuid5(NAMESPACE, json.dumps(made, sort_keys=True))}"
    return json.dumps(made, indent=1, sort_keys=True).encode() + b"\n"


def component(pin: libraries.Pin, wheel: Path, about: email.message.Message, site: Path) -> Json:
    extensions = [
        {"type": "file", "name": name, "hashes": [sha256((site / name).read_bytes())]}
        for name in members(wheel)
        if name.endswith(".so")
    ]
    inside = [{"type": "library", "name": name} for name in INSIDE.get(pin.name, ())]
    told: Json = {
        "type": "library",
        "bom-ref": purl(pin),
        "name": pin.name,
        "version": pin.version,
        "purl": purl(pin),
        "hashes": [sha256(wheel.read_bytes())],
        "licenses": [{"expression": licence(pin.name, about)}],
        "properties": [{"name": "scaleoutd:wheel", "value": wheel.name}],
    }
    return told | ({"components": [*extensions, *inside]} if extensions or inside else {})


def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
        return email.parser.BytesParser().parsebytes(archive.read(name))


def members(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return sorted(libraries.members(archive))


def licence(name: str, about: email.message.Message) -> str:
    """An SPDX expression; SystemExit where neither the authors nor LICENCES have one."""
    stated = str(about["License-Expression"] or LICENCES.get(str(about["License"]), ""))
    if not stated:
        raise SystemExit(f"sbom: {name} states its licence as {about['License']!r}: give its SPDX name in packaging/sbom.py")
    return stated


def needs(about: email.message.Message, wheels: Mapping[str, tuple[libraries.Pin, Path]]) -> list[str]:
    """Package URLs of what it requires and has beside it; extras apart."""
    required = [str(line) for line in about.get_all("Requires-Dist") or [] if "extra ==" not in str(line)]
    names = {re.split(r"[^A-Za-z0-9._-]", line)[0].lower().replace("_", "-") for line in required}
    return [purl(pin) for name, (pin, _) in wheels.items() if name in names]


def purl(pin: libraries.Pin) -> str:
    return f"pkg:pypi/{pin.name}@{pin.version}"


def sha256(data: bytes) -> Json:
    return {"alg": "SHA-256", "content": hashlib.sha256(data).hexdigest()}
