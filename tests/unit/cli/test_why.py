# SPDX-License-Identifier: Apache-2.0
"""`why`: a page for every code, none for an unknown one, and what the pages name exists."""

from __future__ import annotations

import json
import re

import click
import pytest
from click.testing import CliRunner

from scaleoutd.cli.scaleoutctl import scaleoutctl
from scaleoutd.cli.why import parse_pages, read_pages
from scaleoutd.core.catalogue import BY_NAME
from scaleoutd.core.policy import Policy
from scaleoutd.core.records import encode
from scaleoutd.errors import CODES, ConfigError, FormatError
from tests.unit.cli.test_explain import POLICY


def call(*arguments: str) -> str:
    result = CliRunner().invoke(scaleoutctl, ["why", *arguments], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.output


def test_every_code_has_a_page_and_no_page_is_for_an_unknown_code() -> None:
    assert set(read_pages()) == set(CODES)


@pytest.mark.parametrize("code", CODES)
def test_a_page_is_whole(code: str) -> None:
    page = read_pages()[code]
    assert page.event and page.causes and page.do and page.group
    text = call(code)
    assert CODES[code] in text and page.do[0] in text


def test_events_that_pages_name_are_in_the_catalogue() -> None:
    for page in read_pages().values():
        for name in re.findall(r"\b[a-z]+(?:-[a-z]+)+\b", page.event):
            assert name in BY_NAME, f"{page.code} names the event {name}"


def test_commands_that_pages_name_exist() -> None:
    context = click.Context(scaleoutctl)
    for page in read_pages().values():
        for command, options in re.findall(r"`scaleoutctl ([a-z]+(?:-[a-z]+)*)([^`]*)`", " ".join((*page.do, *page.causes))):
            found = scaleoutctl.get_command(context, command)
            assert found is not None, f"{page.code} names the command {command}"
            words = [*re.findall(r"^ ([a-z]+)", options)] if isinstance(found, click.Group) else []
            for word in words:
                found = found.get_command(context, word) if isinstance(found, click.Group) else found
            assert found is not None
            known = {flag for parameter in found.params for flag in parameter.opts}
            for option in re.findall(r"--[a-z-]+", options):
                assert option in known | {"--help"}, f"{page.code} names {command} {option}"


def test_policy_keys_that_pages_name_exist() -> None:
    policy = encode(POLICY)
    for page in read_pages().values():
        for part, key in re.findall(r"`(limits|budget|egress|project)\.([a-z_]+)`", " ".join((*page.do, *page.causes))):
            assert key in policy[part], f"{page.code} names {part}.{key}"
    assert isinstance(POLICY, Policy)


def test_json_and_the_list() -> None:
    told = json.loads(call("manifest-expired", "--json"))
    assert told["code"] == "manifest-expired" and told["exit_status"] == 65 and told["meaning"] == CODES["manifest-expired"]
    assert [item["code"] for item in json.loads(call("--json"))["codes"]] == list(CODES)
    assert all(f"  {code} " in call() for code in CODES)


@pytest.mark.parametrize(
    ("given", "near"), [("manifest-expird", "manifest-expired"), ("MEMORY", "limit-memory"), ("tls", "tls-required")]
)
def test_an_unknown_code_names_the_nearest(given: str, near: str) -> None:
    with pytest.raises(ConfigError, match=near):
        call(given)


def test_a_code_copied_with_its_brackets_is_understood() -> None:
    assert "file-changed" in call("[file-changed]")


def test_a_page_with_a_stray_line_is_refused() -> None:
    with pytest.raises(FormatError, match="has no place"):
        list(parse_pages("# G\n\n## internal\nevent: x\nstray\n", "g.md"))
