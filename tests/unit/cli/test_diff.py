# SPDX-License-Identifier: Apache-2.0
"""`diff`: what a new manifest changes, on real signed projects."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from scaleoutd.cli.diff import fingerprint
from scaleoutd.cli.init import write_project
from scaleoutd.cli.keygen import new_private_key, write_key_pair
from scaleoutd.cli.scaleoutctl import scaleoutctl
from scaleoutd.errors import FormatError, VerificationError


def call(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(scaleoutctl, [str(item) for item in arguments], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.return_value or 0, result.output


def changes_of(*arguments: str | Path) -> dict[tuple[str, str], tuple[str | None, str | None]]:
    told: dict[str, Any] = json.loads(call("diff", *arguments, "--json")[1])
    return {(item["what"], item["name"]): (item["old"], item["new"]) for item in told["changes"]}


@pytest.fixture
def signed(tmp_path: Path) -> Path:
    """A signed project; its key is beside it."""
    write_key_pair(tmp_path, "one", new_private_key("ed25519"))
    write_key_pair(tmp_path, "two", new_private_key("ed25519"))
    write_project(tmp_path / "project")
    call("sign", tmp_path / "project", "--key", tmp_path / "one.key")
    return tmp_path / "project"


def test_an_untouched_folder_has_no_difference(signed: Path) -> None:
    status, text = call("diff", signed)
    assert status == 0 and "no difference" in text
    assert call("diff", signed, signed)[0] == 0


def test_each_kind_of_change_in_a_folder_is_named(signed: Path) -> None:
    (signed / "train.py").write_text("changed\n")
    (signed / "new.py").write_text("new\n")
    (signed / "data.py").unlink()
    (signed / "model.py").chmod(0o755)
    yaml = (signed / "scaleout.yaml").read_text()
    (signed / "scaleout.yaml").write_text(yaml.replace("python train.py", "python new.py"))
    found = changes_of(signed)
    assert {name for what, name in found if what == "file"} == {"train.py", "new.py", "data.py", "model.py", "scaleout.yaml"}
    assert found["file", "data.py"][1] is None and found["file", "new.py"][0] is None
    assert "executable" in str(found["file", "model.py"][1])
    assert found["command", "train"] == ("python train.py", "python new.py")
    assert not [what for what, _ in found if what in ("version", "date", "signer")]


def test_two_manifests_are_compared_with_signers_version_and_ids(signed: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    shutil.copy(signed / "scaleout.manifest.json", old)
    (signed / "train.py").write_text("changed\n")
    call("sign", signed, "--key", tmp_path / "two.key", "--environment", "science", "--data-set", "patients", "--expires", "30d")
    found = changes_of(old, signed)
    assert found["version", "number"] == ("1", "2")
    assert found["environment", "science"] == (None, "any content")
    assert found["data set", "patients"] == (None, "any content")
    assert ("date", "expires") in found and ("file", "train.py") in found
    signers = [change for (what, _), change in found.items() if what == "signer"]
    assert set(signers) == {("signed", None), (None, "signed")}


def test_a_second_signature_leaves_the_fingerprint_and_shows_the_signer(signed: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    shutil.copy(signed / "scaleout.manifest.json", old)
    call("sign", signed, "--add", "--key", tmp_path / "two.key")
    told = json.loads(call("diff", old, signed, "--json")[1])
    assert told["old"]["fingerprint"] == told["new"]["fingerprint"]
    assert [item["what"] for item in told["changes"]] == ["signer"]


def test_the_fingerprint_can_be_read_out() -> None:
    assert fingerprint("00" * 32) == "AAAA AAAA AAAA AAAA AAAA AAAA"
    assert re.fullmatch(r"([A-Z2-7]{4} ){5}[A-Z2-7]{4}", fingerprint("ab" * 32))
    assert fingerprint("ab" * 32) != fingerprint("ab" * 14 + "ac" + "ab" * 17)


def test_lines_for_people(signed: Path) -> None:
    (signed / "train.py").write_text("changed\n")
    status, text = call("diff", signed)
    assert status == 1
    assert re.search(r"^old +project version 1 +([A-Z2-7]{4} ){6}", text, re.MULTILINE)
    assert "not signed as it is" in text and "  ~ file train.py:" in text


def test_a_folder_without_a_manifest_and_a_file_that_is_none(signed: Path, tmp_path: Path) -> None:
    (signed / "scaleout.manifest.json").unlink()
    with pytest.raises(VerificationError, match="none"):
        call("diff", signed)
    with pytest.raises(FormatError):
        call("diff", signed / "train.py", signed)
