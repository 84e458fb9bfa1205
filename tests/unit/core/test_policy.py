# SPDX-License-Identifier: Apache-2.0
"""The policy file, its safe defaults, the schema for settings, and the decision whether a task may run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleoutd.core import strictjson
from scaleoutd.core.clock import Now
from scaleoutd.core.grant import RunsSoFar, authorize
from scaleoutd.core.manifest import Expected, VerifiedManifest
from scaleoutd.core.plan import OUTCOMES, Task
from scaleoutd.core.policy import (
    Budget,
    DataSetRule,
    EnvironmentRule,
    Policy,
    development_policy,
    parse_duration,
    parse_policy,
    parse_policy_yaml,
    parse_size,
)
from scaleoutd.core.settings import check_schema, check_settings
from scaleoutd.errors import ConfigError, FormatError, PolicyDeniedError, ScaleoutError
from tests.unit.core.trust_samples import AT_MS, NOW, make_manifest

MINIMAL = "version: 1\nproject: {name: heart, path: /srv/heart}\ntrust_root: /etc/scaleoutd/trust\n"
EXAMPLE = Path(__file__).resolve().parents[3] / "policy" / "policy.example.yaml"


def policy(**changes: Any) -> Policy:
    base = parse_policy_yaml((MINIMAL + "environments: {default: {python: /usr/bin/python3}}\n").encode())
    return replace(base, **changes)


def test_what_the_policy_does_not_name_is_not_granted() -> None:
    found = parse_policy_yaml(MINIMAL.encode())
    assert found.outcomes == OUTCOMES
    assert found.client_certificate == "required"
    assert found.model_formats == ("npz", "safetensors")
    assert found.tasks == ("train", "validate")
    assert (found.environments, found.data_sets, found.settings_schema, found.egress.metrics) == ({}, {}, None, ())
    assert not (found.egress.telemetry or found.egress.failure_detail or found.step_output.journal or found.development)


def test_the_example_is_a_policy() -> None:
    found = parse_policy_yaml(EXAMPLE.read_bytes())
    assert parse_policy(found.canonical()) == found


def test_a_lock_of_an_earlier_version_stays_the_policy_that_it_was() -> None:
    """An upgrade brings keys: units, signatures and approvals name the digest of the bytes that lie there."""
    content = json.loads(policy().canonical())
    for key in ("hours", "approval", "approvers", "time_zone"):
        del content["budget"][key]  # as a version wrote it that did not have them
    earlier = strictjson.canonical(content)
    found = parse_policy(earlier)
    assert found == policy() and found.digest() == hashlib.sha256(earlier).hexdigest() != policy().digest()
    assert found.canonical() == earlier
    changed = replace(found, tasks=("train",))
    assert json.loads(changed.canonical())["budget"]["approval"] == "none", "what is changed is written out by this version"


def test_comments_order_and_units_do_not_change_the_digest() -> None:
    one = parse_policy_yaml((MINIMAL + "limits: {memory_bytes: 2GiB, wall_clock_s: 2h}\n").encode())
    other = "# note\nlimits:\n  wall_clock_s: 7200\n  memory_bytes: 2147483648\n" + MINIMAL
    assert parse_policy_yaml(other.encode()).digest() == one.digest()
    assert parse_policy_yaml(MINIMAL.encode()).digest() != one.digest()


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("limits: {memory_byte: 1}\n", "Did you mean memory_bytes?"),
        ("limits: {memory_bytes: 4GiBB}\n", "expected a size such as 4GiB"),
        ("limits: {cpu_s: -1}\n", "line 4, column 10"),
        ("limits: {cpus: 0}\n", "must lie within 1"),
        ("limits: {cpus: 1.5}\n", "must be an integer"),
        ("tasks: [train, train]\n", "names something twice"),
        ("tasks: [deploy]\n", "policy.tasks[0] must be one of"),
        ("outcomes: [no-sockets]\n", "must be one of"),
        ("client_certificate: no\n", "must be one of"),
        ("egress: {telemetry: yes}\n", "must be true or false"),
        ("egres: {}\n", "Did you mean egress?"),
        ("environments: {../x: {python: /p}}\n", "is no id"),
        ("environments: {a: {python: python3}}\n", "must be an absolute path, found"),
        ("data_sets: {a: {path: /d, digest: %s}}\n" % ("0" * 64), "no effect with mode none"),
        ("settings_schema: {patternProperties: {}}\n", "is unknown"),
        ("settings_schema: {properties: {lr: {minimum: low}}}\n", "must be a number"),
        ("development: true\n", "not for a policy file"),
        ("model_formats: []\n", "must have 1 to 8 items"),
    ],
)
def test_refused_with_its_place(text: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_policy_yaml((MINIMAL + text).encode())
    assert caught.value.code == "yaml-invalid"
    assert "line 4" in caught.value.message
    assert part in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("0", 0), ("1024", 1024), ("4GiB", 4 * 2**30), ("512 MB", 512_000_000), ("1kB", 1000), ("2TiB", 2 * 2**40)],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "GiB", "4 G", "4gib", "-1", "1.5GiB", "4GiB ", "٤"])
def test_bad_sizes_and_durations(text: str) -> None:
    for parse in (parse_size, parse_duration):
        with pytest.raises(ConfigError):
            parse(text)


def test_development_keeps_every_outcome() -> None:
    found = development_policy("/p", "/usr/bin/python3", {"samples": "/d"}, "demo")
    assert found.development
    assert found.outcomes == OUTCOMES
    assert "pickle" not in found.model_formats
    assert parse_policy(found.canonical()) == found


# settings

SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["epochs"],
    "properties": {
        "epochs": {"type": "integer", "minimum": 1, "maximum": 10},
        "learning_rate": {"type": "number", "minimum": "0.001", "maximum": 1},
        "mode": {"enum": ["fast", "slow"]},
        "layers": {"type": "array", "items": {"type": "integer"}, "maxItems": 2},
        "note": {"type": "string", "maxLength": 3},
        "free": {"type": "object", "additionalProperties": True},
    },
}


@pytest.mark.parametrize(
    "text",
    ["", "{}", "null", '{"epochs":1}', '{"epochs":10,"learning_rate":0.001}', '{"epochs":1,"mode":"fast","layers":[1,2]}',
     '{"epochs":1,"note":"abc","free":{"x":[{}]}}', '{"epochs":1,"learning_rate":1}'],
)  # fmt: skip
def test_settings_that_fit(text: str) -> None:
    assert check_settings(text, SCHEMA) == text


@pytest.mark.parametrize(
    "text",
    ['{"epochs":0}', '{"epochs":11}', '{"epochs":true}', '{"epochs":1.0}', '{"epochs":"1"}', '{"learning_rate":0.1}', "[]", "1",
     '{"epochs":1,"learning_rate":0.0009}', '{"epochs":1,"learning_rate":1e99}', '{"epochs":1,"mode":"export"}',
     '{"epochs":1,"x":1}',
     '{"epochs":1,"layers":[1,2,3]}', '{"epochs":1,"layers":["a"]}', '{"epochs":1,"note":"abcd"}', '{"epochs":1,"epochs":1}',
     '{"epochs":NaN}', "{", "\ud800", '{"epochs":1,"free":' + "[" * 50 + "]" * 50 + "}"],
)  # fmt: skip
def test_settings_that_do_not_fit(text: str) -> None:
    with pytest.raises(PolicyDeniedError) as caught:
        check_settings(text, SCHEMA)
    assert caught.value.code == "settings-denied"


def test_without_a_schema_only_empty_settings_pass_and_the_empty_schema_lets_all_pass() -> None:
    assert check_settings("{}", None) == "{}"
    assert check_settings('{"x":1.5}', {}) == '{"x":1.5}'
    with pytest.raises(PolicyDeniedError):
        check_settings('{"x":1}', None)


@given(st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=8))
def test_any_schema_is_taken_or_refused(schema: Any) -> None:
    try:
        check_schema(schema)
    except FormatError as exc:
        assert exc.code == "record-invalid"


# authorize


@dataclass(frozen=True)
class Offer:
    task: Task = "train"
    session_id: str = "s1"
    combiner: str = "combiner.example:443"
    settings: str = ""


def proven(**changes: Any) -> VerifiedManifest:
    manifest = make_manifest(**changes)
    return VerifiedManifest(manifest, "a" * 64, ("k",), {"ml": ("k",)}, 1, manifest.development)


DATA = {"samples": DataSetRule("/d"), "other": DataSetRule("/o", "full", "1" * 64)}
WRONG_B = {"environments": {"b": Expected("4" * 64)}}
TWO_ENVIRONMENTS = {"a": EnvironmentRule("/a/python"), "b": EnvironmentRule("/b/python", digest="2" * 64)}


def test_a_grant_holds_what_policy_and_manifest_say() -> None:
    held = policy(data_sets=DATA)
    grant = authorize(held, proven(data_sets={"samples": Expected()}), Offer(settings="{}"), NOW, RunsSoFar())
    assert grant.command == ("python", "train.py")
    assert (grant.policy_sha256, grant.manifest_sha256, grant.manifest_version) == (held.digest(), "a" * 64, 3)
    assert (grant.environment_id, grant.environment.python) == ("default", "/usr/bin/python3")
    assert dict(grant.data_sets) == {"samples": DataSetRule("/d")}
    assert grant.limits.memory_bytes == 4 * 2**30
    assert grant.model.formats == ("npz", "safetensors")


def test_data_that_the_project_does_not_name_is_not_shown_but_in_development() -> None:
    assert authorize(policy(data_sets=DATA), proven(), Offer(), NOW, RunsSoFar()).data_sets == {}
    held = replace(development_policy("/p", "/usr/bin/python3", {"samples": "/d"}, "heart"))
    assert set(authorize(held, proven(development=True), Offer(), NOW, RunsSoFar()).data_sets) == {"samples"}


def test_the_digest_of_the_manifest_binds_where_the_policy_has_none() -> None:
    grant = authorize(policy(), proven(environments={"default": Expected("3" * 64)}), Offer(), NOW, RunsSoFar())
    assert grant.environment.digest == "3" * 64


@pytest.mark.parametrize(
    ("code", "changes", "manifest", "offer", "runs"),
    [
        ("task-type-denied", {}, {}, Offer(task="predict"), RunsSoFar()),
        ("task-type-denied", {"tasks": ("validate",)}, {}, Offer(), RunsSoFar()),
        ("task-type-denied", {}, {"steps": {"validate": ("v",)}}, Offer(), RunsSoFar()),
        ("importer-project", {}, {"steps": {}, "startup_file": "train.py"}, Offer(), RunsSoFar()),
        ("session-denied", {"budget": Budget(combiners=("other.example:*",))}, {}, Offer(), RunsSoFar()),
        ("session-denied", {"budget": Budget(combiners=())}, {}, Offer(), RunsSoFar()),
        ("session-denied", {"budget": Budget(sessions=("s?",))}, {}, Offer(), RunsSoFar()),
        ("session-denied", {"budget": Budget(sessions=("s[0-9]",))}, {}, Offer(), RunsSoFar()),
        ("budget-exhausted", {"budget": Budget(runs_per_day=3)}, {}, Offer(), RunsSoFar(day=3)),
        ("budget-exhausted", {"budget": Budget(runs_per_session=3)}, {}, Offer(), RunsSoFar(day=3, session=3)),
        ("budget-exhausted", {"budget": Budget(runs_per_day=0)}, {}, Offer(), RunsSoFar()),
        ("settings-denied", {}, {}, Offer(settings='{"x":1}'), RunsSoFar()),
        ("project-mismatch", {}, {"project": "lung"}, Offer(), RunsSoFar()),
        ("policy-mismatch", {}, {"policy_sha256": "0" * 64}, Offer(), RunsSoFar()),
        ("trust-root-invalid", {}, {"development": True}, Offer(), RunsSoFar()),
        ("manifest-expired", {}, {"expires_ms": AT_MS}, Offer(), RunsSoFar()),
        ("environment-mismatch", {"environments": {}}, {}, Offer(), RunsSoFar()),
        ("environment-mismatch", {"environments": TWO_ENVIRONMENTS}, {}, Offer(), RunsSoFar()),
        ("environment-mismatch", {}, {"environments": {"torch": Expected()}}, Offer(), RunsSoFar()),
        ("environment-mismatch", {"environments": TWO_ENVIRONMENTS}, WRONG_B, Offer(), RunsSoFar()),
        ("data-set-mismatch", {}, {"data_sets": {"samples": Expected()}}, Offer(), RunsSoFar()),
        ("data-set-mismatch", {"data_sets": DATA}, {"data_sets": {"other": Expected("4" * 64)}}, Offer(), RunsSoFar()),
        ("data-set-mismatch", {"data_sets": DATA}, {"data_sets": {"samples": Expected("4" * 64)}}, Offer(), RunsSoFar()),
    ],
)
def test_denied_with_its_own_code(
    code: str, changes: Mapping[str, Any], manifest: Mapping[str, Any], offer: Offer, runs: RunsSoFar
) -> None:
    with pytest.raises(ScaleoutError) as caught:
        authorize(policy(**changes), proven(**manifest), offer, NOW, runs)
    assert caught.value.code == code
    assert caught.value.hint
    authorize(policy(), proven(), Offer(), NOW, RunsSoFar())


@pytest.mark.parametrize(
    ("changes", "manifest", "offer", "runs"),
    [
        ({"budget": Budget(runs_per_day=3, runs_per_session=3)}, {}, Offer(), RunsSoFar(2, 2)),
        ({"budget": Budget(combiners=("*.example:443",), sessions=("s*",))}, {}, Offer(), RunsSoFar()),
        ({"budget": Budget(sessions=("s[0-9]",))}, {}, Offer(session_id="s[0-9]"), RunsSoFar()),
        ({"environments": TWO_ENVIRONMENTS}, {"environments": {"b": Expected("2" * 64), "c": Expected()}}, Offer(), RunsSoFar()),
        ({"data_sets": DATA}, {"data_sets": {"other": Expected("1" * 64)}}, Offer(), RunsSoFar()),
        ({}, {"policy_sha256": policy().digest()}, Offer(), RunsSoFar()),
        ({"settings_schema": {}}, {}, Offer(settings='{"x":1}'), RunsSoFar()),
    ],
)
def test_control_at_the_edge_is_granted(
    changes: Mapping[str, Any], manifest: Mapping[str, Any], offer: Offer, runs: RunsSoFar
) -> None:
    authorize(policy(**changes), proven(**manifest), offer, Now(AT_MS, 0, synchronised=False), runs)
