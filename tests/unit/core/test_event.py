# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema

from scaleoutd.core import catalogue, chain, event
from scaleoutd.core.catalogue import EVENTS, EventType
from scaleoutd.errors import FormatError
from tests.unit.core.audit_samples import body_of, stamp

_SCHEMA = OcsfJsonSchemaEmbedded(get_ocsf_schema("1.8.0"))
_VALIDATORS: dict[int, Any] = {}


def validator(class_uid: int) -> Any:
    """The validator of OCSF 1.8.0 with profile datetime: the newest that is on PyPI for all classes."""
    if class_uid not in _VALIDATORS:
        name = _SCHEMA.lookup_class_name_from_uid(class_uid)
        schema = _SCHEMA.get_class_schema(name, ["datetime"])
        _VALIDATORS[class_uid] = jsonschema.Draft202012Validator(schema)
    return _VALIDATORS[class_uid]


def as_1_8(line: bytes) -> dict[str, Any]:
    """The event without what 1.8.0 does not know: the profile record_integrity."""
    value: dict[str, Any] = json.loads(line)
    del value["attestation_list"]
    value["metadata"]["profiles"].remove("record_integrity")
    value["metadata"]["version"] = "1.8.0"
    return value


@pytest.mark.parametrize("full", [False, True], ids=["required", "full"])
@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.name)
def test_every_type_is_valid_ocsf_canonical_and_within_its_limits(kind: EventType, full: bool) -> None:
    line, tip = event.build(kind.name, body_of(kind, full=full), stamp(room=kind.rooms[0]))
    validator(kind.place.class_uid).validate(as_1_8(line))
    assert rfc8785.dumps(json.loads(line)) == line
    assert len(line) <= event.MAX_LINE_BYTES
    assert event.leaves(json.loads(line)) <= event.MAX_LEAVES
    assert chain.unseal(line) == (tip.fingerprint, tip.fingerprint)
    assert chain.fingerprint_of(json.loads(line)) == tip.fingerprint


def test_the_validator_refuses_a_missing_and_an_unknown_key() -> None:
    line, _ = event.build("agent-started", {}, stamp(room="agent"))
    value = as_1_8(line)
    del value["app"]
    with pytest.raises(jsonschema.ValidationError):
        validator(6002).validate(value)
    with pytest.raises(jsonschema.ValidationError):
        validator(6002).validate({**as_1_8(line), "ours": 1})


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.name)
def test_a_line_is_read_back_as_it_was_sent(kind: EventType) -> None:
    body = body_of(kind)
    mark = stamp(room=kind.rooms[0])
    line, tip = event.build(kind.name, body, mark)
    back = event.parse(line)
    assert (back.type, back.body, back.room, back.uid) == (kind.name, body, kind.rooms[0], 998)
    assert (back.sequence, back.time_ms, back.previous, back.tip) == (5, mark.time_ms, mark.previous, tip)


def test_the_first_event_has_no_previous() -> None:
    line, _ = event.build("ledger-alive", {}, stamp(0, "ledger"))
    assert b"prev_event" not in line
    assert event.parse(line).previous is None


def test_a_long_message_is_shortened_with_a_mark_and_never_lost() -> None:
    line, _ = event.build("run-failed", {"run": "r", "code": "step-failed", "message": "x" * 1_000_000}, stamp())
    assert len(line) <= event.MAX_LINE_BYTES
    assert "…[cut 1000000 to 1024]" in event.parse(line).body["message"]


def test_the_largest_body_of_hostile_texts_still_fits_and_keeps_its_digests() -> None:
    kind = catalogue.BY_NAME["run-about-to-start"]
    body = body_of(kind, full=True)
    for key, what in {**kind.required, **kind.optional, **catalogue.CONTEXT}.items():
        if what == "text":
            body[key] = "\x00\x1b[31m" * 400
        elif what == "texts":
            body[key] = ["\x01" * 300] * 500
        elif what == "counts":
            body[key] = {f"call_{number}" + "k" * 100: 2**53 - 1 for number in range(400)}
    line, _ = event.build(kind.name, body, stamp(previous=None))
    assert len(line) <= event.MAX_LINE_BYTES
    assert event.leaves(json.loads(line)) <= event.MAX_LEAVES
    assert event.parse(line).body["policy_sha256"] == body["policy_sha256"]


@settings(max_examples=200)
@given(st.text(max_size=3000), st.lists(st.text(max_size=300), max_size=80))
def test_no_text_breaks_the_line(message: str, keys: list[str]) -> None:
    body = {"run": "r", "code": "c", "message": message, "hint": message[::-1], "stage": "s", "note": message[:50]}
    line, _ = event.build("run-failed", body, stamp())
    assert b"\n" not in line
    assert rfc8785.dumps(json.loads(line)) == line
    assert event.parse(line).type == "run-failed"
    kept = {"run": "r", "kind": "k", "sha256": "0" * 64, "size_bytes": 1, "destination": message, "keys": keys}
    line, tip = event.build("release", kept, stamp())
    assert rfc8785.dumps(json.loads(line)) == line and len(line) <= event.MAX_LINE_BYTES
    assert chain.unseal(line) == (tip.fingerprint, tip.fingerprint)


def test_lone_surrogates_of_a_file_name_are_escaped_not_fatal() -> None:
    line, _ = event.build("manifest-refused", {"code": "file-name", "message": "x", "file": "train\udcff.py"}, stamp())
    assert event.parse(line).body["file"] == "train\\udcff.py"


@pytest.mark.parametrize("value", [2**53, -1, 1.5, True, "7", None])
def test_a_number_that_is_none_is_refused(value: Any) -> None:
    body = {"run": "r", "sha256": "0" * 64, "size_bytes": value}
    with pytest.raises(FormatError, match="size_bytes"):
        event.build("model-received", body, stamp())
    event.build("model-received", {**body, "size_bytes": 2**53 - 1}, stamp())


def test_ten_years_of_milliseconds_are_a_safe_integer() -> None:
    line, _ = event.build("run-ended", {"run": "r", "ended": "exited", "wall_ms": 10 * 365 * 86_400_000}, stamp())
    assert event.parse(line).body["wall_ms"] == 315_360_000_000


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"time":', b'"time":1'),
        (b'"time_dt":"2', b'"time_dt":"3'),
        (b'"sequence":5', b'"sequence":-5'),
        (b'"room":"runner"', b'"room":5'),
        (b'"activity_id":3', b'"activity_id":4'),
        (b"{", b"{ "),
        (b'"uid":998', b'"uid":998.0'),
    ],
)
def test_a_line_that_contradicts_itself_is_refused(old: bytes, new: bytes) -> None:
    line, _ = event.build("runner-started", {}, stamp())
    assert old in line
    event.parse(line)
    with pytest.raises(FormatError):
        event.parse(line.replace(old, new, 1))
