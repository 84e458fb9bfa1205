# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
import typing
from pathlib import Path

import pytest

from scaleoutd.core import catalogue, eventpage
from scaleoutd.core.catalogue import EVENTS, EventType
from scaleoutd.errors import FormatError
from tests.unit.core.audit_samples import body_of

ROOT = Path(__file__).resolve().parents[3]


def test_names_are_unique_and_kinds_known() -> None:
    assert len(catalogue.BY_NAME) == len(EVENTS)
    kinds = set(typing.get_args(catalogue.Kind))
    for event in EVENTS:
        assert {*event.required.values(), *event.optional.values()} <= kinds
        assert set(event.rooms) <= set(typing.get_args(catalogue.Room))
        assert re.fullmatch(r"[a-z][a-z0-9-]*", event.name)
        assert event.meaning.endswith(".")
        assert not set(event.required) & set(event.optional)


def test_the_document_is_the_catalogue() -> None:
    page = (ROOT / "docs" / "events.md").read_text()
    assert page == eventpage.document(), "make it again: python -m scaleoutd.core.eventpage > docs/events.md"


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.name)
def test_only_its_rooms_may_send_a_type(event: EventType) -> None:
    for room in typing.get_args(catalogue.Room):
        if room in event.rooms:
            catalogue.normalise(event.name, body_of(event), room)
        else:
            with pytest.raises(FormatError, match="may not send"):
                catalogue.normalise(event.name, body_of(event), room)


@pytest.mark.parametrize("event", [event for event in EVENTS if event.required], ids=lambda event: event.name)
def test_a_missing_required_key_is_refused(event: EventType) -> None:
    for key in event.required:
        body = body_of(event)
        del body[key]
        with pytest.raises(FormatError, match=f"required key '{key}'"):
            catalogue.normalise(event.name, body)


def test_an_unknown_type_or_key_is_refused() -> None:
    with pytest.raises(FormatError, match="not in the catalogue"):
        catalogue.normalise("run-began", {})
    with pytest.raises(FormatError, match="'secret' is unknown"):
        catalogue.normalise("run-failed", {"run": "r", "code": "c", "message": "m", "secret": "s"})


def test_none_means_left_out() -> None:
    assert catalogue.normalise("computed", {"run": "r", "sha256": None}) == {"run": "r"}


def test_long_lists_and_maps_say_how_much_was_cut() -> None:
    assert catalogue.shorten_items([str(n) for n in range(60)], 48)[-1] == "…[cut 60 to 47]"
    counts = catalogue.shorten_counts({f"c{n:03d}": n for n in range(60)}, 48)
    assert counts["cut"] == 13 and "c059" in counts and "c000" not in counts
