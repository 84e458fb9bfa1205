# SPDX-License-Identifier: Apache-2.0
"""The log's fields are stable, and foreign text cannot do anything in it."""

from __future__ import annotations

import io
import json

import pytest

from scaleoutd.agent.log import escape, open_log
from scaleoutd.errors import TransportError

TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoiZW5yb2xsbWVudCJ9.c2lnbmF0dXJl"


def test_fields_of_a_line() -> None:
    output = io.StringIO()
    log = open_log(output, "json")
    log.info("connected", "connected to x", correlation_id="c1")
    log.warning("poll", TransportError("cannot reach x", hint="Look."))
    log.debug("stage", "not shown")
    first, second = (json.loads(line) for line in output.getvalue().splitlines())
    assert list(first) == ["time", "level", "room", "code", "event", "correlation_id", "message"]
    assert first["time"].endswith("Z")
    assert (first["level"], first["room"], first["event"], first["correlation_id"]) == ("info", "agent", "connected", "c1")
    assert (second["level"], second["code"], second["message"]) == ("warning", "transport-failed", "cannot reach x. Look.")


@pytest.mark.parametrize("form", ["json", "text"])
def test_foreign_text_stays_on_its_line_and_shows_no_token(form: str) -> None:
    output = io.StringIO()
    log = open_log(output, "json" if form == "json" else "text")
    log.error("poll", TransportError(f"bad \x1b[2J\r\nforged line \u202e {TOKEN} end"))
    text = output.getvalue()
    assert text.count("\n") == 1
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "eyJ" not in text
    assert "[token]" in text


def test_a_bug_has_its_traceback_without_tokens() -> None:
    for form in ("json", "text"):
        output = io.StringIO()
        log = open_log(output, "json" if form == "json" else "text")
        try:
            raise RuntimeError(f"boom {TOKEN}")
        except RuntimeError:
            log.bug("internal")
        assert "RuntimeError: boom [token]" in output.getvalue()
        assert "eyJ" not in output.getvalue()


def test_text_for_people() -> None:
    output = io.StringIO()
    open_log(output, "text").error("poll", TransportError("cannot reach x"))
    assert output.getvalue()[8:] == " agent: error: cannot reach x [transport-failed]\n"


def test_escape_keeps_what_is_harmless() -> None:
    assert escape("tab\tand åäö") == "tab\tand åäö"
