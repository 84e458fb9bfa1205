# SPDX-License-Identifier: Apache-2.0
"""Every fault that fuzzing found, by what it was.  The inputs are the smallest that showed it."""

from __future__ import annotations

import base64
import io
import json
import pickle
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed448
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from scaleoutd.agent.api import parse_origin
from scaleoutd.agent.der import certificate_facts, first_of_pem
from scaleoutd.agent.dialects.edge import directive_of
from scaleoutd.agent.tokens import LATEST_S, Cached, parse_cache, serialise_cache, usable_expiry_s
from scaleoutd.core import chain, event, strictjson, trail
from scaleoutd.core.checkpoint import VerifierKey, parse_key
from scaleoutd.core.envelope import parse_envelope
from scaleoutd.core.ignore import IgnoreRules
from scaleoutd.core.policy import parse_policy_yaml
from scaleoutd.core.project import parse_project
from scaleoutd.core.settings import check_schema
from scaleoutd.core.strictyaml import MAX_PATH_CHARS, load_yaml
from scaleoutd.errors import ConfigError, FormatError, ScaleoutError, TransportError, VerificationError
from scaleoutd.ledger.opening import Standing, take
from scaleoutd.proto import edge_pb2 as edge
from scaleoutd.step.archive import Archive
from scaleoutd.step.torchzip import read_arrays
from tests.fuzz.target import Target, outcome
from tests.fuzz.targets.models import Memory, state_dictionary
from tests.fuzz.targets.network import _ANSWER, _Answering
from tests.fuzz.targets.trails import ORIGIN, _honest
from tests.unit.step import models


def yaml_refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_yaml(text.encode(), name="x.yaml", root="x")
    assert caught.value.code == "yaml-invalid"
    return caught.value.message


# --- YAML -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('a: "\\U00110000"\n', "line 1, column 7"),
        ('b: 1\na: "\\UFFFFFFFF"\n', "line 2, column 7"),
        ("%YAML 1." + "9" * 5000 + "\n---\na: 1\n", "line 1, column 9"),
    ],
    ids=["beyond Unicode", "beyond an int of C", "a version of 5,000 digits"],
)
def test_a_number_that_pyyaml_cannot_convert_is_refused_where_it_stands(text: str, place: str) -> None:
    assert yaml_refusal(text).startswith(f"cannot read x.yaml: {place}: ")


@pytest.mark.parametrize(("text", "place"), [("a: \x0e\n", "line 1, column 4"), ("a: 1\nb: x\ufffe\n", "line 2, column 5")])
def test_a_forbidden_character_is_refused_where_it_stands(text: str, place: str) -> None:
    assert f"x.yaml: {place}: the character U+" in yaml_refusal(text)


@pytest.mark.parametrize("text", ['a: "\\ud800"\n', '"\\udfff": 1\n', 'a: ["x", {b: "\\udc80"}]\n'])
def test_an_escape_that_makes_a_lone_surrogate_is_refused(text: str) -> None:
    """As a path it would have been a file name of other bytes, and the policy had no digest."""
    assert "lone surrogate" in yaml_refusal(text)
    assert load_yaml(b'a: "\\u00e9"\n', name="x", root="x").value == {"a": "é"}


def test_long_keys_above_many_values_are_refused_before_they_fill_the_memory() -> None:
    bomb = "? " + "k" * 500_000 + "\n: [" + "1," * 200_000 + "1]\n"  # 100 GB of paths
    assert "too long for so many values" in yaml_refusal(bomb)
    many = "".join(f"key{number}: [1, 2, 3]\n" for number in range(5000))
    assert len(load_yaml(many.encode(), name="x", root="x").value) == 5000 < MAX_PATH_CHARS


@pytest.mark.parametrize(
    "text", ["k" * 1000 + ": 1\n" + "k" * 1000 + ": 2\n", "? " + "k" * 90_000 + "\n: !" + "t" * 90_000 + " 1\n"]
)
def test_a_refusal_does_not_repeat_a_text_without_end(text: str) -> None:
    assert len(yaml_refusal(text)) < 1000


def test_a_command_whose_splitting_takes_seconds_is_refused() -> None:
    def project(command: str) -> bytes:
        return f"entry_points: {{train: {{command: '{command}'}}}}\n".encode()

    with pytest.raises(ConfigError, match=r"line 1, column [0-9]+: the command has 900000 characters, at most 65536 are read"):
        parse_project(project("a" * 900_000))
    assert parse_project(project("a b")).steps == {"train": ("a", "b")}


# --- policy, settings, ignore patterns ----------------------------------------------------------------------------------


def test_a_required_name_that_is_no_text_is_refused_with_the_policy_and_not_at_each_task() -> None:
    with pytest.raises(FormatError, match=r"settings_schema\.required: it must be an array of names"):
        check_schema({"required": [["lr"]]})
    check_schema({"required": ["lr"]})
    policy = (Path(__file__).resolve().parents[2] / "policy" / "policy.example.yaml").read_bytes()
    parse_policy_yaml(policy)


@pytest.mark.parametrize(
    ("pattern", "fits", "not_fits"),
    [
        ("[+--]", "+,-", "*."), ("[a&&b]", "a&b", "c"), ("[a||b]", "a|b", "c"), ("[~~]", "~", "a"),
        ("[[a]", "[a", "b"), ("[a-]", "a-", "b"),
    ],
)  # fmt: skip
def test_set_operators_of_python_are_plain_characters_in_a_pattern(pattern: str, fits: str, not_fits: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rules = IgnoreRules([pattern])
    assert all(rules.ignores(name, is_folder=False) for name in fits)
    assert not any(rules.ignores(name, is_folder=False) for name in not_fits)


# --- JSON and the envelope ------------------------------------------------------------------------------------------------


def test_an_envelope_of_empty_arrays_is_refused_before_it_needs_a_gigabyte() -> None:
    bomb = b'{"payload":[' + b"[]," * 20_000_000 + b"[]]}"
    with pytest.raises(FormatError, match="it holds more than 256 values") as caught:
        parse_envelope(bomb)
    assert caught.value.code == "envelope-invalid"


def test_values_are_counted_outside_of_texts_only() -> None:
    assert strictjson.parse(b'["' + b"[,{" * 50 + b'"]', max_bytes=1000, max_values=2) == ["[,{" * 50]
    with pytest.raises(FormatError, match="more than 3 values"):
        strictjson.parse(b"[1,2,3,4]", max_bytes=1000, max_values=3)


@pytest.mark.parametrize("text", ['{"k":1,"k":2}', "[-1.5]", "[1e5]", "[NaN]", "[123456]"])
def test_a_refusal_of_json_does_not_repeat_it_without_end(text: str) -> None:
    long = text.replace("k", "k" * 100_000).replace("1", "1" * 100_000)
    with pytest.raises(FormatError) as caught:
        strictjson.parse(long.encode(), max_bytes=1 << 20)
    assert len(caught.value.message) < 1000


# --- models -------------------------------------------------------------------------------------------------------------


def torch(pickled: bytes, **entries: bytes) -> Archive:
    names = {"a/data.pkl": pickled, "a/byteorder": b"little", "a/data/0": bytes(8), **entries}
    return Archive(Memory(models.zipped(names, zipfile.ZIP_DEFLATED)), max_entries=100, max_inflated_bytes=1 << 40)


def refused(pickled: bytes, **entries: bytes) -> ScaleoutError:
    def parse(data: bytes) -> None:
        read_arrays(torch(data, **entries))

    assert len(read_arrays(torch(state_dictionary()))) == 1
    codes = frozenset({"container-invalid", "limit-model", "model-format-denied"})
    assert outcome(Target("torch", parse, list, codes), pickled) in codes  # within the bounds of time and memory
    with pytest.raises(ScaleoutError) as caught:
        parse(pickled)
    return caught.value


def test_a_pickle_that_names_one_list_a_thousand_times_is_refused_at_once() -> None:
    level = b"]" + b"q\x01" + b"(" + b"h\x00" * 200 + b"e"  # a list of 200 times the one in place 0
    bomb = b"\x80\x02]q\x00" + b"".join(level + b"q\x00" for _ in range(14)) + b"."
    assert refused(bomb).code == "limit-model"


def test_a_pickle_whose_name_is_a_nested_value_without_end_is_refused() -> None:
    doubled = b")q\x00" + b"h\x00h\x00\x86q\x00" * 60  # its text has 2^60 characters
    assert "a name is no string" in refused(b"\x80\x04" + doubled + b"K\x01\x93.").message
    head = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nh\x00X\x03\x00\x00\x00cpuK\x02tQ."
    assert refused(b"\x80\x02" + doubled + head).code == "container-invalid"
    deep = b")" + b"\x85" * 100_000 + b"q\x00"
    assert refused(b"\x80\x02" + deep + head).code == "container-invalid"


def test_a_global_written_with_escapes_is_refused() -> None:
    """pickletools resolves them, pickle does not: the two would have read different names."""
    assert refused(state_dictionary(b"ctorch._utils\n_rebuild_tensor\\x5fv2\n")).code == "container-invalid"


def test_names_of_arrays_have_a_length_and_are_text() -> None:
    head, tail = state_dictionary().split(b"X\x01\x00\x00\x00w")
    long = head + b"X" + struct.pack("<I", 5000) + b"w" * 5000 + tail
    assert "a key is too long" in refused(long).message
    assert "no text" in refused(head + b"X\x03\x00\x00\x00\xed\xa0\x80" + tail).message


def test_a_byte_order_mark_that_inflates_without_end_is_not_read() -> None:
    assert "little-endian" in refused(state_dictionary(), **{"a/byteorder": bytes(900 << 20)}).message


def test_an_archive_of_a_newer_format_than_steps_can_read_is_refused() -> None:
    data = bytearray(models.npz({"0": models.npy("<f4", (1,), bytes(4))}))
    Archive(Memory(bytes(data)), max_entries=9, max_inflated_bytes=1000)
    data[data.index(b"PK\x01\x02") + 6] = 210
    with pytest.raises(FormatError, match="needs version 210 of the format"):
        Archive(Memory(bytes(data)), max_entries=9, max_inflated_bytes=1000)
    with pytest.raises(NotImplementedError):
        zipfile.ZipFile(io.BytesIO(bytes(data)))


def test_an_entry_that_says_it_is_a_patch_is_refused() -> None:
    data = bytearray(models.npz({"0": models.npy("<f4", (1,), bytes(4))}))
    data[data.index(b"PK\x01\x02") + 8] |= 0x20
    with pytest.raises(FormatError, match="is a patch of other data"):
        Archive(Memory(bytes(data)), max_entries=9, max_inflated_bytes=1000)


def test_entries_are_walked_in_the_order_of_their_bytes() -> None:
    """The directory may name them backwards; then each would have wound a compressed archive back by 16 MiB."""
    data = models.zipped({"a": b"1", "b": b"2"})
    start = data.index(b"PK\x01\x02")
    middle = data.index(b"PK\x01\x02", start + 4)
    end = data.index(b"PK\x05\x06")
    turned = data[:start] + data[middle:end] + data[start:middle] + data[end:]
    assert list(Archive(Memory(turned), max_entries=9, max_inflated_bytes=1000).entries) == ["a", "b"]


# --- the trail -------------------------------------------------------------------------------------------------------------


def resealed(line: bytes, **changes: Any) -> bytes:
    value = json.loads(line)
    for path, new in changes.items():
        holder = value
        *parents, last = path.split("__")
        for key in parents:
            holder = holder[int(key) if key.isdigit() else key]
        if new is None:
            del holder[last]
        else:
            holder[last] = new
    value["attestation_list"][0].pop("fingerprint", None)
    return chain.seal(event.encode(value))[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"unmapped": None},
        {"unmapped": []},
        {"unmapped__event": [1]},
        {"unmapped__room": 5},
        {"attestation_list__0__chain_uid": 7},
    ],
    ids=str,
)
def test_a_sealed_line_without_its_parts_is_a_fault_and_no_crash(changes: dict[str, Any]) -> None:
    lines = list(_honest()[0])
    assert trail.read_line(resealed(lines[0])) is not None
    try:
        line = resealed(lines[0], **changes)
    except ValueError:
        line = event.encode({**json.loads(lines[0]), "attestation_list": [{"chain_uid": 7}]})
    assert trail.verify([line], []).fault is not None


@pytest.mark.parametrize(
    "changes", [{"unmapped__event__key": 5}, {"unmapped__event__key": ["a"]}, {"unmapped__event__epoch": True}], ids=str
)
def test_an_epoch_key_that_is_no_text_is_a_wrong_key_and_no_crash(changes: dict[str, Any]) -> None:
    verdict = trail.verify([resealed(_honest()[0][0], **changes)], [])
    assert verdict.fault is not None and verdict.fault.kind == "wrong-key"


def test_a_verifier_key_of_an_unknown_algorithm_is_refused() -> None:
    public = ed448.Ed448PrivateKey.generate().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    unknown = public.replace(b"\x2b\x65\x71", b"\x2b\x65\x01")
    for der in (public, unknown):
        with pytest.raises(FormatError) as caught:
            parse_key(VerifierKey("a", 2, der).encode())
        assert caught.value.code == "key-invalid"


def test_a_verifier_key_has_one_form() -> None:
    good = base64.b64decode(_honest_key().split("+", 2)[2])
    name, identity, _ = _honest_key().split("+", 2)
    assert parse_key(_honest_key()).name == ORIGIN
    with pytest.raises(FormatError):
        parse_key(f"{name}+{identity.upper()}+{base64.b64encode(good).decode()}\u00e9")


def _honest_key() -> str:
    return str(json.loads(_honest()[0][0])["unmapped"]["event"]["key"])


@pytest.mark.parametrize("type_", ["clock-floor-lowered", "manifest-verified", "floors-noted", "epoch-key-made"])
def test_a_ledger_refuses_a_trail_whose_event_lacks_what_belongs_to_it(type_: str) -> None:
    line = resealed(_honest()[0][0], metadata__event_code=type_, unmapped__event={"manifest_versions": []})
    with pytest.raises(VerificationError) as caught:
        take(Standing(), line, ORIGIN, recent=True)
    assert caught.value.code == "trail-broken"
    take(Standing(), _honest()[0][0], ORIGIN, recent=True)


# --- network ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["https://[", "h[[[", "https://a\u2100b/", "https://" + "a" * 70 + ".example", "https://a..b", "https://a b"]
)
def test_an_address_that_no_socket_can_be_asked_for_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        parse_origin(url)
    assert str(parse_origin("https://[::1]:8443/p")) == "https://[::1]:8443/p"


def answered(call: str, **changes: Any) -> Any:
    api = _Answering(json.dumps({**_ANSWER, **changes}).encode())
    if call == "assign":
        return api.assign("t", client_id="c", name="n", combiner="", client_version="1")
    return api.enroll("t", "c", "n") if call == "enroll" else api.refresh("/p", "t")


@pytest.mark.parametrize("host", ["a" * 64, "a..b", "a\r\nb", "é.example", ".", "x" * 300, "a b"])
def test_a_host_that_no_socket_can_be_asked_for_is_a_bad_answer(host: str) -> None:
    with pytest.raises(TransportError, match="is no name or address"):
        answered("assign", public_hostname=host)
    assert answered("assign", public_hostname="10.0.0.1").host == "10.0.0.1"


@pytest.mark.parametrize("call", ["enroll", "refresh"])
@pytest.mark.parametrize("token", ["a\r\nX-Evil: 1", "a b", "é", "a" * 16_385])
def test_a_token_that_no_header_can_carry_is_a_bad_answer(call: str, token: str) -> None:
    with pytest.raises(TransportError, match="are no token"):
        answered(call, access_token=token)


def test_a_token_of_more_than_4096_characters_is_read_back_after_a_restart() -> None:
    cached = Cached("https://a:443", "ab" * 32, "c", "client-refresh", "a" * 16_384, "b" * 16_384, 5)
    assert parse_cache(serialise_cache(cached)) == cached


@pytest.mark.parametrize(("expires", "lifetime_s"), [(1e300, 0), (-5, 0), (None, 10**30), (None, -5), (253_402_300_800, 0)])
def test_an_expiry_that_is_no_date_can_be_kept(expires: Any, lifetime_s: int) -> None:
    expires_s = usable_expiry_s(expires, lifetime_s, 1_790_000_000)
    assert 0 <= expires_s <= LATEST_S
    assert serialise_cache(Cached("o", "s", "c", "client-refresh", "a", "b", expires_s))


def test_an_object_identifier_without_end_is_refused_at_once() -> None:
    def element(tag: int, content: bytes) -> bytes:
        return bytes((tag, 0x83)) + len(content).to_bytes(3, "big") + content

    def certificate(oid: bytes) -> bytes:
        times = element(0x17, b"260101000000Z") * 2
        name = element(0x31, element(0x30, element(0x06, oid) + element(0x0C, b"x")))
        parts = (
            element(2, b"\x05"),
            element(0x30, b""),
            element(0x30, b""),
            element(0x30, times),
            element(0x30, name),
            element(0x30, b"k"),
        )
        return element(0x30, element(0x30, b"".join(parts)))

    assert certificate_facts(certificate(b"\x55\x04\x03")).subject == "CN=x"
    with pytest.raises(FormatError, match="too long"):
        certificate_facts(certificate(b"\xff" * 3_000_000 + b"\x01"))


def test_a_pem_file_of_blanks_is_refused_at_once() -> None:
    def parse(data: bytes) -> None:
        first_of_pem(data)

    blanks = b"-----BEGIN CERTIFICATE-----" + b" " * 1_000_000
    assert outcome(Target("pem", parse, list, frozenset({"key-invalid"})), blanks) == "key-invalid"


def test_a_directive_of_empty_arrays_does_not_fill_the_agent() -> None:
    task = edge.TaskRequest(correlation_id="c", type=_train_type(), data='{"client_settings":[' + "[]," * 300_000 + "[]]}")
    problem = directive_of(task).problem
    assert problem is not None and "more than 200000 values" in problem[1]


def _train_type() -> str:
    from scaleoutd.agent.dialects.edge import TASK_OF_TYPE

    return next(kind for kind, task in TASK_OF_TYPE.items() if task == "train")


def test_a_pickle_of_the_wrong_kind_stays_refused() -> None:
    assert refused(pickle.dumps([1], 0)).code in ("container-invalid", "model-format-denied")
