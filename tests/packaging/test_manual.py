# SPDX-License-Identifier: Apache-2.0
"""The manual and the schema for editors say what the code does: both are compared with the code's own schema."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
import yaml

from scaleoutd.cli.scaleoutctl import COMMANDS
from scaleoutd.core.nodeconfig import NodeConfig, load_config
from scaleoutd.core.policy import Policy, parse_policy_yaml
from scaleoutd.errors import ConfigError
from tests.packaging.deb import ROOT

MAN = ROOT / "docs/man"
EXAMPLE = ROOT / "policy/policy.example.yaml"


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("policy_schema", ROOT / "tools/policy_schema.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["policy_schema"] = module
    spec.loader.exec_module(module)
    return module


TOOL = load_tool()
SCHEMA: dict[str, Any] = json.loads((ROOT / "policy/schema/policy.schema.json").read_text())


def entries(page: str) -> list[tuple[str, str]]:
    """(key, "type, default") of the entries under KEYS."""
    text = (MAN / page).read_text().split(".SH KEYS\n")[1].split("\n.SH ")[0]
    return [
        (key.replace("\\", ""), words) for key, words in re.findall(r"^\.TP\n\.B (\S+)\n\((.+)\)$", unquote(text), re.MULTILINE)
    ]


def unquote(text: str) -> str:
    return text.replace("\\-", "-").replace("\\(dq", '"')


@pytest.mark.parametrize(("page", "record"), [("scaleoutd-policy.5", Policy), ("scaleoutd.yaml.5", NodeConfig)])
def test_every_key_is_in_the_manual_with_type_and_default(page: str, record: type[Any]) -> None:
    assert entries(page) == list(TOOL.keys(record))


def test_the_schema_for_editors_is_the_codes() -> None:
    assert (ROOT / "policy/schema/policy.schema.json").read_text() == TOOL.text(), "tools/policy_schema.py --write"


def test_the_example_is_valid_for_both_and_has_every_key() -> None:
    value = yaml.safe_load(EXAMPLE.read_text())
    jsonschema.Draft202012Validator(SCHEMA).validate(value)
    parse_policy_yaml(EXAMPLE.read_bytes())
    written = set(paths(value))
    for path, _ in TOOL.keys(Policy):
        assert path in written, f"{path} is not in the example"


def paths(value: Any, before: str = "") -> list[str]:
    found = []
    for key, item in value.items():
        path = f"{before}{key}"
        found.append(path)
        if isinstance(item, dict) and key != "settings_schema":
            ids = key in ("environments", "data_sets")
            found += [p for name, inner in item.items() for p in paths(inner, f"{path}.ID.")] if ids else paths(item, f"{path}.")
    return found


WRONG: dict[str, Any] = {
    "unknown key": {"colour": "red"},
    "development": {"development": True},
    "type": {"limits": {"processes": "many"}},
    "unit": {"limits": {"memory_bytes": "4 gigabytes"}},
    "enum": {"backend": "docker"},
    "relative path": {"trust_root": "etc/trust"},
    "id": {"data_sets": {"no spaces": {"path": "/srv"}}},
    "nothing": {"limits": {"cpus": 0}},
    "too long": {"step_output": {"keep_days": 5000}},
}


@pytest.mark.parametrize("what", WRONG)
def test_what_one_refuses_the_other_refuses(what: str) -> None:
    """An editor that knows the schema marks what `policy apply` would refuse."""
    value = {"version": 1, "project": {"name": "heart", "path": "/srv/heart"}, "trust_root": "/etc/scaleoutd/trust"}
    validator = jsonschema.Draft202012Validator(SCHEMA)
    validator.validate(value)
    parse_policy_yaml(json.dumps(value).encode())
    wrong = copy.deepcopy(value) | WRONG[what]
    assert not validator.is_valid(wrong)
    with pytest.raises(ConfigError):
        parse_policy_yaml(json.dumps(wrong).encode())


def test_the_examples_of_the_manual_are_taken() -> None:
    text = unquote((MAN / "scaleoutd.yaml.5").read_text())
    example = re.search(r"\.SH EXAMPLE\n\.nf\n(.*?)\.fi", text, re.DOTALL)
    assert example
    assert load_config([("scaleoutd.yaml", example[1].encode())]).config.client.name == "ward-7"


def test_the_pages_name_files_commands_and_users_that_are_there() -> None:
    layout = subprocess.run([sys.executable, ROOT / "packaging/layout.py"], check=True, capture_output=True, text=True).stdout
    users = (ROOT / "systemd/sysusers.d/scaleoutd.conf").read_text()
    pages = unquote("".join(path.read_text() for path in sorted(MAN.glob("*.[578]"))))
    for path in set(re.findall(r"/usr/(?:lib|share)/[a-z0-9/.-]*[a-z]", pages)):
        assert path in layout, path
    for name in set(re.findall(r"^u (\S+)|^g (\S+)", users, re.MULTILINE)):
        wanted = "".join(name)
        assert wanted in pages or re.fullmatch(r"scaleoutd-step-[1-6]", wanted), f"{wanted} is not in scaleoutd(7)"
    for unit in set(re.findall(r"scaleoutd[a-z-]*@?\.(?:service|socket|slice)\b", pages)):
        assert (ROOT / "systemd" / unit).exists(), unit
    for command in set(re.findall(r"scaleoutctl ([a-z]+(?:-[a-z]+)*)", pages)):
        assert command in COMMANDS, command


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="mandoc not found: tools/setup.sh package installs it")
def test_the_manual_is_clean() -> None:
    pages: list[Path] = sorted(MAN.glob("*.[1-8]"))
    assert len(pages) >= 7
    ran = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", *pages], capture_output=True, text=True)
    assert ran.returncode == 0 and not ran.stdout, ran.stdout
