# SPDX-License-Identifier: Apache-2.0
"""The vectors in tests/vectors: this code still writes them, and decides each as it says."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from scaleoutd.core import strictjson
from scaleoutd.core.clock import Floors, Now
from scaleoutd.core.envelope import parse_envelope, verify_envelope
from scaleoutd.core.keys import PublicKey
from scaleoutd.core.manifest import verify_manifest
from scaleoutd.core.trust import verify_chain
from scaleoutd.errors import ScaleoutError
from tests.vectors.make_trust import FOLDER, all_vectors


def read(path: str) -> Any:
    return json.loads((FOLDER / path).read_text("ascii"))


JSON, DSSE, MANIFEST = read("json/cases.json"), read("dsse/cases.json"), read("manifest/cases.json")


@pytest.mark.parametrize(("path", "text"), all_vectors().items())
def test_the_files_are_what_the_script_writes(path: str, text: str) -> None:
    assert (FOLDER / path).read_text("ascii") == text, "run python -m tests.vectors.make_trust and look at the difference"


@pytest.mark.parametrize("case", JSON["canonical"])
def test_canonical_form(case: dict[str, Any]) -> None:
    assert strictjson.canonical(case["value"]) == base64.b64decode(case["canonical_b64"])


@pytest.mark.parametrize("case", DSSE["envelopes"], ids=lambda case: case["name"])
def test_envelopes(case: dict[str, Any]) -> None:
    keys = [PublicKey.from_pem(pem) for pem in DSSE["keys"]]
    code = "accepted"
    try:
        verify_envelope(parse_envelope(json.dumps(case["envelope"]).encode()), keys, case["threshold"])
    except ScaleoutError as exc:
        code = exc.code
    assert code == case["code"]


@pytest.mark.parametrize("case", MANIFEST["manifests"], ids=lambda case: case["name"])
def test_manifests(case: dict[str, Any]) -> None:
    now = Now(MANIFEST["at_ms"], 0, synchronised=True)
    root = verify_chain([json.dumps(MANIFEST["trust_roots"][case["trust_root"]]).encode()], now)
    floors = Floors(manifest_versions={"heart": case["accepted_version"]})
    code = "accepted"
    try:
        verify_manifest(json.dumps(case["envelope"]).encode(), root, now, floors)
    except ScaleoutError as exc:
        code = exc.code
    assert code == case["code"]
