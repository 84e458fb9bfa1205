# SPDX-License-Identifier: Apache-2.0
"""The catalogue of audit events as a page for people: `python -m scaleoutd.core.eventpage > docs/events.md`."""

from __future__ import annotations

from scaleoutd.core.catalogue import CONTEXT, EVENTS, MAX_ITEM_CHARS, MAX_ITEMS, MAX_TEXT_CHARS, EventType


def document() -> str:
    """docs/events.md."""
    lines = [
        "# Events of the audit trail",
        "",
        "This page is made from `scaleoutd/core/catalogue.py` (`python -m scaleoutd.core.eventpage > docs/events.md`); a test",
        "compares them. The format of a line is in [audit-format.md](audit-format.md).",
        "",
        "The ledger takes a type only from the rooms named here, and a body only with the keys named here. Every body may also",
        f"have: {', '.join(f'`{key}`' for key in sorted(CONTEXT))}.",
        "",
        f"Kinds: text (at most {MAX_TEXT_CHARS} characters, the rest is cut with a mark); sha256 (64 hex digits); natural (0 to"
        " 2^53 - 1);",
        f"flag; texts (a list, at most {MAX_ITEMS} texts of {MAX_ITEM_CHARS} characters); counts (a map of at most {MAX_ITEMS}"
        " naturals).",
        "",
    ]
    for room in ("agent", "runner", "ledger", "cli"):
        lines += [f"## {room}", ""]
        for event in EVENTS:
            if event.rooms[0] == room:
                lines += _section(event)
    return "\n".join(lines).rstrip() + "\n"


def _section(event: EventType) -> list[str]:
    place = event.place
    activity = f"{place.activity_id} ({place.activity_name})" if place.activity_name else str(place.activity_id)
    lines = [
        f"### {event.name}",
        "",
        event.meaning,
        "",
        f"- rooms: {', '.join(event.rooms)}; severity: {event.severity}; status: {event.status}",
        f"- OCSF: class {place.class_uid}, activity {activity}",
    ]
    for title, keys in (("required", event.required), ("optional", event.optional)):
        if keys:
            lines.append(f"- {title}: " + ", ".join(f"`{key}` {kind}" for key, kind in keys.items()))
    return [*lines, ""]


if __name__ == "__main__":
    print(document(), end="")
