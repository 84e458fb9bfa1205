# SPDX-License-Identifier: Apache-2.0
"""`verify --model-signature`: what model-signing 1.1.1 signed is accepted, each manipulation of it refused by name."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization

from scaleoutd.cli.modelsignature import parse_bundle, verify_bundle
from scaleoutd.cli.sign import verify
from scaleoutd.core.keys import PublicKey, public_key_of
from scaleoutd.errors import ScaleoutError
from tests.unit.cli.signed_model import (
    CA_KEY,
    CODE_SIGNING,
    KEY,
    OTHER_KEY,
    VECTORS,
    bundle,
    certificate,
    public_pem,
    sharded,
    statement,
    statement_of,
)

FILES = {path: text.encode() for path, text in json.loads((VECTORS / "cases.json").read_text())["files"].items()}
BY_KEY = ("--public-key", VECTORS / "signer.pub")
BY_CA = ("--certificate-chain", VECTORS / "ca.pem")
SIGNED_BY = {"key": BY_KEY, "shards": BY_KEY, "certificate": BY_CA}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "a model"
    for path, data in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def check(model: Path, signature: Path, *options: object) -> dict[str, Any]:
    words = [str(word) for word in (model, "--model-signature", signature, *options, "--json")]
    result = CliRunner().invoke(verify, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.output)
    return found


def refused(model: Path, signature: Path = VECTORS / "key.sig", *options: object) -> ScaleoutError:
    with pytest.raises(ScaleoutError) as caught:
        check(model, signature, *(options or BY_KEY))
    assert caught.value.message.startswith("cannot ")
    assert caught.value.hint
    assert caught.value.exit_status == 65
    return caught.value


@pytest.mark.parametrize("name", SIGNED_BY)
def test_what_model_signing_signed_is_accepted(model: Path, name: str) -> None:
    found = check(model, VECTORS / f"{name}.sig", *SIGNED_BY[name])
    assert found["verified"] is True
    assert found["files"] == len(FILES)
    assert found["size_bytes"] == sum(map(len, FILES.values()))
    assert found["left_out_by_signer"] == [".git", ".gitattributes", ".github", ".gitignore"]
    assert found["keyid"] == PublicKey.from_pem((VECTORS / "signer.pub").read_text()).keyid
    assert found["certificate"] == ("CN=Model signer" if name == "certificate" else None)


def change(model: Path) -> None:
    (model / "weights/part-1.bin").write_bytes(b"0123456789" * 4 + b"0123456780")


def shorten(model: Path) -> None:
    (model / "weights/part-1.bin").write_bytes(FILES["weights/part-1.bin"][:-1])


def lengthen(model: Path) -> None:
    (model / "weights/part-1.bin").write_bytes(FILES["weights/part-1.bin"] + b"x")


def add(model: Path) -> None:
    (model / "modeling.py").write_text("import os")


def add_empty(model: Path) -> None:
    (model / "__init__.py").touch()


def add_below_git(model: Path) -> None:
    (model / ".git/hooks").mkdir(parents=True)
    (model / ".git/hooks/post-checkout").write_text("evil")


def add_gitattributes(model: Path) -> None:
    (model / ".gitattributes").write_text("* filter=evil")


def add_bytecode(model: Path) -> None:
    (model / "__pycache__").mkdir()
    (model / "__pycache__/m.pyc").write_bytes(b"evil")


def add_folder(model: Path) -> None:
    (model / "empty/deep").mkdir(parents=True)


def remove(model: Path) -> None:
    (model / "tokens.txt").unlink()


def rename(model: Path) -> None:
    (model / "tokens.txt").rename(model / "Tokens.txt")


def link(model: Path) -> None:
    (model / "tokens.txt").rename(model.parent / "tokens.txt")
    (model / "tokens.txt").symlink_to(model.parent / "tokens.txt")


def link_folder(model: Path) -> None:
    (model / "weights").rename(model.parent / "weights")
    (model / "weights").symlink_to(model.parent / "weights")


def hard_link(model: Path) -> None:
    os.link(model / "tokens.txt", model.parent / "outside")


def fifo(model: Path) -> None:
    (model / "tokens.txt").unlink()
    os.mkfifo(model / "tokens.txt")


def setuid(model: Path) -> None:
    (model / "tokens.txt").chmod(0o4755)


@pytest.mark.parametrize("name", SIGNED_BY)
@pytest.mark.parametrize(
    ("act", "code", "path"),
    [
        (change, "file-changed", "weights/part-1.bin"),
        (shorten, "file-changed", "weights/part-1.bin"),
        (lengthen, "file-changed", "weights/part-1.bin"),
        (add, "file-extra", "modeling.py"),
        (add_empty, "file-extra", "__init__.py"),
        (add_below_git, "file-extra", ".git"),
        (add_gitattributes, "file-extra", ".gitattributes"),
        (add_bytecode, "file-extra", "__pycache__/m.pyc"),
        (add_folder, "file-extra", "empty"),
        (remove, "file-missing", "tokens.txt"),
        (rename, "file-extra", "Tokens.txt"),
        (link, "file-type", "tokens.txt"),
        (link_folder, "file-type", "weights"),
        (hard_link, "file-type", "tokens.txt"),
        (fifo, "file-type", "tokens.txt"),
        (setuid, "file-mode", "tokens.txt"),
    ],
)
def test_a_manipulated_folder_is_refused(model: Path, name: str, act: Callable[[Path], None], code: str, path: str) -> None:
    act(model)
    error = refused(model, VECTORS / f"{name}.sig", *SIGNED_BY[name])
    assert (error.code, error.facts["file"]) == (code, path)
    assert error.facts["expected"] != error.facts["found"]


def test_the_report_names_every_difference(model: Path) -> None:
    change(model)
    remove(model)
    words = [str(word) for word in (model, "--model-signature", VECTORS / "key.sig", *BY_KEY)]
    result = CliRunner().invoke(verify, words)
    assert isinstance(result.exception, ScaleoutError)
    assert "(and 1 more)" in result.exception.message
    assert "file-missing  tokens.txt" in result.output
    assert "file-changed  weights/part-1.bin" in result.output


def test_the_signature_may_lie_in_the_folder_and_another_of_its_name_may_not(model: Path) -> None:
    shutil.copy(VECTORS / "key.sig", model / "model.sig")
    assert check(model, model / "model.sig", *BY_KEY)["verified"] is True
    assert refused(model).facts["file"] == "model.sig"


def flip(value: dict[str, Any]) -> None:
    (signature,) = value["dsseEnvelope"]["signatures"]
    raw = bytearray(base64.b64decode(signature["sig"]))
    raw[-1] ^= 1
    signature["sig"] = base64.b64encode(raw).decode()


def other_payload(value: dict[str, Any]) -> None:
    value["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement_of({"a": b"b"})).encode()).decode()


def other_key_id(value: dict[str, Any]) -> None:
    value["verificationMaterial"]["publicKey"]["hint"] = "0" * 64


def other_media_type(value: dict[str, Any]) -> None:
    value["mediaType"] = "application/vnd.dev.sigstore.bundle.v0.2+json"


def other_payload_type(value: dict[str, Any]) -> None:
    value["dsseEnvelope"]["payloadType"] = "application/json"


def second_signature(value: dict[str, Any]) -> None:
    value["dsseEnvelope"]["signatures"] *= 2


def no_signature(value: dict[str, Any]) -> None:
    value["dsseEnvelope"]["signatures"] = []


def public_service(value: dict[str, Any]) -> None:
    value["verificationMaterial"] = {"certificate": {"rawBytes": "AAAA"}, "tlogEntries": [{"logIndex": "1"}]}


def no_material(value: dict[str, Any]) -> None:
    value["verificationMaterial"] = {"tlogEntries": []}


@pytest.mark.parametrize(
    ("edit", "code", "words"),
    [
        (flip, "signature-invalid", "does not fit"),
        (other_payload, "signature-invalid", "does not fit"),
        (other_key_id, "signature-invalid", "found key 0000"),
        (other_media_type, "envelope-invalid", "bundle.v0.2"),
        (other_payload_type, "envelope-invalid", "expected payload type"),
        (second_signature, "envelope-invalid", "exactly one signature, found 2"),
        (no_signature, "envelope-invalid", "signature"),
        (public_service, "envelope-invalid", "internet"),
        (no_material, "envelope-invalid", "publicKey or x509CertificateChain"),
    ],
)
def test_a_manipulated_bundle_is_refused(
    model: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], None], code: str, words: str
) -> None:
    (tmp_path / "key.pub").write_bytes(public_pem(KEY))
    (tmp_path / "sig").write_bytes(bundle(statement_of(FILES)))
    assert check(model, tmp_path / "sig", "--public-key", tmp_path / "key.pub")["verified"] is True
    (tmp_path / "sig").write_bytes(bundle(statement_of(FILES), edit=edit))
    error = refused(model, tmp_path / "sig", "--public-key", tmp_path / "key.pub")
    assert error.code == code
    assert words in error.message


def test_another_key_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "other.pub").write_bytes(public_pem(OTHER_KEY))
    assert refused(model, VECTORS / "key.sig", "--public-key", tmp_path / "other.pub").code == "signature-invalid"
    assert refused(model, VECTORS / "certificate.sig", *BY_KEY).message.endswith(
        "expected one by a key, found one by a certificate"
    )
    assert refused(model, VECTORS / "key.sig", *BY_CA).message.endswith("expected one by a certificate, found one by a key")


def _statement(**changes: object) -> dict[str, Any]:
    return {**statement_of(FILES), **changes}


def _serialization(**changes: object) -> dict[str, Any]:
    value = statement_of(FILES)
    value["predicate"]["serialization"] |= changes
    return value


ZERO = "0" * 64


@pytest.mark.parametrize(
    ("payload", "code", "words"),
    [
        (_statement(predicateType="https://model_signing/Digests/v0.1"), "envelope-invalid", "expected predicate type"),
        (_statement(predicateType="urn:scaleoutd:manifest:v1"), "envelope-invalid", "expected predicate type"),
        (_statement(_type="https://in-toto.io/Statement/v0.1"), "envelope-invalid", "expected statement"),
        (
            _statement(subject=statement_of(FILES)["subject"] * 2),
            "envelope-invalid",
            "statement.subject: it must have 1 to 1 items, found 2",
        ),
        (_statement(subject=[]), "envelope-invalid", "found 0"),
        (_statement(subject=statement_of({"a": b""})["subject"]), "envelope-invalid", "expected digest of all files"),
        (_serialization(hash_type="blake3"), "envelope-invalid", "expected hash type sha256"),
        (_serialization(method="tree"), "envelope-invalid", "expected serialization method"),
        (_serialization(more=1), "envelope-invalid", "serialization.more: it is unknown"),
        (statement([("a", ZERO), ("a", ZERO)]), "envelope-invalid", "a is listed twice"),
        (statement([("a", ZERO), ("A", ZERO)]), "file-name", "collides"),
        (statement([("../config.json", ZERO)]), "file-name", "'..'"),
        (statement([("a/../../b", ZERO)]), "file-name", "'..'"),
        (statement([("/etc/passwd", ZERO)]), "file-name", "absolute"),
        (statement([(".", ZERO)]), "file-name", "'.'"),
        (statement([("a", ZERO), ("a/b", ZERO)]), "file-name", "a is a file"),
        (sharded(_statement(), ["a:0:4", "a:8:12"]), "envelope-invalid", "from byte 4"),
        (sharded(_statement(), ["a:4:8"]), "envelope-invalid", "from byte 0"),
        (sharded(_statement(), ["a:0:3", "a:3:7"]), "envelope-invalid", "from byte 3"),
        (sharded(_statement(), ["a:0:4", "a:0:4"]), "envelope-invalid", "from byte 4"),
        (sharded(_statement(), ["a:0:5"]), "envelope-invalid", "at most 4"),
        (sharded(_statement(), ["../a:0:4"]), "file-name", "'..'"),
        (sharded(_statement(), ["a"]), "envelope-invalid", "PATH:START:END"),
        (sharded(_statement(), ["a:0:4"], 4.5), "envelope-invalid", "whole shard_size"),
        (sharded(_statement(), ["a:0:4"], 8), "envelope-invalid", "sha256-sharded-8"),
    ],
)
def test_a_signed_statement_that_cannot_be_is_refused(payload: dict[str, Any], code: str, words: str) -> None:
    key = public_key_of(KEY)
    verify_bundle(parse_bundle(bundle(_statement())), key)
    verify_bundle(parse_bundle(bundle(sharded(_statement(), ["a:0:4", "a:4:7"]))), key)
    with pytest.raises(ScaleoutError) as caught:
        verify_bundle(parse_bundle(bundle(payload)), key)
    assert caught.value.code == code
    assert words in caught.value.message


def test_a_statement_with_a_key_twice_is_refused() -> None:
    data = bundle(_statement()).replace(b'{"mediaType"', b'{"mediaType": "", "mediaType"', 1)
    with pytest.raises(ScaleoutError, match="appears twice"):
        parse_bundle(data)


def test_the_key_that_signed_is_that_of_the_certificate(model: Path, tmp_path: Path) -> None:
    root = certificate("root", CA_KEY, "root", CA_KEY, is_ca=True)
    own = certificate("signer", KEY, "root", CA_KEY, extended=CODE_SIGNING)
    (tmp_path / "ca.pem").write_bytes(root.public_bytes(serialization.Encoding.PEM))
    for key, is_right in ((KEY, True), (OTHER_KEY, False)):
        (tmp_path / "sig").write_bytes(bundle(statement_of(FILES), key, (own,)))
        if is_right:
            assert check(model, tmp_path / "sig", "--certificate-chain", tmp_path / "ca.pem")["certificate"] == "CN=signer"
        else:
            error = refused(model, tmp_path / "sig", "--certificate-chain", tmp_path / "ca.pem")
            assert error.code == "signature-invalid"


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--public-key", "a"),
        ("--model-signature", "a"),
        ("--model-signature", "a", "--public-key", "b", "--certificate-chain", "c"),
        ("--model-signature", "a", "--public-key", "b", "--trust-root", "c"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path: Path, options: tuple[str, ...]) -> None:
    result = CliRunner().invoke(verify, [str(tmp_path), *options])
    assert result.exit_code == 2
    assert "--trust-root" in result.output
