# SPDX-License-Identifier: Apache-2.0
"""Faults that fuzzing found outside the rooms: certificates, a step's output, the combiner, what status reads."""

from __future__ import annotations

import base64
import io
import json
import os
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from scaleoutd.cli import certificates
from scaleoutd.cli.combiner import parse_settings
from scaleoutd.cli.denials import SandboxFacts, Witness
from scaleoutd.cli.keygen import read_private_key
from scaleoutd.cli.nodestate import read_tasks
from scaleoutd.cli.training import failure_in_words, metrics_in_words
from scaleoutd.core.manifest import check_paths
from scaleoutd.core.policy import development_policy
from scaleoutd.devcombiner import grpc_service, npz, tokens
from scaleoutd.devcombiner.board import Board
from scaleoutd.devcombiner.container import read_container
from scaleoutd.devcombiner.faults import Faults
from scaleoutd.devcombiner.rest import Assignment, RestApi
from scaleoutd.errors import CredentialError, FormatError, ScaleoutError, VerificationError
from tests.fuzz.targets.combiner import _authority, _request_seeds
from tests.fuzz.targets.issued import _armoured, _der_seeds
from tests.second_verifier import second

P256 = b"\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07"
CONSTRAINTS = b"\x06\x03\x55\x1d\x13\x01\x01\xff"
DEEP = "[" * 20_000


# --- certificates and keys: cryptography reads a field when it is asked for, and raises what it likes ------------------


def replaced(der: bytes, old: bytes, new: bytes) -> bytes:
    assert old in der
    return der.replace(old, new)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x42"),
        (P256 + b"\x03\x42\x00\x04", P256 + b"\x03\x42\x00\x05"),
        (P256, P256[:-1] + b"\x77"),
        (CONSTRAINTS + b"\x04\x05\x30\x03", CONSTRAINTS + b"\x04\x05\x30\x04"),
    ],
    ids=["a version there is not", "a point that is none", "a curve there is not", "an extension cut short"],
)  # fmt: skip
def test_a_certificate_that_opens_and_cannot_be_read_is_refused_at_once(old: bytes, new: bytes) -> None:
    (control,) = certificates.load_certificates(_armoured(_der_seeds()[0]), "the CA file")
    assert control.subject == control.issuer
    with pytest.raises(CredentialError) as caught:
        certificates.load_certificates(_armoured(replaced(_der_seeds()[0], old, new)), "the CA file")
    assert caught.value.code == "client-certificate-invalid"


def test_a_key_of_a_curve_that_nobody_knows_is_a_named_error(tmp_path: Path) -> None:
    der = ec.derive_private_key(11, ec.SECP256R1()).private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    odd = replaced(der, b"\x2a\x86\x48\xce\x3d\x03\x01\x07", b"\x2a\x86\x48\xcb\x3d\x03\x01\x07")
    pem = b"-----BEGIN PRIVATE KEY-----\n" + base64.encodebytes(odd) + b"-----END PRIVATE KEY-----\n"
    path = tmp_path / "k"
    path.write_bytes(pem)
    path.chmod(0o600)
    readers: list[Callable[[], object]] = [lambda: certificates.load_key(pem), lambda: read_private_key(path)]
    for read in readers:
        with pytest.raises(ScaleoutError) as caught:
            read()
        assert caught.value.code in ("client-certificate-invalid", "key-invalid")


def test_a_request_of_a_version_there_is_not_is_a_named_error() -> None:
    der = _request_seeds()[0]
    pem = _armoured(replaced(der, b"\x02\x01\x00\x30", b"\x02\x01\x10\x30")).replace(b"CERTIFICATE", b"CERTIFICATE REQUEST")
    with pytest.raises(FormatError) as caught:
        _authority().certify_client(pem)
    assert caught.value.code == "key-invalid"


# --- what a step prints -----------------------------------------------------------------------------------------------


def hear(line: str) -> list[str]:
    told: list[str] = []
    policy = development_policy("/srv/project", "/usr/bin/python3", {}, "demo")
    witness = Witness(SandboxFacts.of(policy), lambda text, hint: told.append(text))
    for text in ("Traceback (most recent call last):", '  File "/project/train.py", line 3, in <module>', line):
        witness.line(text)
    return told


def test_a_step_that_looks_for_a_name_of_thousands_of_characters_does_not_end_the_node() -> None:
    (told,) = hear(f"FileNotFoundError: [Errno 2] No such file or directory: '/{'a' * 3000}'")
    assert "looked for /aaa" in told and "it exists on this computer" not in told


def test_a_step_that_looks_into_another_users_folder_does_not_end_the_node() -> None:
    child = os.fork()
    if child == 0:
        status = 9
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            # Whose working folder that is, only its owner and root may ask.
            (told,) = hear("FileNotFoundError: [Errno 2] No such file or directory: '/proc/1/cwd/x'")
            status = 0 if "looked for /proc/1/cwd/x" in told else 8
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [b"[]", b'"correlation_id"', b"{}", b'{"correlation_id":[1]}'])
def test_a_task_file_that_is_no_task_is_a_problem_and_not_the_end_of_status(tmp_path: Path, task: bytes) -> None:
    for name, data in (("a", task), ("b", b'{"correlation_id":"c"}')):
        (tmp_path / "runner" / "runs" / name).mkdir(parents=True)
        (tmp_path / "runner" / "runs" / name / "task.json").write_bytes(data)
    problems: list[str] = []
    assert [row.correlation_id for row in read_tasks(tmp_path, problems)] == ["c"]
    assert len(problems) == 1 and "it is no task" in problems[0]


# --- names of a manifest ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", [check_paths, lambda paths: second.check_paths(paths)], ids=["ours", "the second verifier"])
def test_deep_names_cost_what_they_are_long_and_not_its_square(check: Any) -> None:
    paths = sorted("/".join((f"X{number:04d}", *["a"] * 506)) for number in range(1000))
    tracemalloc.start()
    try:
        check(paths)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * sum(map(len, paths)) + (1 << 20), f"{peak >> 20} MiB for {sum(map(len, paths)) >> 10} KiB"
    with pytest.raises((VerificationError, second.Refused)):
        check(sorted([*paths, "x0007/a"]))


# --- the combiner -----------------------------------------------------------------------------------------------------


class _Refusing:
    def abort(self, code: grpc.StatusCode, details: str) -> None:
        raise ValueError(code.name, details)


def test_a_body_of_brackets_is_a_bad_request() -> None:
    api = RestApi(Board(), tokens.TokenOffice(), Faults(), Assignment("h", 1))
    assert api.answer("/api/v1/clients/enroll", "x", DEEP.encode())[0] == 400


def test_a_token_of_brackets_is_refused_before_its_signature_is_looked_at() -> None:
    part = base64.urlsafe_b64encode(DEEP.encode()).rstrip(b"=").decode()
    for token in (f"{part}.e30.AA", f"e30.{part}.AA"):
        with pytest.raises(CredentialError) as caught:
            tokens.verify(token, b"k")
        assert caught.value.code == "token-refused"


@pytest.mark.parametrize("text", [DEEP, '{"a":' + DEEP])
def test_metadata_of_brackets_ends_the_call_and_not_the_thread(text: str) -> None:
    with pytest.raises(ValueError, match="INVALID_ARGUMENT"):
        grpc_service._json_object(text, _Refusing())  # type: ignore[arg-type]


@pytest.mark.parametrize("examples", ["Infinity", "NaN", "1e999", "0.5", "0", "-1", "true", "9" * 400, '"3"', "null"])
def test_a_number_of_examples_that_no_mean_can_weigh_ends_the_call(examples: str) -> None:
    meta = json.loads(f'{{"training_metadata":{{"num_examples":{examples}}}}}')
    with pytest.raises(ValueError, match="INVALID_ARGUMENT"):
        grpc_service.examples_of(meta, _Refusing())  # type: ignore[arg-type]
    assert grpc_service.examples_of({"training_metadata": {"num_examples": 3}}, _Refusing()) == 3  # type: ignore[arg-type]


def test_metrics_and_reports_of_a_node_do_not_end_a_session() -> None:
    assert metrics_in_words([{"a": 10**400, "loss": 0.5}, {"a": 1, "loss": 1.5}]) == ["loss 1.0000"]
    assert failure_in_words(f"FAILED {DEEP}") == f"FAILED {DEEP}"
    assert parse_settings((f"a={DEEP}",)) == {"a": DEEP}


def lying_container(method: int, inflated: int, said: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr(zipfile.ZipInfo("metadata.json"), b'{"model_id":"m"}')
        archive.writestr("training_model.bin", bytes(inflated))
    data = bytearray(out.getvalue())
    at = data.rfind(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", said)
    return bytes(data)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_entry_that_says_ten_bytes_never_becomes_more_in_memory(method: int) -> None:
    data = lying_container(method, 64 << 20, 10)
    renamed = data.replace(b"metadata.json", b"metadata1.npy").replace(b"training_model.bin", b"training_model.npy")
    tracemalloc.start()
    try:
        with pytest.raises(FormatError) as caught:
            read_container(data, max_weights_bytes=1 << 20)
        with pytest.raises(FormatError):
            npz.read_npz(renamed)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.code == "container-invalid" and peak < 8 << 20, f"{peak >> 20} MiB"


@pytest.mark.parametrize(
    "fields",
    [
        "{'descr':'<f4','fortran_order':False,'shape':(" + "9" * 4000 + "," + "9" * 4000 + ")}",
        "{'descr':'<f4','fortran_order':False,'shape':'" + "a" * 9000 + "'}",
        "{'descr':'<f4','fortran_order':False,'shape':(0," + "9" * 4000 + ")}",
        "{[]:1}",
    ],
    ids=["sides of thousands of digits", "a long text for a shape", "a side that no array has", "a list as a key"],
)
def test_a_header_of_npy_that_cannot_be_is_a_short_named_error(fields: str) -> None:
    header = fields.encode()
    with pytest.raises(FormatError) as caught:
        npz.read_npy(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    assert caught.value.code == "container-invalid" and len(caught.value.message) < 1000
