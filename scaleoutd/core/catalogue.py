# SPDX-License-Identifier: Apache-2.0
"""The closed catalogue of audit events: which exist, who may send them, what they carry, where OCSF puts them.

Rules:
  1. The ledger takes no type that is not here, and a type only from the rooms named here.
  2. A body has the required keys, may have the optional keys and those of `CONTEXT`, and no other.
  3. What is missing or of the wrong type is refused.  What is only too long is shortened with a mark: an event must not
     be lost because a name or a message was long, and an attacker picks names and messages.
  4. A body holds strings, integers, booleans, lists of strings and flat maps of integers.

docs/events.md is made from here (eventpage.py); a test compares.  Classes and activities: OCSF 1.9.0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from scaleoutd.core.strictjson import MAX_SAFE_INTEGER, Json
from scaleoutd.errors import FormatError

Room = Literal["agent", "runner", "ledger", "cli"]
Kind = Literal["text", "sha256", "natural", "flag", "texts", "counts"]
Severity = Literal["informational", "low", "medium", "high"]
Status = Literal["success", "failure", "unknown"]

MAX_TEXT_CHARS = 1024
MAX_ITEM_CHARS = 256
MAX_ITEMS = 48

# Optional in every event: what it belongs to.
CONTEXT: dict[str, Kind] = {
    "attempt": "natural",
    "code": "text",
    "combiner": "text",
    "correlation_id": "text",
    "hint": "text",
    "message": "text",
    "model_id": "text",
    "note": "text",
    "project": "text",
    "round_id": "text",
    "run": "text",
    "session_id": "text",
    "task": "text",
}

_SHA256 = re.compile(r"[0-9a-f]{64}")
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:+@/-]{0,127}")


@dataclass(frozen=True)
class Placement:
    """Where OCSF files an event.  `activity_name` is set for activity 99 (Other) only."""

    class_uid: int
    activity_id: int
    activity_name: str = ""

    @property
    def category_uid(self) -> int:
        return self.class_uid // 1000

    @property
    def type_uid(self) -> int:
        return self.class_uid * 100 + self.activity_id


@dataclass(frozen=True)
class EventType:
    """One entry.  `outcome_key`: a body key whose value decides the status instead of `status`."""

    name: str
    rooms: tuple[Room, ...]
    meaning: str
    place: Placement
    required: Mapping[str, Kind] = field(default_factory=dict)
    optional: Mapping[str, Kind] = field(default_factory=dict)
    severity: Severity = "informational"
    status: Status = "success"

    def kind_of(self, key: str) -> Kind | None:
        return self.required.get(key) or self.optional.get(key) or CONTEXT.get(key)


START, STOP, SET_UP = Placement(6002, 3), Placement(6002, 4), Placement(6002, 99, "Set up")
ERROR = Placement(6008, 1)
LOGON, LOGOFF, CREDENTIAL = Placement(3002, 1), Placement(3002, 2), Placement(3002, 99, "Credential loaded")
CALL_CREATE, CALL_READ, CALL_UPDATE = Placement(6003, 1), Placement(6003, 2), Placement(6003, 3)
COMMAND = Placement(6003, 99, "Command")
REFUSE = Placement(4001, 5)
LAUNCH, TERMINATE = Placement(1007, 1), Placement(1007, 2)
FILE_CREATE, FILE_READ, FILE_DELETE = Placement(1001, 1), Placement(1001, 2), Placement(1001, 4)
FINDING, COMPLIANCE = Placement(2004, 1), Placement(2003, 1)
LOG_ROTATE, LOG_OTHER = Placement(1008, 5), Placement(1008, 99, "Integrity")


def _kinds(text: str) -> dict[str, Kind]:
    """ "code message sizes:counts" → kinds by name; text when none is given; known endings have their own."""
    kinds: dict[str, Kind] = {}
    for word in text.split():
        key, _, kind = word.partition(":")
        if not kind:
            if key.endswith("sha256"):
                kind = "sha256"
            elif key.endswith(("_bytes", "_ms", "_version", "_count", "_pid")) or CONTEXT.get(key) == "natural":
                kind = "natural"
            else:
                kind = "text"
        kinds[key] = kind  # type: ignore[assignment]  # the words below are literals; a test checks them
    return kinds


def _event(
    rooms: str,
    name: str,
    place: Placement,
    meaning: str,
    required: str = "",
    optional: str = "",
    *,
    severity: Severity = "informational",
    status: Status = "success",
) -> EventType:
    return EventType(
        name, cast("tuple[Room, ...]", tuple(rooms.split())), meaning, place, _kinds(required), _kinds(optional), severity, status
    )


_CONTEXT_OF_RUN = "run attempt correlation_id session_id round_id task"

# fmt: off
EVENTS: tuple[EventType, ...] = (
    # agent
    _event("agent", "agent-started", START, "The agent serves.", "", "version dialect config_sha256 client_id client_name api_url"
           " client_certificate tls_policy server_pins:texts openssl pid:natural"),
    _event("agent", "agent-stopped", STOP, "The agent ended by itself.", "", "reason exit_status:natural"),
    _event("agent", "credential-loaded", CREDENTIAL, "A client certificate and its key are in use from now on.",
           "subject serial not_after spki_sha256",
           "issuer not_before certificate_sha256 chain_length:natural previous_spki_sha256 file"),
    _event("agent", "credential-refused", CREDENTIAL, "A new client certificate cannot be used; the old one stays.",
           "code message", "subject serial not_after spki_sha256 file", severity="high", status="failure"),
    _event("agent", "connected", LOGON, "The TLS handshake with the combiner or API is done and its certificate was accepted.",
           "combiner", "peer_spki_sha256 peer_subject peer_not_after tls_version:text cipher client_spki_sha256 service address"),
    _event("agent", "disconnected", LOGOFF, "A connection ended.", "combiner", "reason connected_ms service"),
    _event("agent cli", "connection-refused", REFUSE, "A connection was refused by us, from the start on, or by the other side.",
           "combiner code message", "peer_spki_sha256 peer_subject tls_version:text service address",
           severity="medium", status="failure"),
    _event("agent", "token-refreshed", Placement(3002, 99, "Token refreshed"), "A new access token came from its origin.", "",
           "issuer expires not_after"),
    _event("agent", "token-refused", Placement(3002, 99, "Token refused"), "The API refused the token.", "code message", "issuer",
           severity="medium", status="failure"),
    _event("agent", "task-received", CALL_READ, "The combiner asked for a task.", "correlation_id task",
           "settings_sha256 settings_bytes sent_at"),
    _event("agent", "task-refused", CALL_READ, "The agent refused a task before offering it to the runner.",
           "correlation_id code", "", severity="medium", status="failure"),
    _event("agent", "model-downloaded", CALL_READ, "A model arrived from the combiner.", "model_id size_bytes",
           "sha256 checksum wall_ms"),
    _event("agent", "sending", CALL_CREATE, "The agent begins to send what the runner released; durable before the first byte.",
           "run", "model_update_id sha256 size_bytes destination outcome kind keys:texts", status="unknown"),
    _event("agent", "sent", CALL_CREATE, "The combiner acknowledged what was sent.", "run outcome",
           "model_update_id sha256 size_bytes destination wall_ms kind keys:texts"),
    _event("agent", "delivery-unknown", CALL_CREATE, "Nobody can know whether the combiner took it.", "run",
           "model_update_id sha256 size_bytes destination outcome resolution kind", severity="medium", status="unknown"),
    _event("agent", "task-reported", CALL_UPDATE, "The state of a task was reported to the combiner.", "correlation_id status"),
    _event("agent", "task-dropped", CALL_UPDATE, "The agent gave a task up without a result.", "correlation_id code", "reason",
           severity="medium", status="failure"),
    # runner
    _event("runner", "runner-started", START, "The runner serves; what it was started with.", "",
           "version policy_sha256 trust_root_sha256 trust_root_version backend outcomes:texts seccomp_sha256 landlock_abi:natural"
           " development:flag project_folder formats:texts openssl kernel pid:natural clock_synchronised:flag python"),
    _event("runner", "runner-stopped", STOP, "The runner ended by itself.", "", "reason exit_status:natural"),
    _event("runner", "policy-loaded", COMPLIANCE, "A policy is in force from now on.", "policy_sha256", "previous_sha256 file"),
    _event("runner", "trust-root-accepted", COMPLIANCE, "A trust root was verified and accepted.", "root_version root_sha256",
           "previous_version previous_sha256 signers:texts expires"),
    _event("cli", "trust-root-reset", COMPLIANCE, "A person broke the chain of roots: this one counts from now on.",
           "root_version root_sha256 reason operator", "previous_version previous_sha256 peer_uid:natural", severity="high"),
    _event("runner", "outcome-open", FINDING, "The development mode runs although an outcome could not be proven.",
           "outcomes:texts", "backend", severity="high", status="failure"),
    _event("runner", "manifest-verified", COMPLIANCE, "The project is exactly what was signed.",
           "project manifest_version manifest_sha256 signers:texts",
           "root_version files:natural size_bytes expires verify_ms trust_root_sha256 correlation_id"),
    _event("runner", "manifest-refused", FINDING, "The project is not what was signed, or the signature does not count.",
           "code message", "file expected found manifest_version manifest_sha256 trust_root_sha256 correlation_id",
           severity="high", status="failure"),
    _event("runner", "task-authorized", COMPLIANCE, "Policy and manifest allow this task.", "correlation_id",
           "policy_sha256 manifest_sha256 budget_left:natural settings_sha256"),
    _event("runner", "task-denied", COMPLIANCE, "Policy or manifest do not allow this task.", "correlation_id code",
           "policy_sha256 manifest_sha256 expected found settings_sha256", severity="medium", status="failure"),
    _event("runner", "snapshot-made", FILE_CREATE, "The project's bytes are in the content store and read-only.",
           "", "snapshot_sha256 manifest_sha256 files:natural copied:natural size_bytes wall_ms"),
    _event("runner", "model-received", FILE_CREATE, "The model is complete, nobody can write it, and it was hashed.",
           "run sha256 size_bytes", "correlation_id"),
    _event("runner", "model-inspected", FILE_READ, "A confined child read the model and says what it is.", "run format",
           "arrays:natural parameters:natural arrays_sha256 container model_sha256 helper_type"),
    _event("runner", "model-refused", FINDING, "The model is not what the agent says it wrote, or none that the policy allows.",
           "run code message", "format model_sha256 size_bytes", severity="high", status="failure"),
    _event("runner", "startup-about-to-run", LAUNCH, "Durable before a project's startup command runs, once before a task.",
           "run correlation_id session_id round_id task project manifest_sha256 manifest_version environment data_sets:texts"
           " policy_sha256 command:texts limits:counts", "environment_sha256 backend slot:natural devices:texts"),
    _event("runner", "run-about-to-start", LAUNCH, "Durable before a step starts: what runs on what.",
           f"{_CONTEXT_OF_RUN} project manifest_sha256 manifest_version model_sha256 environment data_sets:texts policy_sha256"
           " command:texts limits:counts",
           "environment_sha256 snapshot_sha256 seccomp_sha256 plan_sha256 backend slot:natural outcomes:texts settings_sha256"
           " trust_root_sha256 devices:texts"),
    _event("runner", "run-ended", TERMINATE, "A step, or the startup before it, ended; what it used and what held.",
           "run ended", "exit_status:natural signal:natural wall_ms cpu_ms max_rss_bytes stdout_bytes stdout_dropped_bytes"
           " scratch_bytes killed_processes:natural denied:counts enforced:texts limits:counts"),
    _event("runner", "session-waits", COMPLIANCE, "A session asked to run; the policy wants a second person's approval.",
           "session_id combiner policy_sha256", "", severity="low"),
    _event("runner", "session-approved", COMPLIANCE, "A second person approved a session, for one combiner under one policy.",
           "session_id combiner operator peer_uid:natural policy_sha256", ""),
    _event("runner", "approval-refused", FINDING, "Somebody tried to approve a session who is no second person.",
           "session_id combiner operator peer_uid:natural code message", "", severity="high", status="failure"),
    _event("runner", "output-refused", FINDING, "What a step produced may not leave.", "run code message", "file expected found",
           severity="high", status="failure"),
    _event("runner", "outputs-accepted", COMPLIANCE, "A confined child checked the outputs.", "run",
           "sha256 size_bytes format arrays:natural arrays_sha256 keys:texts withheld:texts kind"),
    _event("runner", "computed", FILE_CREATE, "The result is durable in the outbox; nothing is lost from here on.", "run",
           "sha256 size_bytes model_update_id kind"),
    _event("runner", "release", CALL_CREATE, "Durable before the result leaves the runner: the exact bytes and where to.",
           "run kind sha256 size_bytes destination",
           "model_update_id keys:texts withheld:texts policy_sha256 num_examples:natural"),
    _event("runner", "run-failed", ERROR, "A run ended without a result.", "run code message", "stage", severity="medium",
           status="failure"),
    _event("runner", "run-interrupted", TERMINATE, "A run was found unfinished after a restart, or was cancelled.", "run",
           "found state reason", severity="medium", status="failure"),
    _event("runner", "outbox-forgotten", FILE_DELETE, "A result was deleted from the outbox.", "run outcome",
           "sha256 size_bytes model_update_id reason"),
    _event("runner agent", "state-repaired", ERROR, "The unacknowledged rest of a crash was cut off a state file.",
           "file torn_bytes", "reason", severity="low"),
    _event("runner agent", "clock-refused", FINDING, "The clock shows a time before one that was seen already.", "message",
           "code expected found", severity="high", status="failure"),
    # ledger
    _event("ledger", "ledger-started", START, "The ledger serves; the trail's end as it was found.", "size:natural",
           "version config_sha256 clean:flag checkpoint_size:natural epoch:natural key openssl boot_id clock_synchronised:flag"),
    _event("ledger", "ledger-stopped", STOP, "The ledger ended by itself.", "", "reason"),
    _event("ledger", "ledger-alive", LOG_OTHER, "Nothing happened for a while; the ledger was there.", "", ""),
    _event("ledger", "event-refused", FINDING, "An event of an unknown type, from the wrong room, or malformed.",
           "room type reason", "peer_uid:natural", severity="high", status="failure"),
    _event("ledger", "tail-cut", LOG_OTHER, "The unacknowledged rest of a crash was set aside.", "file torn_bytes sha256", "",
           severity="medium"),
    _event("ledger", "clock-set-back", FINDING, "The clock went back by more than five minutes.", "from_ms to_ms", "",
           severity="high", status="failure"),
    _event("ledger", "clock-floor-lowered", LOG_OTHER, "A wrong clock floor was lowered by a recorded command.",
           "from_ms to_ms", "reason", severity="high"),
    _event("ledger", "clock-jumped", LOG_OTHER, "The clock went ahead by more than a day; unsynchronised it raises no floor.",
           "from_ms to_ms clock_synchronised:flag", "", severity="medium"),
    _event("ledger", "floors-noted", LOG_OTHER, "Highest versions and latest time so far; opens each segment but the first.",
           "time_ms root_version epoch:natural manifest_versions:counts", "root_sha256"),
    _event("ledger", "segment-closed", LOG_ROTATE, "A segment is complete; the next one begins.", "segment",
           "events:natural size_bytes first_sequence:natural"),
    _event("ledger", "epoch-key-made", LOG_OTHER, "A new checkpoint key, certified by the one before.", "epoch:natural key",
           "certificate previous_key"),
    # people at the command line
    _event("cli", "audit-verified", LOG_OTHER, "Somebody verified the trail.", "verdict",
           "size:natural operator sequence:natural"),
    _event("cli", "key-made", SET_UP, "A signing key was made.", "keyid", "algorithm file operator development:flag"),
    _event("cli", "project-signed", COMPLIANCE, "A project was signed.", "project manifest_version manifest_sha256 keyid",
           "operator files:natural changed:texts development:flag"),
    _event("cli runner agent", "operator-command", COMMAND, "A person commanded the node.", "command",
           "arguments:texts operator reason exit_status:natural peer_uid:natural login_uid:natural"),
)

# fmt: on
BY_NAME: dict[str, EventType] = {event.name: event for event in EVENTS}


def lookup(name: str, room: str | None = None) -> EventType:
    """The entry `name`; FormatError `event-invalid` when there is none or `room` may not send it."""
    event = BY_NAME.get(name)
    if event is None:
        raise _refuse(name, "its type is not in the catalogue")
    if room is not None and room not in event.rooms:
        raise _refuse(name, f"room {room[:32]!r} may not send it, only {' and '.join(event.rooms)}")
    return event


def normalise(name: str, body: Mapping[str, Any], room: str | None = None) -> dict[str, Json]:
    """The checked and shortened copy of `body`; keys with None are left out.  FormatError `event-invalid`."""
    event = lookup(name, room)
    result: dict[str, Json] = {}
    for key, value in body.items():
        if value is None:
            continue
        kind = event.kind_of(key)
        if kind is None:
            known = sorted({*event.required, *event.optional})
            raise _refuse(name, f"key {str(key)[:64]!r} is unknown; its own are {', '.join(known) or 'none'}")
        result[key] = _value(name, key, kind, value)
    missing = [key for key in event.required if key not in result]
    if missing:
        raise _refuse(name, f"required key {missing[0]!r} is missing")
    return result


def shorten(text: str, max_chars: int) -> str:
    """`text` with at most `max_chars` characters; a mark says how many were cut."""
    if len(text) <= max_chars:
        return text
    mark = f"…[cut {len(text)} to {max_chars}]"
    return text[: max(0, max_chars - len(mark))] + mark


def shorten_items(items: list[str], max_items: int) -> list[str]:
    """At most `max_items` items; the last says how many there were."""
    if len(items) <= max_items:
        return items
    return [*items[: max_items - 1], f"…[cut {len(items)} to {max_items - 1}]"]


def shorten_counts(counts: dict[str, int], max_items: int) -> dict[str, int]:
    """At most `max_items` keys, the largest counts; key `cut` says how many are missing."""
    if len(counts) <= max_items:
        return counts
    kept = sorted(counts, key=lambda key: (-counts[key], key))[: max_items - 1]
    return {**{key: counts[key] for key in sorted(kept)}, "cut": len(counts) - len(kept)}


def _value(name: str, key: str, kind: Kind, value: Any) -> Json:
    if kind == "text":
        if isinstance(value, str):
            return shorten(_clean(value), MAX_TEXT_CHARS)
    elif kind == "sha256":
        if isinstance(value, str) and _SHA256.fullmatch(value):
            return value
    elif kind == "natural":
        if _is_natural(value):
            return int(value)
    elif kind == "flag":
        if isinstance(value, bool):
            return value
    elif kind == "texts":
        if isinstance(value, Sequence) and not isinstance(value, str | bytes) and all(isinstance(item, str) for item in value):
            return shorten_items([shorten(_clean(item), MAX_ITEM_CHARS) for item in value], MAX_ITEMS)
    elif isinstance(value, Mapping) and all(_is_key(item) and _is_natural(value[item]) for item in value):
        return shorten_counts(dict(value), MAX_ITEMS)
    shown = repr(value)
    raise _refuse(name, f"key {key!r} must be of kind {kind}, found {shown if len(shown) <= 80 else shown[:77] + '...'}")


def _clean(text: str) -> str:
    # A lone surrogate (from os.fsdecode of a hostile file name) has no UTF-8 form and would stop the append.
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def _is_natural(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_SAFE_INTEGER


def _is_key(value: Any) -> bool:
    return isinstance(value, str) and _KEY.fullmatch(value) is not None


def _refuse(name: str, cause: str) -> FormatError:
    return FormatError(
        f"cannot record event {str(name)[:64]!r}: {cause}", code="event-invalid", hint="docs/events.md lists the catalogue."
    )
