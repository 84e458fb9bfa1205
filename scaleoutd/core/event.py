# SPDX-License-Identifier: Apache-2.0
"""An audit event as one line: OCSF 1.9.0, RFC 8785 bytes, sealed into the chain.

Rules:
  1. A line has at most `MAX_LINE_BYTES` bytes and `MAX_LEAVES` values, no float, no integer of 2^53 or more.
  2. `time` is Unix milliseconds, `time_dt` the same instant as RFC 3339.
  3. What the room sent is in `unmapped.event`, word for word (or shortened with a mark); what only the ledger may say
     (sequence, time, room, peer uid) is outside of it.  OCSF's own attributes repeat a part of it for readers of OCSF.
  4. An event that is too large is shortened until it fits, longest values first.  It is never dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from scaleoutd.core import chain, strictjson
from scaleoutd.core.catalogue import EventType, Severity, Status, lookup, normalise, shorten, shorten_counts, shorten_items
from scaleoutd.core.chain import Tip
from scaleoutd.core.clock import utc_text
from scaleoutd.core.strictjson import Json
from scaleoutd.errors import FormatError

MAX_LINE_BYTES = 6000
MAX_LEAVES = 200
OCSF_VERSION = "1.9.0"
LOG_NAME = "scaleoutd-audit"
PRODUCT = "scaleoutd"

_SEVERITY_ID: dict[Severity, int] = {"informational": 1, "low": 2, "medium": 3, "high": 4}
_STATUS_ID: dict[Status, int] = {"unknown": 0, "success": 1, "failure": 2}
_FINGERPRINT_BYTES = 120  # what sealing adds to a line
_DIGEST = re.compile(r"[0-9a-f]{64}")
_encode = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode


@dataclass(frozen=True)
class Stamp:
    """What the ledger alone says of an event.  `uid` is the peer's user id, `host` and `version` are the node's."""

    sequence: int
    time_ms: int
    room: str
    uid: int
    event_id: str
    chain_uid: str
    previous: Tip | None
    host: str
    version: str


@dataclass(frozen=True)
class Event:
    """A line, read back.  `body` is what the room sent."""

    type: str
    body: dict[str, Json]
    sequence: int
    time_ms: int
    room: str
    uid: int
    event_id: str
    chain_uid: str
    previous: Tip | None
    fingerprint: str

    @property
    def tip(self) -> Tip:
        return Tip(self.event_id, self.fingerprint)


def build(name: str, body: Mapping[str, Any], stamp: Stamp) -> tuple[bytes, Tip]:
    """The line (without newline) of an event of `stamp.room`, and the tip of the chain after it.

    FormatError `event-invalid` when the catalogue refuses type, room or body.
    """
    event_type = lookup(name, stamp.room)
    kept = normalise(name, body, stamp.room)
    event = _event(event_type, kept, stamp)
    unsealed = encode(event)
    if len(unsealed) + _FINGERPRINT_BYTES > MAX_LINE_BYTES or leaves(event) + 2 > MAX_LEAVES:
        unsealed = _fit(event_type, kept, stamp)
    line, fingerprint = chain.seal(unsealed)
    return line, Tip(stamp.event_id, fingerprint)


def parse(line: bytes) -> Event:
    """A line as an Event, strictly; FormatError `event-invalid`.

    The type need not be in this build's catalogue (a trail outlives builds), and the fingerprint is not checked here.
    """
    if len(line) > MAX_LINE_BYTES:
        raise _refuse(f"it has {len(line)} bytes, at most {MAX_LINE_BYTES} are allowed")
    try:
        value = strictjson.parse_canonical(line, max_bytes=MAX_LINE_BYTES, what="an event")
    except FormatError as exc:
        raise _refuse(exc.message) from exc
    return from_value(value)


def from_value(value: Json) -> Event:
    """A parsed line as an Event."""
    try:
        metadata, unmapped, (proof,) = value["metadata"], value["unmapped"], value["attestation_list"]
        event = Event(
            type=_text(metadata["event_code"]),
            body=_object(unmapped["event"]),
            sequence=_natural(metadata["sequence"]),
            time_ms=_natural(value["time"]),
            room=_text(unmapped["room"]),
            uid=_natural(unmapped["uid"]),
            event_id=_text(metadata["uid"]),
            chain_uid=_text(proof["chain_uid"]),
            previous=_tip(proof.get("prev_event")),
            fingerprint=_text(proof["fingerprint"]["value"]),
        )
        if value["time_dt"] != time_dt(event.time_ms):
            raise ValueError("time and time_dt differ")
        if value["type_uid"] != value["class_uid"] * 100 + value["activity_id"]:
            raise ValueError("type_uid is not of class_uid and activity_id")
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise _refuse(f"a key of every event is missing or wrong: {exc}") from exc
    return event


def encode(event: Mapping[str, Json]) -> bytes:
    """RFC 8785 bytes by the C encoder: right because all our keys are ASCII (the catalogue checks) and nothing is a float."""
    return _encode(event).encode("utf-8")


def leaves(value: Json) -> int:
    """Number of values that are not containers."""
    if isinstance(value, dict):
        return sum(leaves(item) for item in value.values())
    if isinstance(value, list):
        return sum(leaves(item) for item in value)
    return 1


def time_dt(time_ms: int) -> str:
    """RFC 3339 with milliseconds, UTC."""
    return f"{utc_text(time_ms)[:-1]}.{time_ms % 1000:03d}Z"


def _event(event_type: EventType, body: dict[str, Json], stamp: Stamp) -> dict[str, Json]:
    place = event_type.place
    event: dict[str, Json] = {
        "activity_id": place.activity_id,
        "attestation_list": [chain.attestation(stamp.chain_uid, stamp.previous)],
        "category_uid": place.category_uid,
        "class_uid": place.class_uid,
        "metadata": {
            "event_code": event_type.name,
            "log_name": LOG_NAME,
            "product": {"name": PRODUCT, "version": stamp.version},
            "profiles": ["datetime", "record_integrity"],
            "sequence": stamp.sequence,
            "uid": stamp.event_id,
            "version": OCSF_VERSION,
        },
        "severity_id": _SEVERITY_ID[event_type.severity],
        "status_id": _STATUS_ID[event_type.status],
        "time": stamp.time_ms,
        "time_dt": time_dt(stamp.time_ms),
        "type_uid": place.type_uid,
        "unmapped": {"event": body, "room": stamp.room, "uid": stamp.uid},
    }
    if place.activity_name:
        event["activity_name"] = place.activity_name
    correlation = body.get("correlation_id", body.get("run"))
    if correlation is not None:
        event["metadata"]["correlation_uid"] = correlation
    if "code" in body:
        event["status_code"] = body["code"]
    event["message"] = shorten(str(body.get("message", event_type.meaning)), 256)
    _OF_CLASS[place.class_uid](event, body, stamp)
    return event


def _actor(stamp: Stamp) -> dict[str, Json]:
    return {"app_name": f"{PRODUCT}-{stamp.room}", "user": {"uid": str(stamp.uid)}}


def _device(stamp: Stamp) -> dict[str, Json]:
    return {"hostname": stamp.host, "type_id": 0}


def _endpoint(body: Mapping[str, Json]) -> dict[str, Json]:
    """host:port as an OCSF endpoint."""
    name = str(body.get("combiner", "")) or "unknown"
    host, colon, port = name.rpartition(":")
    if colon and host and port.isascii() and port.isdigit() and int(port) < 65_536:
        return {"hostname": shorten(host, 256), "port": int(port)}
    return {"hostname": shorten(name, 256)}


def _lifecycle(event: dict[str, Json], body: Mapping[str, Json], stamp: Stamp) -> None:
    event["app"] = {"name": f"{PRODUCT}-{stamp.room}", "version": stamp.version}


def _error(event: dict[str, Json], body: Mapping[str, Json], stamp: Stamp) -> None:
    pass


def _authentication(event: dict[str, Json], body: Mapping[str, Json], stamp: Stamp) -> None:
    event["actor"] = _actor(stamp)
    event["user"] = {"name": shorten(str(body.get("subject", PRODUCT)), 256) or PRODUCT}
    event["dst_endpoint"] = _endpoint(body)
    event["is_remote"] = True
    if "serial" in body:
        event["certificate"] = {
            "issuer": shorten(str(body.get("issuer", "unknown")), 256),
            "serial_number": shorten(str(body["serial"]), 128),
            "subject": shorten(str(body.get("subject", "unknown")), 256),
        }


def _api(event: dict[str, Json], body: Mapping[str, Json], stamp: Stamp) -> None:
    event["actor"] = _actor(stamp)
    event["api"] = {"operation": event["metadata"]["event_code"]}
    event["src_endpoint"] = {"hostname": stamp.host}
    if "combiner" in body or "destination" in body:
        event["dst_endpoint"] = _endpoint({"combiner": body.get("combiner", body.get("destination"))})


def _network(event: dict[str, Json], body: Mapping[str, Json], stamp: Stamp) -> None:
    event["src_endpoint"] = {"hostname": stamp.host}
    event["dst_endpoint"] = _endpoint(body)


def _process(event: dict[str, Json], body: Mapping[str, Json], stamp: Stamp) -> None:
    event["actor"] = _actor(stamp)
    event["device"] = _device(stamp)
    event["process"] = {"uid": body["run"]}
    command = body.get("command")
    if isinstance(command, list):
        event["process"]["cmd_line"] = shorten(" ".join(str(item) for item in command), 256)
    if "exit_status" in body:
        event["exit_code"] = body["exit_status"]


def _file(event: dict[str, Json], body: Mapping[str, Json], stamp: Stamp) -> None:
    event["actor"] = _actor(stamp)
    event["device"] = _device(stamp)
    name = str(body.get("file") or body.get("kind") or event["metadata"]["event_code"])
    event["file"] = {"name": shorten(name, 256), "type_id": 1}
    if "size_bytes" in body:
        event["file"]["size"] = body["size_bytes"]
    if "sha256" in body:
        event["file"]["hashes"] = [{"algorithm_id": chain.SHA256_ID, "value": body["sha256"]}]


def _finding(event: dict[str, Json], body: Mapping[str, Json], stamp: Stamp) -> None:
    event["device"] = _device(stamp)
    event["finding_info"] = {"title": event["metadata"]["event_code"], "uid": stamp.event_id}


def _compliance(event: dict[str, Json], body: Mapping[str, Json], stamp: Stamp) -> None:
    event["finding_info"] = {"title": event["metadata"]["event_code"], "uid": stamp.event_id}
    event["compliance"] = {"control": event["metadata"]["event_code"], "status_id": 1 if event["status_id"] == 1 else 3}


def _log(event: dict[str, Json], body: Mapping[str, Json], stamp: Stamp) -> None:
    event["log_name"] = LOG_NAME


_OF_CLASS: dict[int, Callable[[dict[str, Json], Mapping[str, Json], Stamp], None]] = {
    1001: _file,
    1007: _process,
    1008: _log,
    2003: _compliance,
    2004: _finding,
    3002: _authentication,
    4001: _network,
    6002: _lifecycle,
    6003: _api,
    6008: _error,
}


def _fit(event_type: EventType, body: dict[str, Json], stamp: Stamp) -> bytes:
    """Shortens texts, lists and maps step by step until the line fits."""
    chars, items = 512, 32
    while True:
        body = {key: _cut(value, chars, items) for key, value in body.items()}
        event = _event(event_type, body, stamp)
        unsealed = encode(event)
        if len(unsealed) + _FINGERPRINT_BYTES <= MAX_LINE_BYTES and leaves(event) + 2 <= MAX_LEAVES:
            return unsealed
        if chars < 8:
            raise _refuse(f"it has {len(unsealed)} bytes and cannot be shortened further")
        chars, items = chars // 2, max(2, items // 2)


def _cut(value: Json, chars: int, items: int) -> Json:
    if isinstance(value, str):
        # a digest stays whole: cut it would be none
        return value if _DIGEST.fullmatch(value) else shorten(value, chars)
    if isinstance(value, list):
        return shorten_items([shorten(str(item), chars) for item in value], items)
    if isinstance(value, dict):
        return shorten_counts(value, items)
    return value


def _tip(value: Json) -> Tip | None:
    if value is None:
        return None
    return Tip(_text(value["uid"]), _text(value["fingerprint"]["value"]))


def _text(value: Json) -> str:
    if not isinstance(value, str):
        raise ValueError("a text is missing")
    return value


def _natural(value: Json) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError("a number is missing")
    return value


def _object(value: Json) -> dict[str, Json]:
    if not isinstance(value, dict):
        raise ValueError("an object is missing")
    return value


def _refuse(cause: str) -> FormatError:
    return FormatError(f"cannot read an event: {cause}", code="event-invalid", hint="docs/audit-format.md has the format.")
